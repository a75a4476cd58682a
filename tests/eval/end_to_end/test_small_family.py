"""The family's road: what is done is not done again, a training stops when told."""

import json

import pytest

from data.small_family import passages
from data.small_family import reading_plan as plan
from eval.end_to_end import small_family as family_run

SLEEPS = (
    "import signal, sys, time\n"
    "stop = lambda *_: (print('saved', flush=True), sys.exit())\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "time.sleep(60)"
)


@pytest.fixture
def run(tmp_path):
    return family_run.Run(tmp_path, device="cpu", minutes=None)


def test_what_is_done_is_not_done_again(run, tmp_path):
    count = tmp_path / "count"
    append = f"open({str(count)!r}, 'a').write('x')"
    for _ in range(2):
        run("stage", "-c", append)
    assert count.read_text() == "x"
    with pytest.raises(SystemExit, match="broken failed .exit code 3."):
        run("broken", "-c", "import sys; sys.exit(3)")
    with pytest.raises(SystemExit):  # it is not taken for done
        run("broken", "-c", "import sys; sys.exit(3)")


def test_a_training_that_used_its_minutes_is_told_to_stop_and_goes_on_later(run, capfd):
    with pytest.raises(family_run.Stopped):
        run("long", "-c", SLEEPS, seconds=1.0)
    assert "saved" in capfd.readouterr().out
    run("long", "-c", "print('went on')")
    assert "went on" in capfd.readouterr().out


def test_only_clips_in_trained_languages_are_spoken(tmp_path):
    lines = [
        dict(audio="a.flac", text="Oh.", language=code) for code in ("en", "cs", "zh")
    ]
    plan.write_lines(tmp_path / "manifest.jsonl", lines)
    paths = (tmp_path / "manifest.jsonl", tmp_path / "speech.jsonl")
    family_run.choose_speech(*paths, passages.TRAINED)
    kept = [json.loads(x) for x in (tmp_path / "speech.jsonl").read_text().splitlines()]
    assert [line["language"] for line in kept] == ["en", "zh"]
    assert all(line["audio"] == str(tmp_path / "a.flac") for line in kept)


def test_the_trained_codec_takes_the_place_of_the_random_one(tmp_path):
    random, codec = tmp_path / "random", tmp_path / "codec"
    (random / "speech_tokenizer").mkdir(parents=True)
    codec.mkdir()
    (random / "config.json").write_text("lm")
    (random / "speech_tokenizer" / "config.json").write_text("random")
    (codec / "config.json").write_text("trained")
    family_run.join(random, codec, tmp_path / "source")
    assert (tmp_path / "source" / "config.json").read_text() == "lm"
    inside = tmp_path / "source" / "speech_tokenizer" / "config.json"
    assert inside.read_text() == "trained"


def test_every_voice_has_a_name_of_its_own():
    names = [name.partition("=")[0] for name in family_run.voices()]
    assert len(set(names)) == len(names) == 15 and names[0] == "af_heart"
    chosen = plan.choose_voices(["en"], ["am_michael"])
    assert family_run.voices(chosen) == ("am_michael=kokoro/am_michael",)


def test_every_stage_of_the_codec_takes_over_from_one_before_it(run, monkeypatch):
    commands = {}
    monkeypatch.setattr(
        family_run.Run, "__call__", lambda s, n, *c, **_: commands.update({n: c})
    )
    monkeypatch.setattr(family_run.whisper_files, "assemble", lambda path: path)
    family_run.make_codec(run)
    seen = []
    for stage, earlier in family_run.CODEC_STAGES:
        assert set(earlier.values()) <= set(seen)
        seen.append(stage)
        config = f"--config=configs/codec.py:stage={stage},size=small,device=cpu"
        assert config in commands[stage]
        for field, name in earlier.items():
            assert f"--config.model.{field}={run.out / name}" in commands[stage]
    export = commands["export-codec"]
    assert export[-1].startswith("--export=") and f"--workdir={run.out}/gan" in export


def test_configurations_are_known(run, monkeypatch):
    commands = []
    monkeypatch.setattr(
        family_run.Run, "__call__", lambda self, name, *c, **_: commands.append(c)
    )
    run.train("s1", "pretrain.py:stage=s1", model__source="X")
    assert commands[0][0] == "train.py"
    assert "--config=configs/pretrain.py:stage=s1,size=small,device=cpu" in commands[0]
    assert "--config.model.source=X" in commands[0]
