"""speed.py: what it counts, and that its processes work on a tiny checkpoint."""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import micro_25hz
import numpy as np
import pytest
from flax import nnx

from eval.benchmarks import job as speed_job
from eval.benchmarks import packets, quantization_error, speed, worker_jax
from eval.benchmarks import report as speed_report
from eval.benchmarks import streams as stream_speed
from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.generation import generate, prompt
from qwen3tts_jax.models import code_predictor, talker

ROOT = pathlib.Path(__file__).resolve().parents[3]
OFFICIAL_PYTHON = os.environ.get("QWEN_TTS_PYTHON")
FRAMES = 4
STREAM_FRAMES = 9


def run_module(name, *arguments, timeout=120.0) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def arguments(**changes) -> argparse.Namespace:
    given = dict(dtype="float32", threads=1, frames=FRAMES, codec_seconds=0.64)
    given |= dict(stream_frames=STREAM_FRAMES, schedule=[1])
    return argparse.Namespace(**(given | changes))


@pytest.mark.parametrize("size", ["0.6B", "1.7B"])
def test_bytes_per_frame_by_hand(size):
    config = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("custom_voice", size))
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
    assert worker_jax.bytes_per_frame(lm) == dict(
        talker=4 * (stack(64, 96, 3, 4, 2, 32) + 64 * 3072),
        predictor=4
        * (15 * (stack(dim, 80, 2, 4, 2, 16) + projection) + 15 * dim * 2048),
    )


def test_worker_prints_one_line_of_json(checkpoint):
    path = checkpoint("custom_voice")
    job = speed_job.make_job(arguments(), path) | dict(task="measure")
    assert job["codec_frames"] == 8 and job["wave_samples"] == 8 * 1920
    done = run_module("eval.benchmarks.worker_jax", json.dumps(job))
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    report = json.loads(line)
    codes = np.asarray(report["codes"])
    assert codes.shape == (FRAMES, 16) and codes.max() < 2048
    assert report["seconds_load"] > 0 and report["seconds_compile"] > 0
    assert report["seconds_per_frame_predictor"] > 0
    assert min(report[f"seconds_per_frame_codec_{n}"] for n in (1, 8)) > 0
    assert report["seconds_decode"] > 0 and report["seconds_encode"] > 0
    assert report["peak_memory_gib"] > 0.1
    assert report["read_bytes_per_second"] > 1e8
    assert set(report["versions"]) == {"python", "jax", "jaxlib", "flax"}


def test_there_is_no_end_token(checkpoint):
    """Where every other code has a lower score, no frame could be made otherwise."""
    path = checkpoint("custom_voice")
    job = speed_job.make_job(arguments(), path)
    bundle = worker_jax.load(job)
    head = bundle.language_model.talker.codec_head
    eos = bundle.config.talker.codec_eos_id
    hidden = np.sign(np.asarray(head.kernel[...][:, eos]))
    head.kernel[...] = head.kernel[...].at[:, eos].set(100 * hidden)
    make = worker_jax.frame_maker(bundle, job)
    assert len(make(FRAMES, bundle.language_model)) == FRAMES


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """(model, job) of the tiny checkpoint."""
    job = speed_job.make_job(arguments(), checkpoint("custom_voice"))
    return worker_jax.load(job), job


@pytest.mark.parametrize("count", [1, 3])
def test_streams(loaded, count, monkeypatch):
    bundle, job = loaded
    monkeypatch.setattr(bundle.speech_tokenizer, "warmup", lambda: None)  # is slow
    found = stream_speed.concurrent(bundle, job | dict(concurrency=count))
    assert found["concurrency"] == count and found["frames"] == STREAM_FRAMES
    median, most = found["seconds_first_byte"]
    assert 0 < median <= most <= found["seconds_total"]
    assert min(found["seconds_first_audible"]) >= median  # the tiny model is loud
    assert 0 < found["seconds_per_frame_step"] < found["seconds_total"]
    spoken = STREAM_FRAMES * 0.08
    rate = count * spoken / found["seconds_total"]
    np.testing.assert_allclose(found["audio_seconds_per_second"], rate)
    assert 0 < found["rtf_stream"] <= found["seconds_total"] / spoken


