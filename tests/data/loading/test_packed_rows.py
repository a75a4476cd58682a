"""Packed rows: every layout, each position, and the input of `teacher_forced`."""

import numpy as np
import parity
import pytest

from data.loading import packed_rows
from qwen3tts_jax import model as models
from qwen3tts_jax.generation import prompt

NONE = prompt.NONE
FRAMES, DIM, LENGTH = 9, 64, 96
SAID = "Yes, of course."
TEXT = "The ship left the harbour at dawn."


@pytest.fixture(scope="module")
def tts(checkpoint):
    return models.Qwen3TTSModel.from_pretrained(checkpoint("base"), dtype="float32")


@pytest.fixture(scope="module")
def custom_config(checkpoint):
    path = checkpoint("custom_voice")
    return models.Qwen3TTSModel.from_pretrained(path, dtype="float32").config


def frames(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2048, (count, 16), np.uint16)


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=DIM).astype(np.float16)


def reference(tokenizer, count: int) -> prompt.Reference:
    return prompt.Reference(tokenizer.reference_ids(SAID), frames(count, 3))


LAYOUTS = {
    "streaming": dict(non_streaming=False),
    "all text first": dict(non_streaming=True),
    "language": dict(non_streaming=False, language="english"),
    "x-vector": dict(non_streaming=True, voice=vector(1)),
    "instruction": dict(non_streaming=False, instruct=[1, 2, 3], voice=vector(1)),
    "reference": dict(non_streaming=False, reference=5, voice=vector(1)),
    "reference, text is over first": dict(non_streaming=False, reference=40),
    "reference, all text first": dict(
        non_streaming=True, reference=5, voice=vector(1), language="german"
    ),
}
SPEAKER = dict(non_streaming=True, speaker="Ryan", language="english")
over_layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def lay_out(config, tokenizer, layout: dict, *, codes=None, text=TEXT):
    layout = dict(layout)
    if "reference" in layout:
        layout["reference"] = reference(tokenizer, layout["reference"])
    role, ids = tokenizer.role_and_text_ids(text)
    codes = frames(FRAMES, 5) if codes is None else codes
    return packed_rows.example(config, codes, role=role, text=ids, **layout)


def pack_one(config, item, **shape) -> dict[str, np.ndarray]:
    shape = packed_rows.Shape(**dict(length=LENGTH) | shape)
    packed = packed_rows.pack(config, [[item]], shape)
    return {name: array[0] for name, array in packed.items()}


# ------------------------------------------------------------------ one example


def check_alone(config, item: packed_rows.Example) -> None:
    """A row with one example is its prompt, its frames, then nothing."""
    row, given = pack_one(config, item), len(item.prompt.text)
    end = given + len(item.codes)
    assert len(item) == end
    np.testing.assert_array_equal(row["text"][:given], item.prompt.text)
    np.testing.assert_array_equal(row["codes"][:given], item.prompt.codes)
    trailing = [*item.prompt.trailing, *[config.tts_pad_id] * FRAMES][:FRAMES]
    assert row["text"][given:end].tolist() == trailing
    np.testing.assert_array_equal(row["codes"][given:end], item.codes)
    expected = [NONE] * (given - 1) + item.codes[:, 0].tolist()
    assert row["labels"][:end].tolist() == [*expected, config.talker.codec_eos_id]
    assert row["segment"].tolist() == [1] * end + [0] * (LENGTH - end)
    assert row["position"].tolist() == [*range(end), *[0] * (LENGTH - end)]
    spoken = np.flatnonzero(row["speaker_at"] != NONE).tolist()
    assert spoken == ([] if item.voice is None else [item.prompt.speaker_at])
    for name in ("text", "codes", "labels"):
        assert (row[name][end:] == NONE).all()


@over_layouts
def test_a_row_is_the_prompt_and_its_frames(tts, tokenizer, layout):
    item = lay_out(tts.config, tokenizer, layout)
    assert (item.voice is not None) == ("voice" in layout)
    check_alone(tts.config, item)


