"""The whole road of training on real recordings, in the short form."""

import json
import sys

import jax

from eval.end_to_end import real_speech

STEPS = dict(steps=8, warmup=2)
# half of the positions that a step of a tiny model has: it is what takes the time
SMALLER = dict(s1="rows=2", s2="rows=2", s3="length=1024", finetune="rows=2")


class Run(real_speech.Run):
    """With a smaller batch in each stage."""

    def train(self, name: str, *args) -> list:
        return super().train(name, *args, f"--config.{SMALLER[name]}")


def test_recordings_become_a_voice(tmp_path, monkeypatch):
    """prepare, three stages, a fine-tuned voice, export, infer.py; every loss falls."""
    out = tmp_path / "run"
    programs = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", programs)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setattr(real_speech, "SHORT", STEPS)
    monkeypatch.setattr(real_speech, "Run", Run)
    monkeypatch.setattr(sys, "argv", ["real_run", "--short", f"--out={out}"])
    real_speech.main()  # which exits where a command fails or a loss does not fall
    report = json.loads((out / "report.json").read_text())
    assert set(report["losses"]) == {"s1", "s2", "s3", "finetune"}
    assert all(last < first for first, last in report["losses"].values())
    assert report["speakers"] == {"asterisk_it_it_m_carlo": 3000}
    assert (out / "voice.wav").stat().st_size > 1000
