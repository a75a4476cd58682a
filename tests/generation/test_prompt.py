"""Prompts: their layouts id by id, and their embeddings against the official ones."""

import numpy as np
import parity
import pytest

from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.generation import prompt

ROLE, TEXT = [1, 2, 3], [10, 11]
PAD, BOS = 2148, 2149
THINK, NOTHINK, THINK_BOS, THINK_EOS = 2154, 2155, 2156, 2157
ENGLISH, CHINESE, SICHUAN = 2050, 2055, 2062
RYAN, ERIC = 3061, 2875
TTS_PAD, TTS_BOS, TTS_EOS = 151671, 151672, 151673
NONE = prompt.NONE
CODES = np.arange(48).reshape(3, 16)  # of a reference, 3 frames
SAID = [7, 8]


@pytest.fixture(scope="module")
def config():
    """Custom voices; speaker vectors are laid out by arguments alone."""
    return tts.Qwen3TTSConfig.from_hf(tiny.tts_config("custom_voice"))


def track(built: prompt.Prompt) -> list[tuple[int, int]]:
    """(text id, codebook 0) of every position."""
    return list(zip(built.text.tolist(), built.codes[:, 0].tolist()))


def roles(*ids: int):
    return [(i, NONE) for i in (*ids, *ROLE)]


def marks(*codes: int):
    """Thinking marks and speaker, then the last mark."""
    return [*((TTS_PAD, code) for code in codes), (TTS_BOS, PAD)]


THINKING = (THINK, THINK_BOS, ENGLISH, THINK_EOS)
AUTO = (NOTHINK, THINK_BOS, THINK_EOS)
SPOKEN = [(10, PAD), (11, PAD), (TTS_EOS, PAD), (TTS_PAD, BOS)]
FRAMES = [0, 16, 32]  # codebook 0 of CODES


@pytest.mark.parametrize(
    ("options", "expected", "trailing"),
    [
        pytest.param(
            dict(language="English", non_streaming=False),
            [*roles(), *marks(*THINKING), (10, BOS)],
            [11, TTS_EOS],
            id="streaming",
        ),
        pytest.param(
            dict(language="english", speaker="Ryan", non_streaming=True),
            [*roles(), *marks(*THINKING, RYAN), *SPOKEN],
            [TTS_PAD],
            id="speaker, all text first",
        ),
        pytest.param(
            dict(instruct=[20, 21], non_streaming=True),
            [*roles(20, 21), *marks(*AUTO), *SPOKEN],
            [TTS_PAD],
            id="instruction, language auto",
        ),
        pytest.param(
            dict(x_vector=np.ones(64), non_streaming=False),
            [*roles(), *marks(*AUTO, NONE), (10, BOS)],
            [11, TTS_EOS],
            id="speaker vector",
        ),
        pytest.param(
            dict(reference=prompt.Reference(SAID, CODES), non_streaming=False),
            [
                *roles(),
                *marks(*AUTO),
                *zip([*SAID, 10, 11], [BOS, *FRAMES]),
            ],
            [TTS_EOS],
            id="reference shorter than the text",
        ),
        pytest.param(
            dict(reference=prompt.Reference([], CODES), non_streaming=False),
            [*roles(), *marks(*AUTO), *zip([10, 11, TTS_EOS, TTS_PAD], [BOS, *FRAMES])],
            [TTS_PAD],
            id="reference longer than the text",
        ),
        pytest.param(
            dict(reference=prompt.Reference(SAID, CODES), non_streaming=True),
            [
                *roles(),
                *marks(*AUTO),
                *((i, PAD) for i in [*SAID, *TEXT, TTS_EOS]),
                *((TTS_PAD, code) for code in [BOS, *FRAMES]),
            ],
            [TTS_PAD],
            id="reference, all text first",
        ),
    ],
)
def test_layouts(config, options, expected, trailing):
    built = prompt.build(config, role=ROLE, text=TEXT, **options)
    assert track(built) == expected
    assert built.trailing.tolist() == trailing
    assert built.text_tokens == len(TEXT)
    if "reference" in options:
        np.testing.assert_array_equal(built.codes[-3:], CODES)
        built.codes[-3:, 1:] = NONE
    assert (built.codes[:, 1:] == NONE).all()
    vector_at = 6 if "x_vector" in options else NONE
    assert built.speaker_at == vector_at


