"""Drawn layouts: their lengths are those of real prompts, their shares as asked for."""

import collections
import itertools

import numpy as np
import pytest

from data.format import lengths
from data.mixture import hashing, prompt_layouts
from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.generation import prompt

WORDS = "The ship left harbour at dawn and nobody on the pier waved goodbye".split()
LANGUAGES = ("english", "", "dutch", "chinese")  # no tag for the two in the middle
DIM = 64


def ring(*voices: list[int], rows: int) -> np.ndarray:
    mate = np.full(rows, -1, np.int32)
    for members in voices:
        mate[members] = np.roll(members, -1)
    return mate


def make_columns(rows: int, *, mate=None, **changes) -> lengths.Columns:
    rng = np.random.default_rng(0)
    values = dict(
        frames=rng.integers(1, 60, rows).astype(np.uint16),
        text=rng.integers(1, 30, rows).astype(np.uint16),
        instruct=np.where(np.arange(rows) % 3, 9, 0).astype(np.uint16),
        language=rng.integers(0, len(LANGUAGES), rows).astype(np.uint8),
        tier=np.zeros(rows, np.uint8),
        mate=np.roll(np.arange(rows, dtype=np.int32), -1) if mate is None else mate,
    )
    return lengths.Columns(**values | changes)


def draw(columns, *, key=0, rows=None, **probabilities) -> prompt_layouts.Drawn:
    choice = prompt_layouts.Layouts(**probabilities)
    tagged = choice.tagged(LANGUAGES)
    return prompt_layouts.draw(choice, columns, key=key, tagged=tagged, rows=rows)


# ------------------------------------------------------------------------ lengths


class Spoken:
    """Utterances with real ids, and the columns that an index has of them."""

    def __init__(self, tokenizer, rows: int = 64):
        rng = np.random.default_rng(1)
        self.said = [
            " ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(rows)
        ]
        self.said[3] = "\nStarts on a new line"
        self.told = ["Whisper. " * (row % 3) for row in range(rows)]
        self.codes = [np.zeros((n, 16), int) for n in rng.integers(1, 40, rows)]
        self.tokenizer = tokenizer
        ids = [tokenizer.role_and_text_ids(text)[1] for text in self.said]
        told = [len(tokenizer.instruct_ids(text)) if text else 0 for text in self.told]
        self.columns = make_columns(
            rows,
            frames=np.asarray([len(c) for c in self.codes], np.uint16),
            text=np.asarray([len(i) for i in ids], np.uint16),
            instruct=np.asarray(told, np.uint16),
        )

    def build(self, config, drawn: prompt_layouts.Drawn, at: int, *, by_id: bool):
        row, mate = int(drawn.row[at]), int(drawn.mate[at])
        role, text = self.tokenizer.role_and_text_ids(self.said[row])
        language = LANGUAGES[self.columns.language[row]]
        voiced, reference = drawn.voiced[at], None
        if drawn.icl[at]:
            said = self.tokenizer.reference_ids(self.said[mate])
            reference = prompt.Reference(said, self.codes[mate])
        instruct = self.tokenizer.instruct_ids(self.told[row])
        return prompt.build(
            config,
            role=role,
            text=text,
            instruct=instruct if drawn.instructed[at] else None,
            language=language if drawn.tagged[at] else prompt.AUTO,
            speaker="Ryan" if voiced and by_id else None,
            x_vector=np.zeros(DIM) if voiced and not by_id else None,
            reference=reference,
            non_streaming=not drawn.streaming[at],
        )


@pytest.fixture(scope="module")
def spoken(tokenizer):
    return Spoken(tokenizer)