def test_a_speaker_of_the_checkpoint(custom_config, tokenizer):
    item = lay_out(custom_config, tokenizer, SPEAKER)
    number = prompt.speaker_id(custom_config.talker, "ryan")
    assert (item.prompt.codes[:, 0] == number).sum() == 1
    check_alone(custom_config, item)


def test_text_beyond_the_last_frame_is_not_read(tts, tokenizer):
    item = lay_out(tts.config, tokenizer, LAYOUTS["streaming"], codes=frames(2, 1))
    assert len(item.prompt.trailing) > 2
    row, given = pack_one(tts.config, item), len(item.prompt.text)
    assert row["text"][given : given + 2].tolist() == item.prompt.trailing[:2].tolist()
    assert (row["text"][given + 2 :] == NONE).all()


@over_layouts
def test_the_input_is_that_of_teacher_forced(tts, tokenizer, layout):
    """What `losses.teacher_forced` reads of a collated prompt and its frames."""
    lm, config = tts.language_model, tts.config
    item = lay_out(config, tokenizer, layout)
    given = len(item.prompt.text)
    batch = parity.fields(
        prompt.collate(config, [item.prompt], length=given, trailing=FRAMES)
    )
    before = lm.embed_prompt(batch)
    codes = item.codes.astype(np.int32)[None]
    said = lm.embed_frame(codes) + lm.talker.embed_text(batch["trailing"])
    expected = np.concatenate([before, said], axis=1)[0]
    row = pack_one(config, item)
    made = lm.embed_tracks(row["text"][None], row["codes"].astype(np.int32)[None])[0]
    voices = row["x_vector"][np.maximum(row["speaker_at"], 0)]
    made = made + np.where((row["speaker_at"] >= 0)[:, None], voices, 0)
    # the same sums in another order: some 1e-6
    np.testing.assert_allclose(made[: len(expected)], expected, rtol=0, atol=1e-5)
    assert not np.any(made[len(expected) :])


# ----------------------------------------------------------------- many examples


def test_rows_hold_examples_side_by_side(tts, tokenizer):
    """Each as if it were alone; voices are numbered by row."""
    config = tts.config
    items = [lay_out(config, tokenizer, layout) for layout in LAYOUTS.values()]
    rows = [[items[3], items[0], items[5]], [], [items[7], items[4]]]
    shape = packed_rows.Shape(length=LENGTH, voices=3)
    packed = packed_rows.pack(config, rows, shape)
    for row, examples in enumerate(rows):
        start, voices = 0, 0
        for number, item in enumerate(examples, 1):
            alone, here = pack_one(config, item), slice(start, start + len(item))
            for name in ("text", "codes", "labels", "position"):
                np.testing.assert_array_equal(
                    packed[name][row, here], alone[name][: len(item)]
                )
            assert (packed["segment"][row, here] == number).all()
            slots = packed["speaker_at"][row, here]
            slots = slots[slots != NONE].tolist()
            assert slots == ([voices] if item.voice is not None else [])
            if slots:
                vector = packed["x_vector"][row, voices]
                np.testing.assert_array_equal(vector, item.voice.astype(np.float32))
            voices, start = voices + len(slots), start + len(item)
        assert (packed["segment"][row, start:] == 0).all()
        assert not packed["x_vector"][row, voices:].any()


def test_shapes_and_dtypes(tts, tokenizer):
    item = lay_out(tts.config, tokenizer, LAYOUTS["x-vector"])
    shape = packed_rows.Shape(length=LENGTH, voices=2)
    packed = packed_rows.pack(tts.config, [[item], []], shape)
    assert {name: (x.dtype.name, x.shape) for name, x in packed.items()} == dict(
        text=("int32", (2, LENGTH)),
        codes=("int16", (2, LENGTH, 16)),
        labels=("int16", (2, LENGTH)),
        segment=("int32", (2, LENGTH)),
        position=("int32", (2, LENGTH)),
        speaker_at=("int16", (2, LENGTH)),
        x_vector=("float32", (2, 2, DIM)),
    )


