"""eval.run with judges whose answers are known: tables, JSON, and what it refuses."""

import pathlib
import re
import sys
import types

import judging
import numpy as np
import pytest

from data.preparation import whisper_files
from eval import codec, test_sets
from eval.baselines import griffin_lim
from qwen3tts_jax import metrics
from qwen3tts_jax.audio import io as audio_io


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> pathlib.Path:
    return judging.write_clips(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def panel(clips):
    return judging.Panel(test_sets.read_clips(str(clips)))


@pytest.fixture(scope="module")
def base(checkpoint):
    return checkpoint("base")


# ---------------------------------------------------------------- codec, recordings


@pytest.fixture(scope="module")
def codec_run(panel, clips, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("codec")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "COUNTS", (16, 1))
        patch.setattr(griffin_lim, "ITERATIONS", 2)
        arguments = ("--clips", clips, "--baselines", "griffin_lim", "--limit", 2)
        found = judging.evaluate(panel, out, "codec", "--model", base, *arguments)
    return out, found


def test_codec_table_holds_what_the_judges_said(codec_run):
    out, found = codec_run
    rows = {row["system"]: row for row in found["all"]}
    assert list(rows) == [
        "recordings",
        "codec, 16 codebooks",
        "codec, 1 codebook",
        "Griffin-Lim, 80 mels",
    ]
    chosen = [clip["id"] for clip in found["clips"]]
    assert len(chosen) == 2 and {c["language"] for c in found["clips"]} == {"en", "it"}
    total = judging.words(chosen)
    assert rows["recordings"]["wer"]["pooled"] == 0
    for name in list(rows)[1:]:
        row = rows[name]
        assert row["n"] == row["wer"]["n"] == 2
        assert (row["wer"]["deletions"], row["wer"]["length"]) == (2, total)
        assert row["wer"]["pooled"] == pytest.approx(2 / total)
        assert row["wer_increase"]["value"] == pytest.approx(2 / total)
        assert row["wer"]["low"] <= row["wer"]["pooled"] <= row["wer"]["high"]
        assert row["ovrl"] == dict(value=3.0, error=0.0, n=2)
        assert -1 <= row["cosine"]["value"] < 1 and row["mel"]["value"] > 0
    assert "stoi" not in rows["recordings"]
    assert rows["codec, 16 codebooks"]["bits_per_second"]["value"] == 2200
    assert rows["codec, 1 codebook"]["bits_per_second"]["value"] == 137.5
    mels = [rows[name]["mel"]["value"] for name in list(rows)[1:]]
    assert mels[2] < mels[0]  # a random codec is worse than phases made up
    text = (out / "codec.md").read_text()
    assert f"{100 * 2 / total:.1f} [" in text and "| codec, 1 codebook | 2 |" in text


def test_codec_report_has_groups_codebooks_sounds_and_what_is_missing(codec_run):
    out, found = codec_run
    assert {row["group"] for row in found["by_language"]} == {"en", "it"}
    assert {row["group"] for row in found["by_source"]} == {"asterisk"}
    used = found["codebooks"]
    seconds = sum(s["values"]["seconds"] for s in found["scores"][::4])
    assert len(used["used"]) == 16 and used["frames"] >= 12.5 * seconds
    assert 0 < max(used["used"]) <= used["frames"] / 2048
    lacking = found["not_measured"].get("pesq", [])
    row = next(r for r in found["all"] if r["system"] == "codec, 16 codebooks")
    assert row.get("pesq", dict(n=0))["n"] == 2 - len(lacking) < 2
    assert (
        f"pesq cannot be measured on {len(lacking)}" in (out / "codec.md").read_text()
    )
    assert len(list((out / "samples").glob("*.wav"))) == 2 * 4
    assert len(found["scores"]) == 2 * 4
    assert found["asked"]["seed"] == 0 and found["environment"]["jax"]
    assert found["judges"] == judging.Panel.facts


def test_kept_sounds_are_what_the_codec_decodes(codec_run, base):
    out, found = codec_run
    clip = found["clips"][0]
    tokenizer = codec.load(str(base))
    wave = audio_io.load(clip["audio"])
    codes = tokenizer.encode((wave, audio_io.SAMPLE_RATE)).audio_codes[0]
    [whole], _ = tokenizer.decode([codes])
    kept = [
        audio_io.load(
            str(out / "samples" / f"{clip['id'].replace('-', '_')}--{name}.wav")
        )
        for name in ("codec_16_codebooks", "codec_1_codebook")
    ]
    assert all(len(one) == len(wave) for one in kept)
    np.testing.assert_allclose(kept[0], whole[: len(wave)], atol=2**-14)
    assert np.abs(kept[1] - kept[0]).max() > 1e-2
    # one codebook: the semantic stack, and nothing from the acoustic one
    quantizer, first = tokenizer.decoder.quantizer, codes[None, :, :1]
    np.testing.assert_array_equal(
        quantizer.decode(first), quantizer.semantic.decode(first)
    )


def test_recordings_need_no_model(panel, clips, tmp_path):
    found = judging.evaluate(
        panel, tmp_path, "recordings", "--clips", clips, "--baselines", "none"
    )
    [row] = found["all"]
    assert (row["system"], row["n"]) == ("recordings", 4) and row["wer"]["pooled"] == 0
    assert "WER increase" not in (tmp_path / "recordings.md").read_text()


# ---------------------------------------------------------------------- what is refused


BAD_CLIPS = [
    (dict(audio="gone.flac", text="x", language="en"), "1 of 1 recordings .*gone.flac"),
    (dict(audio="a.flac", text="", language="en"), "clips without text .*a.flac.*add"),
    (dict(audio="a.flac", text="x"), "clips without language"),
    (dict(text="x"), "audio is None, expected text"),
]


@pytest.mark.parametrize("line, says", BAD_CLIPS)
def test_bad_clips_are_refused(panel, capsys, tmp_path, line, says):
    listed = judging.write(tmp_path / "bad.jsonl", [line])
    said = judging.refusal(
        panel, capsys, "recordings", "--clips", listed, "--out", tmp_path
    )
    assert re.search(says, said), said


def test_a_missing_package_says_how_to_get_it(panel, capsys, tmp_path, clips):
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "eval.baselines.opus", raising=False)
        patch.setitem(sys.modules, "av", None)
        said = judging.refusal(
            panel, capsys, "recordings", "--clips", clips, "--out", tmp_path
        )
    assert "eval.baselines.opus" in said and "pip install '.[eval]'" in said