@pytest.mark.parametrize("voice", prompt_layouts.VOICES)
def test_positions_are_those_of_the_prompt(spoken, voice):
    """Every mixture of choices comes up, and the prompt is as long as counted."""
    variant = "custom_voice" if voice == "id" else "base"
    config = tts.Qwen3TTSConfig.from_hf(tiny.tts_config(variant))
    choices = dict(drop_language=0.5, instruct=0.5, no_voice=0.5, reference=0.5)
    seen = collections.Counter()
    for key in range(6):
        drawn = draw(spoken.columns, key=key, voice=voice, **choices)
        expected = prompt_layouts.positions(drawn, spoken.columns)
        for at in range(len(drawn.row)):
            built = spoken.build(config, drawn, at, by_id=voice == "id")
            frames = len(spoken.codes[drawn.row[at]])
            assert len(built.text) + frames == expected[at]
            if drawn.streaming[at]:  # the text, its end mark aside, meets a frame
                assert len(built.trailing) - 1 <= frames
            kind = (drawn.streaming, drawn.tagged, drawn.instructed, drawn.icl)
            seen[tuple(bool(k[at]) for k in (*kind, drawn.voiced))] += 1
    voiced = (False,) if voice == "none" else (False, True)
    every = itertools.product(*[(False, True)] * 4, voiced)
    assert set(seen) == set(every)


def test_long_text_comes_first():
    """One id more than the frames and codec_bos can carry, and it no longer trails."""
    frames, text = np.uint16([5, 5, 5]), np.uint16([5, 6, 7])
    columns = make_columns(3, frames=frames, text=text)
    drawn = draw(columns, streaming=1, reference=0)
    assert drawn.streaming.tolist() == [True, True, False]


def test_a_reference_carries_text_too():
    """Reference text and text together stand on both recordings' frames."""
    frames, text = np.uint16([5, 20]), np.uint16([9, 3])
    columns = make_columns(2, frames=frames, text=text)
    assert draw(columns, streaming=1, reference=1).streaming.tolist() == [True, True]
    assert draw(columns, streaming=1, reference=0).streaming.tolist() == [False, True]


# -------------------------------------------------------------------------- draws


def test_shares_are_the_probabilities():
    rows = 1 << 16
    columns = make_columns(
        rows, text=np.ones(rows, np.uint16), language=np.zeros(rows, np.uint8)
    )
    drawn = draw(
        columns,
        streaming=0.7,
        drop_language=0.2,
        instruct=0.6,
        no_voice=0.1,
        reference=0.25,
    )
    told = columns.instruct > 0
    assert np.mean(drawn.streaming) == pytest.approx(0.7, abs=0.01)
    assert np.mean(drawn.tagged) == pytest.approx(0.8, abs=0.01)
    assert np.mean(drawn.instructed[told]) == pytest.approx(0.6, abs=0.01)
    assert not drawn.instructed[~told].any()
    assert np.mean(drawn.voiced) == pytest.approx(0.9, abs=0.01)
    assert np.mean(drawn.icl) == pytest.approx(0.25, abs=0.01)
    bits = np.stack([drawn.streaming, drawn.tagged, drawn.voiced, drawn.icl])
    correlation = np.corrcoef(bits) - np.eye(4)
    assert np.abs(correlation).max() < 0.02  # independent


@pytest.mark.parametrize("probability", [0, 1])
def test_never_and_always(probability):
    rows = 1 << 16
    columns = make_columns(rows, text=np.ones(rows, np.uint16))
    drawn = draw(
        columns,
        streaming=probability,
        no_voice=probability,
        reference=probability,
        instruct=probability,
    )
    assert (drawn.streaming == probability).all()
    assert (drawn.voiced == 1 - probability).all()
    assert (drawn.icl == probability).all()
    assert (drawn.instructed == (columns.instruct > 0) * probability).all()


def test_only_languages_with_a_tag_are_tagged():
    columns = make_columns(200)
    drawn = draw(columns, drop_language=0)
    known = np.isin(columns.language, [0, 3])
    np.testing.assert_array_equal(drawn.tagged, known)
    added = draw(columns, drop_language=0, tags=("dutch",))
    np.testing.assert_array_equal(added.tagged, columns.language == 2)