def test_summary_by_hand():
    loud, still = np.full(1920, 0.5, np.float32), np.zeros(1920, np.float32)
    two = np.concatenate([loud, loud])
    codes = np.zeros((3, 16))
    streams = [
        stream_speed.Heard([1.0, 2.0], [loud, two], codes),
        stream_speed.Heard([1.5, 3.5], [still, two], codes),
    ]
    found = stream_speed.summary(streams, 3, 12.5)
    assert found["seconds_first_byte"] == [1.25, 1.5]
    assert found["seconds_first_audible"] == [2.25, 3.5]
    assert found["seconds_per_frame_step"] == 1.0  # two frames after 1.5 s
    np.testing.assert_allclose(found["audio_seconds_per_second"], 2 * 0.24 / 3.5)
    streams[1].waves[1] = np.concatenate([still, still])
    assert stream_speed.summary(streams, 3, 12.5)["seconds_first_audible"] is None


def test_sound_begins_at_50_decibels_below_full_scale():
    wave = np.zeros(1920, np.float32)
    wave[480:720] = 10**-2.5 * 0.99
    assert not stream_speed.audible(wave)
    wave[480:720] = 10**-2.5 * 1.01
    assert stream_speed.audible(wave)


def test_a_short_first_packet_costs_no_quality(loaded, monkeypatch):
    bundle, job = loaded
    monkeypatch.setattr(stream_speed, "LATER_PACKETS", 1)
    monkeypatch.setattr(stream_speed, "FIRST_PACKETS", (2,))
    [found] = stream_speed.first_packets(bundle, job)
    assert found["frames"] == 2 and found["packet_seconds"] == 0.16
    assert found["seconds_first_packet"] > 0 and found["stall_seconds"] >= 0
    assert found["largest_difference"] <= 1e-5
    if found["dnsmos"] != stream_speed.NO_DNSMOS:
        assert 1 <= found["dnsmos"]["ovrl"] <= 5


def test_codes_without_sound(loaded):
    """What `packets.packets` takes for the language model's part."""
    bundle, job = loaded
    codec, silent = bundle.speech_tokenizer, packets.silent(bundle)
    assert packets.packet_codes(bundle) == 4 == packets.first_codes(bundle)
    found = packets.stream_times(
        silent,
        job | dict(concurrency=1),
        first=4,
        schedule=(4,),
        voice=stream_speed.voice_of(bundle, job),
    )
    assert bundle.speech_tokenizer is codec  # nothing has changed
    assert 0 < found["first_codes"] and 0 < found["packet"]
    assert found["first_sound"] is None


def test_weights_agree_with_themselves(loaded):
    bundle, job = loaded
    lm, make = bundle.language_model, worker_jax.frame_maker(bundle, job)
    item = stream_speed.utterance(bundle, job).prompt
    found = quantization_error.compare(bundle.config, item, make, lm, lm, 12)
    for part in (found["codebook_0"], found["codebooks_1_15"]):
        assert part == dict(kl_mean=0.0, kl_max=0.0, same_best=1.0)
    assert found["frames"] == found["frames_equal_in_free_runs"] == 12


def test_cheaper_weights_lead_away(loaded):
    bundle, job = loaded
    exact = bundle.language_model
    cheap = exact.quantized("int8")
    codes = worker_jax.frame_maker(bundle, job)(12, exact)
    other = codes.copy()
    other[7, 3] += 1

    def make(count, lm):
        return codes if lm is exact else other

    item = stream_speed.utterance(bundle, job).prompt
    found = quantization_error.compare(bundle.config, item, make, exact, cheap, 12)
    for part in (found["codebook_0"], found["codebooks_1_15"]):
        assert 0 < part["same_best"] <= 1
        assert 0 < part["kl_mean"] <= part["kl_max"] < 1
    assert found["frames_equal_in_free_runs"] == 7
    assert cheap.is_quantized and not exact.is_quantized  # nothing has changed
    assert not isinstance(cheap.predictor.heads[...], jax.Array)


