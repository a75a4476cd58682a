"""The whole road of training on real recordings, in the short form."""

import json
import os
import subprocess
import sys

import jax
from test_architecture import ROOT


def test_recordings_become_a_voice(tmp_path):
    """prepare, three stages, a fine-tuned voice, export, infer.py; every loss falls."""
    out = tmp_path / "run"
    cache = dict(JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir)
    done = subprocess.run(
        [sys.executable, "-m", "eval.real_run", "--short", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | cache,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert set(report["losses"]) == {"s1", "s2", "s3", "finetune"}
    assert all(last < first for first, last in report["losses"].values())
    assert report["speakers"] == {"asterisk_it_it_m_carlo": 3000}
    assert (out / "voice.wav").stat().st_size > 1000