def test_mels_are_cut_and_padded(tts, tokenizer):
    """The voice takes the place of an x-vector, which is made from it later."""
    mels = [np.full((count, 128), count, np.float16) for count in (7, 30)]
    items = [
        lay_out(tts.config, tokenizer, dict(non_streaming=False, voice=mel))
        for mel in mels
    ]
    shape = packed_rows.Shape(length=LENGTH, voices=3, mel_frames=20)
    packed = packed_rows.pack(tts.config, [items], shape)
    assert packed["mel"].shape == (1, 3, 20, 128)
    assert packed["mel"].dtype == np.float16
    assert packed["mel_length"].tolist() == [[7, 20, 5]]
    assert packed["mel"][0, :, :, 0].sum(axis=1).tolist() == [7 * 7, 20 * 30, 0]
    assert "x_vector" not in packed
    plain = lay_out(tts.config, tokenizer, LAYOUTS["x-vector"])
    assert items[0].prompt.speaker_at == plain.prompt.speaker_at


# --------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (dict(length=40), "2 examples of .* positions, expected at most the 40"),
        (dict(length=LENGTH), "more than 1 voices"),
        (dict(length=LENGTH, voices=2, mel_frames=20), r"voice of shape \(64,\)"),
    ],
)
def test_refuses_what_does_not_fit(tts, tokenizer, shape, words):
    item = lay_out(tts.config, tokenizer, LAYOUTS["x-vector"])
    with pytest.raises(ValueError, match=f"got .*{words}"):
        packed_rows.pack(tts.config, [[item, item]], packed_rows.Shape(**shape))


def test_refuses_a_mel_too_short_for_the_speaker_encoder(tts, tokenizer):
    layout = dict(non_streaming=True, voice=np.zeros((4, 128), np.float16))
    item = lay_out(tts.config, tokenizer, layout)
    with pytest.raises(ValueError, match=r"voice of shape \(4, 128\)"):
        pack_one(tts.config, item, mel_frames=20)


@pytest.mark.parametrize("bad", [dict(length=0), dict(length=9, mel_frames=4)])
def test_refuses_a_shape(bad):
    with pytest.raises(ValueError, match="got Shape"):
        packed_rows.Shape(**bad)


# ----------------------------------------------------------------- back to text


def test_describe_tells_what_a_row_says(tts, tokenizer):
    config = tts.config
    items = [
        lay_out(config, tokenizer, LAYOUTS["reference, all text first"]),
        lay_out(config, tokenizer, LAYOUTS["streaming"], text="Good morning to you."),
    ]
    packed = packed_rows.pack(config, [[], items], packed_rows.Shape(length=LENGTH))
    told = packed_rows.describe(config, tokenizer, packed, 1)
    assert told.splitlines() == [
        "example 1: 38 positions",
        r"      3 -                  '<|im_start|>assistant\n'",
        "      1 think",
        "      1 think_bos",
        "      1 language german",
        "      1 think_eos",
        "      1 voice 0",
        "     15 pad                '<tts_text_bos>Yes, of course.The ship left the "
        "harbour at dawn.<tts_text_eod>'",
        "      1 bos",
        "      5 read frames",
        "      9 learned frames",
        "      1 learned end",
        "example 2: 17 positions",
        r"      3 -                  '<|im_start|>assistant\n'",
        "      1 nothink",
        "      1 think_bos",
        "      1 think_eos",
        "      1 pad                '<tts_text_bos>'",
        "      1 bos                'Good'",
        "      9 learned frames     ' morning to you.<tts_text_eod>'",
        "      1 learned end",
    ]
    assert packed_rows.describe(config, tokenizer, packed, 0) == ""
