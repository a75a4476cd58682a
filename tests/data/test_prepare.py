"""Recordings to shards: what is written, restarted, refused and counted."""

import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from data import prepare
from data.format import records
from data.preparation import (
    cleaning,
    encoding,
    progress,
    shards,
    sources,
    speaker_features,
)
from data.preparation import clip as raw
from data.preparation import report as tally
from qwen3tts_jax import speech_tokenizer
from qwen3tts_jax.codecs import base

ROOT = pathlib.Path(__file__).parents[2]
CLIPS = ROOT / "tests/recordings/clips"
SMALL = ("--shard_clips", "6", "--batch_frames", "64")


@pytest.fixture(scope="module")
def checkpoint_dir(checkpoint) -> str:
    return str(checkpoint("base"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint_dir):
    path = pathlib.Path(checkpoint_dir) / "speech_tokenizer"
    return speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(path)


def flags(codec_dir, out, *more, folder=CLIPS) -> list[str]:
    given = ("--folder", str(folder), "--codec", str(codec_dir), "--out", str(out))
    return [*given, *SMALL, "--speaker", "mel", "--crop_seconds", "1", *more]


@pytest.fixture(scope="module")
def corpus(checkpoint_dir, tmp_path_factory) -> pathlib.Path:
    """The sixteen recordings of this checkout, prepared without interruption."""
    out = tmp_path_factory.mktemp("prepared") / "corpus"
    prepare.main(flags(checkpoint_dir, out))
    return out


def rows(out: pathlib.Path) -> list[records.Record]:
    found = []
    for path in sorted(out.glob(f"*{records.SUFFIX}")):
        shard = records.Shard(path)
        found += [records.decode(data) for data in shard.read(range(shard.rows))]
    return found


def contents(out: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(24_000 * seconds))).astype(np.float32)


def folder_of(path: pathlib.Path, **texts: str) -> pathlib.Path:
    """Clips of noise, 1.5 s each."""
    path.mkdir()
    for seed, (name, text) in enumerate(texts.items()):
        soundfile.write(path / f"{name}.wav", noise(1.5, seed), 24_000)
        (path / f"{name}.txt").write_text(text, "utf-8")
    return path


# ------------------------------------------------------------------ what is written