def test_forced_scores_are_those_of_generation(loaded):
    """The best of them are the codes that greedy generation has chosen."""
    bundle, job = loaded
    options = dict(job["options"], repetition_penalty=1.0)
    make = worker_jax.frame_maker(bundle, job | dict(options=options))
    codes = make(12, bundle.language_model)
    item = stream_speed.utterance(bundle, job).prompt
    batch = prompt.collate(
        bundle.config, [item], length=len(item.text), trailing=len(codes)
    )
    lm, batch = bundle.language_model, dataclasses.asdict(batch)
    first, rest = quantization_error.scores(lm, batch, codes)
    np.testing.assert_array_equal(np.argmax(first, -1), codes[:, 0])
    np.testing.assert_array_equal(np.argmax(rest, -1), codes[:, 1:])


def test_faster_package_that_is_not_there(checkpoint):
    done = run_module(
        "eval.benchmarks.speed",
        *("--model", checkpoint("custom_voice"), "--threads", 1),
        *("--against", "faster-qwen3-tts", "--faster_python", sys.executable),
    )
    assert done.returncode == 2 and not done.stdout
    assert "--against faster-qwen3-tts" in done.stderr and "CUDA" in done.stderr
    assert "pip install faster-qwen3-tts" in done.stderr


def test_official_python_without_the_package(checkpoint):
    done = run_module(
        "eval.benchmarks.speed",
        *("--model", checkpoint("custom_voice"), "--threads", 1),
        *("--against", "official", "--official_python", sys.executable),
    )
    assert done.returncode == 2 and not done.stdout
    assert "where it does not run (ModuleNotFoundError: " in done.stderr
    assert "pip install" in done.stderr and "QWEN_TTS_PYTHON" in done.stderr


@pytest.mark.parametrize(
    "bad, message",
    [
        (["--frames", 2], "expected --frames 3 or more"),
        (["--codec_seconds", 0], "expected --codec_seconds and --stream_frames more"),
        (["--threads", 0], "got --threads 0, expected 1 to"),
        (["--concurrency", "0,3"], "expected --concurrency and --schedule"),
        (["--against", "official,others"], "got --against others, expected official"),
        (["--official_dtype", "int8"], "got --official_dtype int8, expected float32"),
        (["--model", "/nowhere"], "expected a checkpoint directory or a hub id"),
    ],
)
def test_bad_arguments(bad, message):
    done = run_module("eval.benchmarks.speed", "--threads", 1, *bad)
    assert done.returncode == 2 and message in done.stderr


def report(side: str, n: int, frame: float, **more) -> dict:
    parts = ("decode", "encode", "per_frame_predictor", "per_frame_talker")
    times = {f"seconds_{part}": 0.5 for part in parts}
    measured = dict(side=side, task="measure", n=n, seconds_per_frame=frame, others=0.0)
    where = dict(device="cpu", versions=dict(python="3"), codec_dtype="float32")
    return speed.derived(times | measured, 12.5, 10) | where | more


def codes(last: int) -> list:
    return [[1] * 16, [last] * 16]


