"""The small family: its sizes and ids, named voices, infer.py without --model."""

import functools
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import text_files

import infer
from data.small_family import vocabulary
from qwen3tts_jax import model, speech_tokenizer
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.checkpoints import random_weights as random_checkpoint
from qwen3tts_jax.checkpoints import weights as hf
from qwen3tts_jax.config import released, small, tiny, tokenizer_12hz
from qwen3tts_jax.config import tts as configs
from qwen3tts_jax.generation import sampling, voice_clone
from qwen3tts_jax.nn import tree
from qwen3tts_jax.text import tokenizer as text

MILLION = 10**6
VOCABULARY = 300  # ids: 256 bytes, 6 added tokens, "assistant", a few merges
FRAMES = 3


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory) -> pathlib.Path:
    """A reduced vocabulary, as data/small_family makes it."""
    out = tmp_path_factory.mktemp("vocabulary") / "v"
    said = [entry["text"] for entry in text_files.GOLDEN["texts"]]
    vocabulary.write(out, {"many": said}, size=VOCABULARY)
    return out


def tts_config(text_dir, variant: str = "base") -> dict:
    return random_checkpoint.tts_config("small", variant, text_dir)


def vectors() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(64, np.float32) for name in ("heart", "kumo")}


@pytest.fixture(scope="module")
def family(checkpoint, tmp_path_factory) -> pathlib.Path:
    """A Base checkpoint with two voices; a tiny one, whose programs other tests use."""
    out = tmp_path_factory.mktemp("family") / "family"
    shutil.copytree(checkpoint("base"), out)
    voice_clone.write_voices(out, voice_clone.Voices(vectors(), "kumo"))
    return out


# ------------------------------------------------------------------ sizes and ids


def sizes(parts: dict) -> tuple[dict[str, int], int]:
    """(part -> parameters, bytes in a file of bfloat16 with float32 codebooks)."""
    counts, size = {}, 0
    for name, (module, _) in parts.items():
        flat, _ = jax.tree_util.tree_flatten_with_path(module)
        counts[name] = sum(leaf.size for _, leaf in flat)
        for path, leaf in flat:
            kept = tree.leaf_path(path).rpartition(".")[2] in hf.KEEP_FLOAT32
            size += leaf.size * (4 if kept else 2)
    return counts, size


def test_the_family_is_small():
    values = small.tts_config("base", text_vocab_size=2048, text_ids=IDS)
    speaking, size = sizes(model.model_parts(configs.Qwen3TTSConfig.from_hf(values)))
    assert sum(speaking.values()) < 20.5 * MILLION
    codec = tokenizer_12hz.Tokenizer12HzConfig.from_hf(small.tokenizer_config())
    coding, more = sizes(speech_tokenizer.tokenizer_parts(codec))
    assert coding["decoder"] <= 8 * MILLION
    assert sum(coding.values()) <= 9.5 * MILLION
    assert size + more < 59.5 * MILLION  # the rest of 60 MB: tokenizer, voices, card


IDS = dict.fromkeys(text._CONFIG_TOKENS, 7)


@pytest.mark.parametrize("variant", configs.VARIANTS)
def test_ids_are_the_released_ones_less_1024(text_dir, variant):
    here = configs.Qwen3TTSConfig.from_hf(tts_config(text_dir, variant))
    there = configs.Qwen3TTSConfig.from_hf(released.tts_config("0.6B", variant))
    marks = [name for name in vars(here.talker) if name.startswith("codec_")]
    assert len(marks) == 7
    for name in marks:
        moved = getattr(here.talker, name), getattr(there.talker, name)
        assert moved[1] - moved[0] == 1024, name
    for table in ("language_ids", "speaker_ids"):
        theirs = dict(getattr(there.talker, table))
        for name, number in getattr(here.talker, table):
            assert theirs[name] - number == 1024
    assert set(small.LANGUAGES) <= dict(here.talker.language_ids).keys()
    assert here.talker.vocab_size == 2048
    assert here.code_predictor.vocab_size == small.CODES == 1024


def test_codes_and_the_end_are_all_that_can_be_drawn(text_dir):
    talker = configs.Qwen3TTSConfig.from_hf(tts_config(text_dir)).talker
    scores = np.zeros((1, talker.vocab_size), np.float32)
    late = np.int32([sampling.MIN_NEW_TOKENS])
    kept = sampling.suppress(scores, late, talker.codec_eos_id)[0] == 0
    assert np.flatnonzero(kept).tolist() == [*range(1024), talker.codec_eos_id]


def test_text_ids_are_those_of_the_vocabulary(text_dir):
    values = tts_config(text_dir)
    tokenizer = text.TextTokenizer.from_directory(text_dir)
    assert values["talker_config"]["text_vocab_size"] == tokenizer.size == VOCABULARY
    for field, token in text._CONFIG_TOKENS.items():
        assert tokenizer.decode([values[field]]) == token