@pytest.mark.parametrize(
    ("speaker", "language", "tag"),
    [
        ("eric", "Chinese", SICHUAN),
        ("ERIC", "auto", SICHUAN),
        ("eric", "English", ENGLISH),
        ("ryan", "chinese", CHINESE),
        ("ryan", "Auto", None),
        (None, "Auto", None),
    ],
)
def test_a_dialect_takes_the_place_of_chinese_and_auto(config, speaker, language, tag):
    assert prompt.language_id(config.talker, language, speaker) == tag


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(text=[]), "text without a single token"),
        (dict(language="Klingon"), "'Klingon'.*auto, chinese, english"),
        (dict(language="sichuan_dialect"), "'sichuan_dialect'"),
        (dict(speaker="nobody"), "'nobody'.*aiden, dylan"),
    ],
)
def test_refuses(config, options, words):
    options = dict(role=ROLE, text=TEXT, non_streaming=True) | options
    with pytest.raises(ValueError, match=f"(?s)got .*{words}"):
        prompt.build(config, **options)


def test_collate_pads_on_the_left(config):
    options = dict(role=ROLE, non_streaming=False)
    long = prompt.build(config, text=[10, 11, 12], instruct=[20, 21], **options)
    vector = np.arange(64, dtype=np.float32)
    short = prompt.build(config, text=[10], x_vector=vector, **options)
    batch = prompt.collate(config, [long, short], length=12, trailing=5)
    assert batch.pads.tolist() == [12 - len(long.text), 12 - len(short.text)]
    for row, built in enumerate((long, short)):
        pad = batch.pads[row]
        assert (batch.text[row, :pad] == NONE).all()
        assert (batch.codes[row, :pad] == NONE).all()
        np.testing.assert_array_equal(batch.text[row, pad:], built.text)
        np.testing.assert_array_equal(batch.codes[row, pad:], built.codes)
    assert batch.speaker_at.tolist() == [NONE, batch.pads[1] + short.speaker_at]
    np.testing.assert_array_equal(batch.speaker[1], vector)
    assert batch.trailing.tolist() == [
        [11, 12, TTS_EOS, TTS_PAD, TTS_PAD],
        [TTS_EOS, TTS_PAD, TTS_PAD, TTS_PAD, TTS_PAD],
    ]


# ------------------------------------------------------- the official package's


@parity.over("generation")
def test_ids_equal_the_official_ones(golden):
    tokenizer, arrays = golden.model.tokenizer, golden.arrays
    for name, case in golden.cases.items():
        for row, text in enumerate(case.texts):
            key = f"prompt/{name}"
            role, ids = tokenizer.role_and_text_ids(text)
            assert role + ids == arrays[f"{key}/input_ids_{row}"][:-5].tolist()
            theirs = arrays.get(f"{key}/instruct_ids_{row}")
            instruct = case.instructs[row] if case.instructs else None
            if theirs is not None:
                assert tokenizer.instruct_ids(instruct) == theirs.tolist()
            elif instruct:  # dropped by a small CustomVoice model without a word
                assert golden.model.config.variant == "custom_voice"
                assert golden.model.config.size == "0b6"
            said = case.reference_texts[row] if case.reference_texts else None
            assert (said is None) == (f"{key}/ref_ids_{row}" not in arrays)
            if said is not None:
                theirs = arrays[f"{key}/ref_ids_{row}"][3:-2].tolist()
                assert tokenizer.reference_ids(said) == theirs


@parity.over("generation")
def test_embeddings_equal_the_official_ones(golden):
    """Every layout; prompts are padded with zeros, trailing text with tts_pad."""
    for name, rows in golden.read_prompts.items():
        key = f"prompt/{name}"
        mask = golden.arrays[f"{key}/attention_mask"]
        embeds = golden.arrays[f"{key}/inputs_embeds"]
        trailing = golden.arrays[f"{key}/trailing_text_hidden"]
        assert len(rows) == len(embeds)
        for row, ours in enumerate(rows):
            pads = int((mask[row] == 0).sum())
            assert not embeds[row, :pads].any() and mask[row, pads:].all()
            parity.assert_close(
                "prompt embedding", ours.embeds, embeds[row, pads:], parity.CLOSE
            )
            fill = np.tile(ours.tts_pad[None], (trailing.shape[1], 1))
            fill[: len(ours.trailing)] = ours.trailing
            parity.assert_close("trailing text", fill, trailing[row], parity.CLOSE)
            theirs = golden.arrays[f"{key}/tts_pad_embed"][0, 0]
            parity.assert_close("tts_pad", ours.tts_pad, theirs, parity.CLOSE)


@parity.over("references")
def test_voices_equal_the_official_ones(golden):
    for name in golden.cases:
        for row, utterance in enumerate(golden.utterances(name)):
            codes = golden.arrays.get(f"prompt/{name}/reference_codes_{row}")
            assert (utterance.codec is None) == (codes is None)
            if codes is not None:
                ours = utterance.prompt.codes[-len(codes) :]
                np.testing.assert_array_equal(ours, codes)
            theirs = golden.arrays[f"prompt/{name}/speaker_embedding_{row}"]
            ours = utterance.prompt.speaker
            parity.assert_close("speaker embedding", ours, theirs, parity.CLOSE)