def test_a_draw_depends_on_its_own_row():
    columns = make_columns(300)
    every, some = draw(columns), np.asarray([7, 0, 299])
    chosen = draw(columns, rows=some)
    for name, values in vars(chosen).items():
        np.testing.assert_array_equal(values, getattr(every, name)[some], name)


def test_keys_tell_seed_stage_round_and_shard_apart():
    base = (1, "s1", 0, 0)
    others = [(2, "s1", 0, 0), (1, "s2", 0, 0), (1, "s1", 1, 0), (1, "s1", 0, 1)]
    columns = make_columns(300)
    first = draw(columns, key=prompt_layouts.shard_key(*base)).streaming
    for other in others:
        drawn = draw(columns, key=prompt_layouts.shard_key(*other)).streaming
        assert 0.3 < np.mean(drawn != first) < 0.7


# -------------------------------------------------------------------------- mates


def test_mates_are_other_rows_of_the_voice():
    voices = [0, 5], [1, 2, 3], [4, 6, 7, 8, 9]
    columns = make_columns(11, mate=ring(*voices, rows=11))
    found = collections.defaultdict(set)
    for key in range(64):
        drawn = draw(columns, key=key)
        for row, mate in zip(drawn.row.tolist(), drawn.mate.tolist()):
            found[row].add(mate)
    assert found.pop(10) == {-1}  # a voice that is alone
    for row, mates in found.items():
        members = next(voice for voice in voices if row in voice)
        place = members.index(row)
        ahead = {members[(place + hop) % len(members)] for hop in (1, 2, 3)}
        assert mates == ahead - {row}


def test_a_lone_voice_has_no_reference_but_is_heard():
    columns = make_columns(50, mate=ring(rows=50))
    drawn = draw(columns, reference=1)
    assert not drawn.icl.any() and drawn.voiced.all() and (drawn.mate == -1).all()


def test_references_are_short_and_mates_are_named_where_they_are_used():
    columns = make_columns(500)
    drawn = draw(columns, reference=1, reference_frames=20, no_voice=0.5)
    short = columns.frames[drawn.mate] <= 20
    assert drawn.icl.any() and short[drawn.icl].all()
    np.testing.assert_array_equal(drawn.mate >= 0, drawn.icl | drawn.voiced)
    by_id = draw(columns, reference=1, reference_frames=20, voice="id")
    np.testing.assert_array_equal(by_id.mate >= 0, by_id.icl)


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (dict(streaming=1.5), "streaming 1.5, expected a probability"),
        (dict(no_voice=-0.1), "no_voice -0.1, expected a probability"),
        (dict(voice="loud"), "voice 'loud', expected one of x_vector, id, none"),
        (dict(reference_frames=0), "reference=0 turns references off"),
    ],
)
def test_bad_choices_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        prompt_layouts.Layouts(**choice)


# ---------------------------------------------------------------------------- keys


def test_bits_are_those_of_splitmix64():
    """The first outputs for seed 1234567, as in the test vectors of its ports.

    Source: rosettacode.org, "Pseudo-random numbers/Splitmix64".
    """
    made = hashing.bits(1234567, np.arange(1, 4))
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert made.tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 1 << 16])
def test_permutations_have_everything_once(count):
    made = hashing.permutation(5, count)
    assert sorted(made.tolist()) == list(range(count))
    if count >= 1000:
        moved = np.abs(made - np.arange(count)).mean()
        assert moved == pytest.approx(count / 3, rel=0.05)
        assert (made != hashing.permutation(6, count)).mean() > 0.99


def test_keys_depend_on_every_part_and_their_order():
    made = {hashing.key(*parts) for parts in itertools.permutations(("a", 1, 2))}
    assert len(made | {hashing.key("a", 1), hashing.key("a", 1, 2, 0)}) == 8
    assert hashing.key("a", 1) == hashing.key("a", 1)