# --------------------------------------------------------------------------- its parts


def test_a_limit_takes_from_every_source_and_language():
    def clip(i, source, language):
        return test_sets.Clip(str(i), "", "x", language, "", source)

    kinds = [("a", "en")] * 50 + [("a", "it")] * 3 + [("b", "en")] * 2
    listed = [clip(i, *kind) for i, kind in enumerate(kinds)]
    some = test_sets.spread(listed, 7, seed=0)
    counts = [sum((c.source, c.language) == kind for c in some) for kind in kinds]
    assert (counts[0], counts[50], counts[53]) == (3, 2, 2)
    assert [int(c.id) for c in some] == sorted(int(c.id) for c in some)
    assert test_sets.spread(listed, 7, seed=1) != some
    assert test_sets.spread(listed, 99, seed=0) == listed


def test_mel_inversion_keeps_the_mel(monkeypatch):
    wave = audio_io.load(str(judging.CLIPS / "en" / "confbridge-invalid.flac"))[:24000]
    again = griffin_lim.istft(griffin_lim.stft(wave), len(wave))
    np.testing.assert_allclose(again, wave, atol=1e-6)
    monkeypatch.setattr(griffin_lim, "ITERATIONS", 10)
    made = griffin_lim.reconstruct(wave)
    assert made.shape == wave.shape and made.dtype == np.float32
    noise = np.random.default_rng(0).normal(0, wave.std(), len(wave))
    near, far = (metrics.mel_distance(wave, w) for w in (made, noise))
    assert 0 < near < 0.4 < 1 < far


def test_opus_has_the_rate_and_the_length():
    pytest.importorskip("av")
    from eval.baselines import opus

    wave = audio_io.load(str(judging.CLIPS / "en" / "confbridge-invalid.flac"))
    made, bits = opus.reconstruct(wave)
    assert made.shape == wave.shape and made.dtype == np.float32
    assert bits * 24000 / len(wave) == pytest.approx(6000, rel=0.02)
    shift = np.correlate(made[2000:40000], wave[2400:39600]).argmax() - 400
    assert abs(shift) < 24  # a millisecond


def test_whisper_is_put_together_and_checked(tmp_path, monkeypatch):
    names = (*whisper_files.PARTS, *whisper_files.SIDE_FILES)
    for name in names:
        (tmp_path / name).write_bytes(name.encode())

    def files(package):
        return [
            types.SimpleNamespace(name=name, locate=lambda name=name: tmp_path / name)
            for name in names
        ]

    monkeypatch.setattr(whisper_files.importlib.metadata, "files", files)
    with pytest.raises(ValueError, match="sha256 .* expected d01c3014"):
        whisper_files.assemble(tmp_path / "out")
    made = (tmp_path / "out" / "model.bin").read_bytes()
    assert made == b"model.bin.part1model.bin.part2"
    digest = whisper_files.sha256(tmp_path / "out" / "model.bin")
    monkeypatch.setattr(whisper_files, "SHA256", digest)
    assert whisper_files.assemble(tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "config.json").read_bytes() == b"config.json"
    monkeypatch.setattr(whisper_files.importlib.metadata, "files", lambda name: [])
    with pytest.raises(FileNotFoundError, match="model.bin.part1.*--asr"):
        whisper_files.assemble(tmp_path / "other")