def test_codec_halves_fit_together():
    codec = tokenizer_12hz.Tokenizer12HzConfig.from_hf(small.tokenizer_config())
    assert codec.quantizers == codec.encoder.quantizers == codec.decoder.quantizers
    assert codec.encoder.codebook_size == codec.decoder.codebook_size == small.CODES
    assert codec.decoder.codebook_dim == 2 * codec.encoder.codebook_dim
    assert small.ENCODER["upsample_groups"] == small.ENCODER["hidden_size"]


def test_small_needs_a_text_tokenizer(tmp_path, monkeypatch, capsys):
    arguments = ["random_checkpoint", "--size", "small", "--out", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        random_checkpoint.main()
    assert "data.small_family.vocabulary" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ named voices


@pytest.fixture
def run(family, tmp_path, monkeypatch, capsys):
    """run(*arguments) of infer.py where the package holds the family -> codes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "FAMILY", family)
    load = functools.cache(model.Qwen3TTSModel.from_pretrained)
    monkeypatch.setattr(model.Qwen3TTSModel, "from_pretrained", load)

    def run(*arguments) -> np.ndarray:
        more = ("--text", "Hi.", "--seed", 1, "--max_frames", FRAMES, "--codes_out")
        infer.main([*map(str, arguments), *map(str, more), "codes.npy"])
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last["model"] == "0.6B Base"
        assert (tmp_path / "out.wav").stat().st_size == 44 + 2 * 1920 * last["frames"]
        return np.load("codes.npy")

    return run


def test_the_packaged_family_speaks(run, family):
    codes = run()
    assert codes.shape == (FRAMES, 16)
    kumo = run("--model", family, "--speaker", "Kumo")  # the default voice
    np.testing.assert_array_equal(kumo, codes)
    assert (run("--speaker", "heart") != codes).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--speaker", "ryan"], ["'ryan'", "heart, kumo"]),
        (["--speaker", "heart", "--ref_audio", "a.wav"], ["drop one"]),
        (["--ref_text", "Oh."], ["no ref_audio"]),
        (["--x_vector_only"], ["no ref_audio"]),
        (["--ref_audio", "", "--x_vector_only"], ["no ref_audio"]),
    ],
)
def test_what_the_packaged_family_refuses(run, capsys, arguments, words):
    with pytest.raises(SystemExit):
        run(*arguments)
    line = capsys.readouterr().err
    assert all(word in line for word in words), line


def test_a_base_model_without_voices_has_none(run, checkpoint, capsys):
    for arguments in (["--speaker", "heart"], []):
        with pytest.raises(SystemExit):
            run("--model", checkpoint("base"), *arguments)
    first, second = capsys.readouterr().err.splitlines()
    assert "'heart', expected one of none" in first
    assert "no ref_audio" in second


def test_without_a_packaged_family(run, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "FAMILY", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="none came with this package"):
        model.Qwen3TTSModel.from_pretrained()
    with pytest.raises(SystemExit):
        run()


def test_voices_in_python(family, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "FAMILY", family)
    speaking = model.Qwen3TTSModel.from_pretrained()
    assert speaking.get_supported_speakers() == ["heart", "kumo"]
    spoken = speaking.voice(speaker="Heart", language="english").layout["x_vector"]
    np.testing.assert_array_equal(spoken, vectors()["heart"])
    [said] = speaking.voice_clone_utterances("Hi.")
    np.testing.assert_array_equal(said.prompt.speaker, vectors()["kumo"])
    heart = speaking.voices.item("heart")
    [said] = speaking.voice_clone_utterances("Hi.", voice_clone_prompt=heart)
    np.testing.assert_array_equal(said.prompt.speaker, vectors()["heart"])
    with pytest.raises(ValueError, match="cannot use"):
        speaking.voice(speaker="kumo", voice_clone_prompt=heart)
    speaking.save_pretrained(tmp_path / "again")
    again = voice_clone.read_voices(tmp_path / "again", speaking.config)
    assert again.default == "kumo" and again.vectors.keys() == vectors().keys()


@pytest.mark.parametrize(
    ("values", "default"),
    [
        ({"a": np.zeros(63, np.float32)}, "a"),
        ({"a": np.full(64, np.nan, np.float32)}, "a"),
        ({"a": np.zeros(64, np.float32)}, "b"),
        (None, ""),
    ],
    ids=["width", "nan", "default", "damaged"],
)
def test_voices_that_do_not_fit(tmp_path, values, default):
    config = configs.Qwen3TTSConfig.from_hf(tiny.tts_config("base"))
    path = tmp_path / hub.VOICES
    if values is None:
        path.write_bytes(b"no tensors")
    else:
        safetensors.numpy.save_file(values, path, {voice_clone.DEFAULT: default})
    with pytest.raises(ValueError, match=r"voices\.safetensors"):
        voice_clone.read_voices(tmp_path, config)


def test_voices_are_chosen_by_name():
    some = vectors()
    chosen = voice_clone.Voices.chosen(some, ["Sky=heart", "kumo"])
    assert list(chosen.vectors) == ["sky", "kumo"] and chosen.default == "sky"
    assert chosen.vectors["sky"] is some["heart"]
    for wrong in (["x=nobody"], ["kumo", "KUMO=heart"]):
        with pytest.raises(ValueError, match="heart, kumo"):
            voice_clone.Voices.chosen(some, wrong)
