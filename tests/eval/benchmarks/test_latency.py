"""latency.py, and the packets of speed.py, at 25 Hz and, made by hand, at both."""

import argparse
import json
import pathlib
import sys

import micro_25hz
import numpy as np
import pytest

from eval.benchmarks import codec as codec_speed
from eval.benchmarks import job as speed_job
from eval.benchmarks import latency, packets, speed, streams, worker_jax

FRAMES = 100  # 12 blocks and a half
PARTS = ("decode", "encode", "codes", "dit", "bigvgan")


@pytest.fixture(scope="module")
def micro(tmp_path_factory, tokenizer_dir) -> pathlib.Path:
    """A 25Hz checkpoint."""
    out = tmp_path_factory.mktemp("micro") / "checkpoint"
    micro_25hz.write(out, tokenizer_dir)
    return out


def speed_arguments(**changes) -> argparse.Namespace:
    given = dict(dtype="float32", threads=1, frames=4, codec_seconds=FRAMES / 25)
    given |= dict(stream_frames=None, schedule=None)
    return argparse.Namespace(**(given | changes))


@pytest.fixture(scope="module")
def loaded(micro):
    """(model, job) of it; its streams look as far ahead as they can.

    All tests use the same programs, which compile for long.
    """
    job = speed_job.make_job(speed_arguments(), micro)
    job |= dict(concurrency=1, repeats=1, stream_frames=FRAMES)
    bundle, _ = streams.looking_ahead(worker_jax.load(job), job, None)
    return bundle, job


def test_job_of_25hz(micro):
    job = speed_job.make_job(speed_arguments(), micro)
    assert job["frame_rate"] == 25 and job["single_codebook"]
    assert job["schedule"] == [8] and job["stream_frames"] == 48
    assert (job["codebook"], job["quantizers"]) == (512, 1)
    assert job["codec_frames"] == FRAMES and job["wave_samples"] == 4 * 16000


@pytest.mark.parametrize(
    "bad, message",
    [
        (
            dict(schedule=[1, 8]),
            "got --schedule 1,8 with a 25Hz checkpoint, expected 8",
        ),
        (
            dict(stream_frames=16),
            "got --stream_frames 16, expected more than the first",
        ),
    ],
)
def test_what_25hz_streams_cannot_do(micro, bad, message):
    with pytest.raises(ValueError, match=message):
        speed_job.make_job(speed_arguments(**bad), micro)


def test_what_is_heard_when(loaded):
    """With all the lookahead that there is a stream is the whole."""
    bundle, job = loaded
    found = packets.timeline(bundle, job, dict(lookahead=None))
    at, sound = np.transpose(found["heard"])
    assert (np.diff(at) >= 0).all() and (np.diff(sound) > 0).all()
    assert sound[-1] == FRAMES / 25  # all of it is handed over
    assert 0.2 < found["first_sound_seconds"] <= 0.32  # less what BigVGAN looks ahead
    assert [made for _, made in found["made"]] == [*range(8, 97, 8), FRAMES]
    came = next(seconds for seconds, made in found["made"] if made >= 80)
    assert found["seconds_first_codes"] < came <= found["seconds_first_sound"]
    assert 0 < found["seconds_per_packet"] and 0 < found["rtf"]
    assert found["seconds_total"] >= at[-1] and found["pause"] >= 0
    assert found["largest_difference"] <= 1e-4 and found["difference_db"] > 60


def test_looking_less_far_ahead(loaded):
    bundle, job = loaded
    before = bundle.speech_tokenizer
    other, voice = streams.looking_ahead(bundle, job, 1)
    assert packets.first_codes(other) == 16
    assert other.language_model is bundle.language_model
    assert bundle.speech_tokenizer is before  # nothing has changed
    assert packets.first_codes(bundle) == 80
    # a voice is prepared for one decoder
    assert voice.codec.state is None
    state = other.speech_tokenizer.prepare(voice.codec)
    assert state.codes.shape == (1, 24)


def test_packets(loaded):
    bundle, job = loaded
    found = packets.packets(bundle, job)
    assert (found["packet_codes"], found["codes_before_sound"]) == (8, 80)
    assert found["packet_seconds"] == 0.32
    seconds = [value for key, value in found.items() if key.startswith("seconds_")]
    assert all(np.min(value) > 0 for value in seconds)
    assert found["rtf"] == found["seconds_packet"] / 0.32
    median, most = found["seconds_first_packet"]
    assert found["seconds_codec_first"] < most and median == most


def test_25hz_codec_and_its_parts(loaded, monkeypatch):
    bundle, job = loaded
    codec = bundle.speech_tokenizer
    monkeypatch.setattr(codec, "streaming", lambda **_: codec)  # compiles for long
    found = codec_speed.measure(codec, job)
    names = {f"seconds_{part}" for part in PARTS}
    names |= {"seconds_per_packet_codec", "seconds_per_packet_codec_exact"}
    assert found.keys() == names and min(found.values()) > 0


def test_bytes_of_a_frame_are_the_talkers(loaded):
    lm = loaded[0].language_model
    read = lm.talker.transformer, lm.talker.codec_head
    size = worker_jax.parameter_bytes(read)
    assert worker_jax.bytes_per_frame(lm) == dict(talker=size)