def test_every_clip_becomes_a_record_in_order(corpus, tokenizer):
    found = rows(corpus)
    source = sources.open_source(sources.Spec("folder", str(CLIPS)))
    given = source.clips(0, len(source))
    assert [r.id for r in found] == [clip.id for clip in given]
    for record, clip in zip(found, given):
        assert (record.text, record.language) == (clip.text, clip.language)
        assert (record.speaker, record.tier) == (clip.speaker, "medium")
        assert record.mel.shape == (93, 128)  # a second
        assert len(record.codes) == -(-round(record.seconds * 24_000) // 1920)
    with open(corpus / "shard-00002.json") as file:
        marker = json.load(file)
    assert (marker["rows"], marker["schema"], marker["codebooks"]) == (4, 1, 16)
    assert marker["codec"] == tokenizer.fingerprint
    assert marker["frames"] == sum(len(r.codes) for r in found[12:])


def test_codes_in_a_batch_are_those_of_the_clip_alone(corpus, tokenizer):
    """The last frame, which is partial, included."""
    source = sources.open_source(sources.Spec("folder", str(CLIPS)))
    some = [
        (r, c) for r, c in zip(rows(corpus), source.clips(0, 8)) if len(r.codes) < 33
    ]
    assert len(some) > 1
    for record, clip in some[:3]:
        wave = cleaning.take(clip, cleaning.Rules()).wave
        assert len(wave) % 1920
        alone = tokenizer.encode((wave, 24_000)).audio_codes[0]
        assert np.array_equal(record.codes, alone)


def test_codes_do_not_depend_on_the_company(checkpoint_dir):
    encoder = encoding.Encoder(f"{checkpoint_dir}/speech_tokenizer", batch_frames=32)
    wave = noise(0.61)
    lengths = (0.5, 0.3, 0.64, 0.4, 0.45, 0.2)
    others = [noise(seconds, seed) for seed, seconds in enumerate(lengths, 1)]

    def codes(*batch):
        found = {}
        for numbers, _, values in encoder.encode(enumerate(batch)):
            found |= dict(zip(numbers, values))
        assert sorted(found) == list(range(len(batch)))
        return [found[number] for number in range(len(batch))]

    [alone] = codes(wave)
    assert np.array_equal(codes(*others, wave)[-1], alone)
    assert np.array_equal(codes(wave, *others)[0], alone)
    assert not np.array_equal(codes(*others)[2], alone)


def test_few_programs_encode_all_lengths(checkpoint_dir, compiled):
    encoder = encoding.Encoder(f"{checkpoint_dir}/speech_tokenizer", batch_frames=32)
    waves = [noise(seconds) for seconds in (0.1, 0.2, 0.33, 0.5, 0.6, 0.64)]
    for _ in encoder.encode(enumerate(waves)):
        pass
    assert len(compiled()) <= 1  # none if an earlier test ran it


def test_x_vectors_come_of_the_checkpoint(checkpoint_dir):
    waves = [noise(2.0), noise(0.4, 1)]
    found = speaker_features.Voices(
        speaker_features.Spec("x_vector", 1.0, checkpoint_dir)
    )
    both = found.describe(waves)
    assert [set(row) for row in both] == [{"x_vector"}, {"x_vector"}]
    alone = found.describe(waves[1:])[0]["x_vector"]
    assert alone.shape == (64,) and alone.dtype == np.float16
    assert np.allclose(both[1]["x_vector"], alone, rtol=1e-2, atol=1e-3)
    assert len(found.fingerprint) == 16
    with pytest.raises(ValueError, match="give both or neither"):
        speaker_features.Voices(speaker_features.Spec("x_vector"))


def test_the_fingerprint_is_of_values_and_codebooks(tokenizer, checkpoint_dir):
    path = pathlib.Path(checkpoint_dir) / "speech_tokenizer"
    again = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(path)
    assert again.fingerprint == tokenizer.fingerprint
    assert bytes.fromhex(again.fingerprint) and len(again.fingerprint) == 16
    leaves, tree = jax.tree.flatten(again.encoder)
    leaves[3] = leaves[3].at[(0,) * leaves[3].ndim].add(1e-3)
    again.encoder = jax.tree.unflatten(tree, leaves)
    assert again.fingerprint != tokenizer.fingerprint
    other = base.fingerprint_of(
        tokenizer.config.encoder, tokenizer.encoder, quantizers=8
    )
    assert other != tokenizer.fingerprint


# ------------------------------------------------------------------------- restart

# Dies when the second record of the second shard has been handed to the writer.
KILLED = """
import os, signal, sys
import jax
from data import prepare
from data.format import records

jax.config.update("jax_compilation_cache_dir", sys.argv.pop(1))
write, shards = records.write_shard, []

def write_and_die(path, made):
    shards.append(path)
    def some():
        for number, data in enumerate(made):
            if len(shards) == 2 and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield data
    return write(path, some())

records.write_shard = write_and_die
prepare.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_and_writes_the_same(corpus, checkpoint_dir, tmp_path):
    out = tmp_path / "corpus"
    arguments = flags(checkpoint_dir, out)
    cache = jax.config.jax_compilation_cache_dir
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, cache, *arguments], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    left = {p.name for p in out.iterdir() if not p.name.startswith(".")}
    assert left == {"shard-00000.array_record", "shard-00000.json", "settings.json"}
    assert list(out.glob(".work-*"))  # what was begun
    first = (out / "shard-00000.json").stat().st_mtime_ns
    prepare.main(arguments)
    assert contents(out) == contents(corpus)
    assert (out / "shard-00000.json").stat().st_mtime_ns == first
    assert not list(out.glob(".work-*"))


def test_a_finished_run_does_nothing(corpus, checkpoint_dir, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in corpus.glob("shard*")}
    prepare.main(flags(checkpoint_dir, corpus))
    assert {p.name: p.stat().st_mtime_ns for p in corpus.glob("shard*")} == before
    brief = json.loads(capsys.readouterr().out)
    assert (brief["shards_done"], brief["kept"]) == (3, 16)


def test_a_shard_that_is_lost_is_made_again(corpus, checkpoint_dir, tmp_path):
    out = tmp_path / "corpus"
    shutil.copytree(corpus, out)
    for path in out.glob("shard-00001*"):
        path.unlink()
    prepare.main(flags(checkpoint_dir, out))
    assert contents(out) == contents(corpus)


def test_a_full_disk_leaves_no_half_of_a_shard(checkpoint_dir, tmp_path):
    source = sources.Spec("folder", str(CLIPS))
    job = shards.Job(
        source,
        f"{checkpoint_dir}/speech_tokenizer",
        shard_clips=6,
        batch_frames=64,
        voice=speaker_features.Spec("mel", 1.0),
    )
    preparer = shards.Preparer(job)
    made = preparer.shard(0)
    preparer.shard = lambda number, say=None: made
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="make room and give the same command again"):
            preparer.write(0, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    preparer.write(0, tmp_path)
    assert len(rows(tmp_path)) == 6


# ------------------------------------------------------------------------- refusals


def test_other_settings_in_the_same_directory_are_refused(corpus, checkpoint_dir):
    before = contents(corpus)
    with pytest.raises(SystemExit) as caught:
        prepare.main(flags(checkpoint_dir, corpus, "--keep_bad", "--max_seconds", "20"))
    message = str(caught.value)
    assert "keep_bad: False then, True now" in message and "rules" in message
    assert contents(corpus) == before


def test_another_codec_or_source_is_refused(corpus, checkpoint, checkpoint_dir):
    with pytest.raises(SystemExit, match="codec: .* then"):
        prepare.main(flags(checkpoint("base", seed=2), corpus))
    with pytest.raises(SystemExit, match="source_clips: 16 then, 8 now"):
        prepare.main(flags(checkpoint_dir, corpus, folder=CLIPS / "en"))


def test_two_runs_in_one_directory_are_refused(corpus, checkpoint_dir):
    with prepare.alone(corpus):
        with pytest.raises(SystemExit, match="another run is writing"):
            prepare.main(flags(checkpoint_dir, corpus))


def test_a_directory_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "a.array_record").touch()
    with pytest.raises(ValueError, match="give a new directory"):
        shards.settle(tmp_path, {})


@pytest.mark.parametrize(
    "more, message",
    [
        (("--root", "x"), "--root without --source"),
        (("--rate", "5"), "--rate without --tfds"),
        (("--shard_clips", "0"), "shard_clips 0"),
        (("--speaker", "x_vector"), "give both or neither"),
        (("--crop_seconds", "0.01"), "at least 0.06"),
    ],
)
def test_flags_that_do_not_fit_are_refused(checkpoint_dir, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        prepare.main(flags(checkpoint_dir, tmp_path, *more))


def test_recordings_that_are_not_unpacked_are_named(checkpoint_dir, tmp_path):
    given = ["--source", "asterisk", "--languages", "it", "--codec", checkpoint_dir]
    with pytest.raises(SystemExit, match="apt-get download asterisk-core-sounds-it "):
        prepare.main([*given, "--out", str(tmp_path)])


# ------------------------------------------------------------------------- counting


def test_bad_clips_are_counted_named_and_dropped(checkpoint_dir, tmp_path):
    long = "A text that nobody could say in so short a time, however fast he speaks."
    folder = folder_of(tmp_path / "in", a="Good morning.", b="", c=long, d="Broken.")
    (folder / "d.wav").write_bytes(b"no sound")
    soundfile.write(folder / "e.wav", np.zeros(24_000), 24_000)
    (folder / "e.txt").write_text("Nothing.", "utf-8")
    out = tmp_path / "out"
    prepare.main(flags(checkpoint_dir, out, folder=folder))
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert (report["clips"], report["kept"]) == (5, 1)
    assert report["names"] == dict(
        no_text=["b.wav"], silence=["e.wav"], too_fast=["c.wav"], unreadable=["d.wav"]
    )
    assert report["dropped"] == dict.fromkeys(report["names"], 1)
    assert "cannot be decoded" in report["unreadable"]["d.wav"] or (
        "Format not recognised" in report["unreadable"]["d.wav"]
    )
    assert [record.id for record in rows(out)] == ["a.wav"]


def test_marked_clips_are_kept_where_asked_in_the_lowest_tier(checkpoint_dir, tmp_path):
    long = "A text that nobody could say in so short a time, however fast he speaks."
    folder = folder_of(tmp_path / "in", a="Good morning.", b="", c=long)
    out = tmp_path / "out"
    prepare.main(flags(checkpoint_dir, out, "--keep_bad", folder=folder))
    assert [(r.id, r.tier) for r in rows(out)] == [
        ("a.wav", "medium"),
        ("c.wav", "low"),
    ]
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert (report["marked"], report["dropped"]) == (dict(too_fast=1), dict(no_text=1))
    assert report["tiers"] == dict(low=1, medium=1)


def test_a_shard_of_which_nothing_is_left_has_a_marker_alone(checkpoint_dir, tmp_path):
    texts = {name: "Good morning." * (name > "f") for name in "abcdefgh"}
    folder = folder_of(tmp_path / "in", **texts)
    out = tmp_path / "out"
    prepare.main(flags(checkpoint_dir, out, folder=folder))
    assert json.loads((out / "shard-00000.json").read_text())["rows"] == 0
    assert [p.name for p in out.glob("*.array_record")] == ["shard-00001.array_record"]
    assert len(rows(out)) == 2


def test_many_clips_and_none_readable_is_no_fault_of_theirs(checkpoint_dir, tmp_path):
    path = tmp_path / "clips.jsonl"
    lines = [json.dumps(dict(audio=f"{n}.wav", text="Hello.")) for n in range(20)]
    path.write_text("\n".join(lines))
    given = ["--manifest", str(path), "--codec", checkpoint_dir]
    with pytest.raises(SystemExit, match="none of the 20 clips.*no such file"):
        prepare.main([*given, "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob("shard*"))


def test_reports_add_up(tmp_path):
    paths = []
    for number in range(3):
        count = tally.Tally()
        for n in range(number + 1):
            clip = raw.Clip(f"{number}/{n}", "", "", language="english")
            count.keep(cleaning.Take(clip, marks=("clipping",)), "low", 1.25)
            count.drop(cleaning.Take(clip, reason="silence"), "silence")
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(dict(report=count.to_json())))
    whole = tally.total(paths)
    assert (whole["clips"], whole["kept"], whole["seconds"]) == (12, 6, 7.5)
    assert whole["dropped"] == dict(silence=6) and whole["marked"] == dict(clipping=6)
    assert whole["languages"] == dict(english=dict(clips=6, seconds=7.5))
    assert whole["names"]["silence"] == ["0/0", "1/0", "1/1", "2/0", "2/1", "2/2"]


def test_progress_tells_rate_and_time_left(capsys):
    now = [0.0]
    say = progress.Progress(100, done=40, every=10, clock=lambda: now[0])
    now[0] = 5
    say.add(10, 30.0)
    assert capsys.readouterr().err == ""
    now[0] = 10
    say.add(10, 20.0)
    expected = "60 of 100 clips (60.0%), 2.0 clips/s, 5 x real time, 0:00:20 left\n"
    assert capsys.readouterr().err == expected