FLOOR = dict(bytes_per_frame=dict(talker=3, predictor=5), read_bytes_per_second=80)
REPORTS = [
    report("ours", 1, 0.2, **FLOOR, codes=codes(2)),
    report("official", 1, 0.4, others=1.5, codes=codes(3)),
    report("ours", 2, 0.4, **FLOOR, codes=codes(2)),
    report("official", 2, 0.8, codes=codes(3)),
    dict(side="ours", task="start", n=2, seconds_first_frame=3.0, others=0.0)
    | dict(device="cpu", versions=dict(python="3")),
]
FIRST_PACKETS = [
    dict(
        frames=1,
        seconds_first_packet=0.25,
        packet_seconds=0.08,
        stall_seconds=0.5,
        largest_difference=1e-6,
        dnsmos=stream_speed.NO_DNSMOS,
    )
]
STREAM = dict(
    concurrency=3,
    packets="1, 2, 4, 8",
    seconds_first_byte=[0.25, 0.5],
    seconds_first_audible=None,
    seconds_per_frame_step=0.125,
    audio_seconds_per_second=7.5,
    rtf_stream=0.625,
    peak_memory_gib=1.5,
)
PACKETS = dict(
    concurrency=3,
    packet_codes=8,
    packet_seconds=0.32,
    codes_before_sound=16,
    seconds_lm_first=0.125,
    seconds_codec_first=0.25,
    seconds_first_packet=[0.5, 0.75],
    seconds_lm_packet=0.0625,
    seconds_codec_packet=0.03125,
    seconds_packet=0.16,
    rtf=0.5,
)
AGREEMENT = dict(
    codebook_0=dict(kl_mean=0.25, kl_max=0.5, same_best=0.875),
    codebooks_1_15=dict(kl_mean=0.125, kl_max=0.75, same_best=1.0),
    frames=48,
    frames_equal_in_free_runs=7,
)


def metrics_of(reports: list[dict]) -> dict:
    return speed_report.collect(reports) | dict(
        warnings=[],
        machine=dict(processor="none", cores=2, memory_gib=1),
        date="today",
        command="this",
        job=dict(frames=2, threads=1, dtype="float32", size="0b6", frame_rate=12.5)
        | dict(codec_seconds=10),
        sides={r["side"]: {} for r in reports},
    )


def test_rows_floor_and_warnings():
    rows = speed_report.summarise(REPORTS)
    assert rows["seconds_per_frame"] == dict(ours=[0.2, 0.4], official=[0.4, 0.8])
    np.testing.assert_allclose(rows["rtf_speech"]["ours"], [2.55, 5.05])
    np.testing.assert_allclose(rows["seconds_per_frame_rest"]["ours"], [-0.8, -0.6])
    assert rows["seconds_first_frame_cached"] == dict(ours=[3.0])
    assert speed_report.floors(REPORTS)["ours"]["seconds_per_frame"] == 0.1
    assert speed_report.agreeing_frames(REPORTS) == dict(official=1)
    assert len(speed_report.warnings(0.0, REPORTS)) == 1
    assert len(speed_report.warnings(0.7, REPORTS)) == 2


def test_table_without_anything_optional():
    ours = [r for r in REPORTS if r["side"] == "ours"]
    text = speed_report.table(metrics_of(ours))
    assert "s per 80 ms frame           0.2 0.4\n" in text
    assert "streams" not in text and "first packet" not in text and "KL" not in text
    assert "ours 3.00 times that" in text