def test_pause_by_hand():
    at, sound = np.array([1.0, 1.5, 3.0]), np.array([0.25, 1.25, 2.0])
    # heard from 1.0 on; waits 0.25 s for the second chunk, and 0.75 s in all
    assert packets.pause(at, sound) == 0.75
    assert packets.pause(at[:1], sound[:1]) == 0


def heard(at: list[float], made: list[tuple[float, int]]) -> streams.Heard:
    wave = np.full(2400, 0.5, np.float32)
    return streams.Heard(at, [wave] * len(at), np.zeros(1), made)


def test_summary_by_hand():
    runs = [
        heard([1.0, 1.5, 2.5, 2.5], [(0.5, 8), (1.0, 16), (1.5, 24), (2.5, 30)]),
        heard([3.0, 3.5, 4.5, 4.5], [(1.5, 8), (3.0, 16), (3.5, 24), (4.5, 30)]),
    ]
    found = packets.summary(runs, 24000)
    assert found["seconds_first_codes"] == 1 and found["seconds_first_sound"] == 2
    assert found["made"][1] == [2, 16]
    np.testing.assert_allclose(found["heard"][1], [2.5, 0.2])
    np.testing.assert_allclose(found["seconds_per_packet"], 0.5 * 3.2)
    np.testing.assert_allclose(found["rtf"], 1.5 / 0.3)
    alone = packets.summary([heard([1.0], [(1.0, 8)])], 24000)
    assert alone["rtf"] is None and alone["seconds_per_packet"] is None


# ------------------------------------------------------------- eval.benchmarks.latency


def side(**changes) -> dict:
    numbers = dict.fromkeys(latency.PLAIN, 0.25)
    timeline = dict(made=[[0.25, 8], [0.5, 16]], heard=[[0.5, 0.25], [1.0, 0.5]])
    return numbers | timeline | changes


@pytest.fixture
def main(monkeypatch, checkpoint, micro, tmp_path):
    """(main, jobs): the command with processes that only note their jobs."""
    jobs = []

    def run(command, job):
        jobs.append(job)
        sides = {name: side(rtf=float(len(jobs))) for name in job["sides"]}
        return dict(sides=sides, device="cpu", versions=dict(jax="0"), others=0.0)

    def main(*changes):
        models = ["--model_12hz", checkpoint("custom_voice"), "--model_25hz", micro]
        command = ["latency", "--out", tmp_path, "--threads", 1, *models, *changes]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        latency.main()

    monkeypatch.setattr(speed, "run", run)
    monkeypatch.setattr(speed, "use_processors", lambda count: None)
    return main, jobs


def test_one_command(main, tmp_path, capsys):
    command, jobs = main
    command("--text", "Good morning.", "--max_seconds", 2, "--lookahead", "1,2,exact")
    assert [job["stream_frames"] for job in jobs] == [25, 50] * 2  # in turn
    assert jobs[1]["sides"] == {
        "25Hz lookahead 1": dict(lookahead=1),
        "25Hz lookahead 2": dict(lookahead=2),
        "25Hz exact": dict(lookahead=None),
    }
    assert {job["request"]["text"] for job in jobs} == {"Good morning."}
    assert {job["seed"] for job in jobs} == {0}
    found = json.loads((tmp_path / "latency.json").read_text())
    names = ["12Hz", "12Hz packets of 4", *jobs[1]["sides"]]
    assert list(found["sides"]) == names
    assert found["sides"]["12Hz"]["rtf"] == 2  # median of the rounds, 1 and 3
    text = (tmp_path / "latency.md").read_text()
    assert f"|  | {' | '.join(names)} |" in text and text in capsys.readouterr().out
    assert "| RTF | 2 | 2 | 3 | 3 | 3 |" in text
    assert "- 12Hz: 0.5: 0.25, 1: 0.5" in text


def test_picture(main, tmp_path):
    pytest.importorskip("matplotlib")
    main[0]()
    assert (tmp_path / "latency.png").stat().st_size > 1000


def test_no_matplotlib(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency.importlib.util, "find_spec", lambda name: None)
    main[0]()
    assert not (tmp_path / "latency.png").exists()
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad, message",
    [
        (["--text", " "], "got --text ' ', expected at least one word"),
        (["--max_seconds", 0.5], "expected two packets or more: 0.64"),
        (["--repeats", 0], "expected --repeats and --rounds 1 or more"),
        (["--lookahead", "-1"], "expected --lookahead 0 or more blocks, or exact"),
        (["--lookahead", "all"], "argument --lookahead: invalid"),
        (["--language", "klingon"], "klingon"),
        (["--model_25hz", "/nowhere"], "expected a checkpoint directory or a hub id"),
    ],
)
def test_bad_arguments(main, bad, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main[0](*bad)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_checkpoints_the_other_way_round(main, micro, capsys):
    with pytest.raises(SystemExit):
        main[0]("--model_12hz", micro)
    error = capsys.readouterr().err
    assert (
        "got --model_12hz" in error
        and "expected one of qwen3_tts_tokenizer_12hz" in (error)
    )
