"""eval.speed: what it counts, and that its processes work on a tiny checkpoint."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from eval import our_speed, speed, speed_report
from qwen3tts_jax import code_predictor, generate, talker
from qwen3tts_jax import config as configs

ROOT = pathlib.Path(__file__).resolve().parents[2]
OFFICIAL_PYTHON = os.environ.get("QWEN_TTS_PYTHON")
FRAMES = 4


def run_module(name, *arguments, timeout=120.0) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def arguments(**changes) -> argparse.Namespace:
    given = dict(dtype="float32", threads=1, frames=FRAMES, against=None)
    return argparse.Namespace(**(given | changes))


@pytest.mark.parametrize("size", ["0.6B", "1.7B"])
def test_bytes_per_frame_by_hand(size):
    config = configs.Qwen3TTSConfig.from_hf(tiny.tts_config("custom_voice", size))
    lm = jax.eval_shape(
        lambda: generate.LanguageModel(
            talker.Talker(config.talker, rngs=nnx.Rngs(0)),
            code_predictor.CodePredictor(config.code_predictor, rngs=nnx.Rngs(0)),
        )
    )

    def stack(dim, ffn, layers, heads, kv_heads, head_dim):
        attention = dim * head_dim * (2 * heads + 2 * kv_heads) + 2 * head_dim
        return layers * (attention + 3 * dim * ffn + 2 * dim) + dim  # and the last norm

    dim = {"0.6B": 64, "1.7B": 48}[size]  # of the predictor; the talker's is 64
    projection = {"0.6B": 0, "1.7B": 64 * 48 + 48}[size]
    assert our_speed.bytes_per_frame(lm) == dict(
        talker=4 * (stack(64, 96, 3, 4, 2, 32) + 64 * 3072),
        predictor=4
        * (15 * (stack(dim, 80, 2, 4, 2, 16) + projection) + 15 * dim * 2048),
    )


def test_worker_prints_one_line_of_json(checkpoint):
    path = checkpoint("custom_voice")
    job = speed.make_job(arguments(), path) | dict(task="measure", codec_frames=8)
    job["wave_samples"] = 8 * 1920
    done = run_module("eval.our_speed", json.dumps(job))
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    report = json.loads(line)
    codes = np.asarray(report["codes"])
    assert codes.shape == (FRAMES, 16) and codes.max() < 2048
    assert report["seconds_load"] > 0 and report["seconds_compile"] > 0
    assert report["seconds_per_frame_predictor"] > 0
    assert report["seconds_decode_10s"] > 0 and report["seconds_encode_10s"] > 0
    assert report["peak_memory_gib"] > 0.1
    assert report["read_bytes_per_second"] > 1e8
    assert set(report["versions"]) == {"python", "jax", "jaxlib", "flax"}


def test_end_token_is_never_chosen(checkpoint):
    job = speed.make_job(arguments(), checkpoint("custom_voice"))
    bundle = our_speed.load(job)
    eos = bundle.config.talker.codec_eos_id
    head = np.asarray(bundle.language_model.talker.codec_head.kernel[...])
    assert not head[:, eos].any() and head[:, eos - 1].all()


def test_official_python_without_the_package(checkpoint):
    done = run_module(
        "eval.speed",
        *("--model", checkpoint("custom_voice"), "--threads", 1),
        *("--against", "official", "--official_python", sys.executable),
    )
    assert done.returncode == 2 and not done.stdout
    assert "cannot import qwen_tts (ModuleNotFoundError: " in done.stderr
    assert "pip install" in done.stderr and "QWEN_TTS_PYTHON" in done.stderr


@pytest.mark.parametrize(
    "bad, message",
    [
        (["--frames", 2], "expected --frames 3 or more"),
        (["--threads", 0], "got --threads 0, expected 1 to"),
        (["--model", "/nowhere"], "expected a checkpoint directory or a hub id"),
    ],
)
def test_bad_arguments(bad, message):
    done = run_module("eval.speed", "--threads", 1, *bad)
    assert done.returncode == 2 and message in done.stderr


def report(side: str, n: int, frame: float, **more) -> dict:
    parts = ("decode_10s", "encode_10s", "per_frame_predictor", "per_frame_talker")
    times = {f"seconds_{part}": 0.5 for part in parts}
    measured = dict(side=side, task="measure", n=n, seconds_per_frame=frame, others=0.0)
    return speed.derived(times | measured) | more


def test_rows_ratio_and_warnings():
    floor = dict(bytes_per_frame=dict(talker=3, predictor=5), read_bytes_per_second=80)
    reports = [
        report("ours", 1, 0.2, **floor),
        report("official", 1, 0.4, others=1.5),
        report("ours", 2, 0.4, **floor),
        report("official", 2, 0.8),
        dict(side="ours", task="start", n=2, seconds_first_frame=3.0, others=0.0),
    ]
    rows = speed_report.summarise(reports)
    assert rows["seconds_per_frame"] == dict(ours=[0.2, 0.4], official=[0.4, 0.8])
    np.testing.assert_allclose(rows["rtf_speech"]["ours"], [2.55, 5.05])
    np.testing.assert_allclose(rows["seconds_per_frame_rest"]["ours"], [-0.8, -0.6])
    assert rows["seconds_first_frame_cached"] == dict(ours=[3.0])
    assert speed_report.floor(reports)["seconds_per_frame"] == 0.1
    assert len(speed_report.warnings(0.0, reports)) == 1
    assert len(speed_report.warnings(0.7, reports)) == 2


@pytest.mark.oracle
@pytest.mark.skipif(not OFFICIAL_PYTHON, reason="QWEN_TTS_PYTHON names no Python")
def test_against_the_official_package(checkpoint, tmp_path):
    done = run_module(
        "eval.speed",
        *("--model", checkpoint("custom_voice"), "--threads", 1, "--frames", FRAMES),
        *("--against", "official", "--rounds", 1, "--out", tmp_path),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["agreeing_frames"] == FRAMES  # they do the same work
    for key, row in metrics["rows"].items():
        assert set(row) >= ({"ours"} if "cached" in key else {"ours", "official"}), key
    assert "official / ours" in done.stdout and "times that" in done.stdout