def test_table_with_everything():
    cheap = dict(FLOOR, bytes_per_frame=dict(talker=1, predictor=1))
    reports = [
        *REPORTS,
        report("ours int8", 1, 0.1, **cheap, codes=codes(2)),
        report("ours", 3, 0, streams=[STREAM], task="stream"),
        report("ours", 1, 0, first_packets=FIRST_PACKETS, task="experiments"),
        report("ours", 3, 0, packets=[PACKETS], task="packets"),
        report("ours int8", 1, 0, agreement=AGREEMENT, task="agreement"),
        {
            k: v
            for k, v in report("faster-qwen3-tts", 1, 0.3).items()
            if not k.endswith(("predictor", "talker", "rest", "10s", "dtype"))
        },
    ]
    metrics = metrics_of(reports)
    text = speed_report.table(metrics)
    assert "0.4 0.8 (2.00)" in text and "0.1 (0.33)" in text and "0.3 (1.00)" in text
    [stream] = [l for l in text.splitlines() if "1, 2, 4, 8" in l]
    assert stream.split() == (
        "ours 3 0.25 0.5 - 0.125 7.5 0.625 1.5 1, 2, 4, 8".split()
    )
    assert "not installed" in text
    assert "packets of 8 codes, 0.32 s; the first after 16 codes" in text
    ours, paper = [l for l in text.splitlines() if " = " in l and "GB" not in l]
    assert ours.split() == (
        "ours 3 0.125 + 0.25 = 0.375 0.5 0.75 0.0625 0.0312 0.16 0.5".split()
    )
    assert "0.174 + 0.005 = 0.179" in paper and paper.endswith("0.338")
    assert "codebook 0: KL 0.25 nats (at most 0.5), same best code 87.5%" in text
    assert "free runs: the first 7 frames are equal" in text
    assert "official: same codes in the first 1 of 2" in text
    assert "ours int8 4.00 times that" in text and "official 6.00 times" in text
    json.dumps(metrics)


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    stream = report("ours", 3, 0, streams=[STREAM], task="stream")
    speed_report.write(metrics_of([*REPORTS, stream]), tmp_path)
    assert (tmp_path / "speed.png").stat().st_size > 1000
    assert (tmp_path / "metrics.json").exists()


def test_table_of_25hz():
    job = dict(frame_rate=25, codec_seconds=5, frames=2, threads=1, dtype="float32")
    measured = dict(side="ours", task="measure", n=1, seconds_per_frame=0.125)
    measured |= dict(seconds_decode=2.0, seconds_dit=1.5, others=0.0, device="cpu")
    measured |= FLOOR | dict(codes=[[1], [2]], versions={}, codec_dtype="float32")
    metrics = metrics_of([speed.derived(measured, 25, 5)])
    metrics |= dict(job=job | dict(size="0b6"))
    text = speed_report.table(metrics)
    assert "s per 40 ms frame           0.125" in text
    assert "codec: decode 5 s, s        2" in text and "  DiT, 10 steps" in text
    assert "real-time factor, codes     3.125" in text  # 0.125 s for 0.04 s
    assert "  and their decoding        3.525" in text
    assert "predictor" not in text and "talker" not in text  # rows of 12Hz


@pytest.mark.oracle
@pytest.mark.skipif(not OFFICIAL_PYTHON, reason="QWEN_TTS_PYTHON names no Python")
@pytest.mark.parametrize("rate", [12, 25])
def test_against_the_official_package(rate, checkpoint, tokenizer_dir, tmp_path):
    if rate == 12:
        path, ours_alone = checkpoint("custom_voice"), ("cached", "codec")
    else:
        path, ours_alone = tmp_path / "micro", ("cached", "codec", "encode")
        micro_25hz.write(path, tokenizer_dir)
    done = run_module(
        "eval.benchmarks.speed",
        *("--model", path, "--threads", 1, "--frames", FRAMES, "--codec_seconds", 1),
        *("--against", "official", "--rounds", 1, "--out", tmp_path),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["agreeing_frames"] == dict(official=FRAMES)  # they do the same work
    for key, row in metrics["rows"].items():
        alone = any(part in key for part in ours_alone)
        sides = {"ours"} if alone else {"ours", "official"}
        assert not row or set(row) >= sides, key
    least = {"seconds_per_frame", "seconds_decode", "peak_memory_gib"}
    least |= {"seconds_dit", "seconds_codes"} if rate == 25 else {"seconds_encode"}
    assert all(metrics["rows"][key] for key in least)
    [stream] = metrics["streams"]
    assert stream["concurrency"] == 1 and stream["peak_memory_gib"] > 0.1
    assert "official" in done.stdout and "times that" in done.stdout
