"""What a training example looks like: its prompt layout, drawn by hashing, and length.

A record can be shown in many ways: its text before the frames or trailing them, with
its language tag or without, after another utterance of its voice or not.  Which way is
drawn from (seed, stage, round, shard, row) alone, so that every process agrees, and the
length of the packed example is known without reading the record.

The bits are those of `hashing.fields`: each choice takes 16 of them, so that
probabilities hold to 1/65536.  Source of the layouts: `qwen3tts_jax.generation.prompt`.
"""

import dataclasses

import numpy as np

from data.mixture import hashing
from qwen3tts_jax.config import released

VOICES = ("x_vector", "id", "none")
_HOPS = 3  # the voice's next, second or third utterance
_MARKS = 3 + 3 + 1  # role; think marks without a language; tts_bos


@dataclasses.dataclass(frozen=True)
class Layouts:
    """How often each layout is shown; probabilities are per example.

    The paper names none of these numbers (its "probabilistically activated thinking
    pattern" is the language tag); they are this project's choice.

    Attributes:
        streaming: the text trails the frames, one id each; else it all comes first.
        drop_language: the language tag is left out (language "Auto").
        instruct: an instruction that the record has is used.
        voice: "x_vector": a vector of another utterance of the voice, or of the
            utterance itself where the voice has no other; "id": the speaker's id, as
            in custom-voice checkpoints; "none".
        no_voice: the voice is left out all the same.
        reference: another utterance of the voice, its text and frames, comes before
            (in-context cloning); only where the voice has one that is short enough.
        reference_frames: the longest such utterance; a longer one is not used, for a
            cut one would no longer fit its text.
        tags: the languages that have a tag; records of others are shown without.
    """

    streaming: float = 0.5
    drop_language: float = 0.1
    instruct: float = 1.0
    voice: str = "x_vector"
    no_voice: float = 0.0
    reference: float = 0.3
    reference_frames: int = 250
    tags: tuple[str, ...] = tuple(released.LANGUAGES)

    def __post_init__(self):
        for name in ("streaming", "drop_language", "instruct", "no_voice", "reference"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(
                    f"got {name} {value}, expected a probability from 0 to 1"
                )
        if self.voice not in VOICES:
            raise ValueError(
                f"got voice {self.voice!r}, expected one of {', '.join(VOICES)}"
            )
        if self.reference_frames < 1:
            raise ValueError(
                f"got reference_frames {self.reference_frames}, expected at least 1; "
                "reference=0 turns references off"
            )

    def tagged(self, languages: tuple[str, ...]) -> np.ndarray:
        """Bool [len(languages)]: which of an index's languages have a tag."""
        return np.asarray([name in self.tags for name in languages], bool)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The layouts of some rows of one shard; arrays [N].

    Attributes:
        row: int64, the rows.
        streaming, tagged, instructed, voiced, icl: bool.
        mate: int32, the row of another utterance of the voice, never the row itself:
            the in-context reference, and where the voice's vector comes from.  -1 where
            none is needed or the voice has no other: then a voiced row takes its
            vector from its own recording.
    """

    row: np.ndarray
    streaming: np.ndarray
    tagged: np.ndarray
    instructed: np.ndarray
    voiced: np.ndarray
    icl: np.ndarray
    mate: np.ndarray

    def take(self, chosen: np.ndarray) -> "Drawn":
        """Some of the rows.  chosen: a mask or places, as NumPy indexes."""
        return Drawn(**{name: values[chosen] for name, values in vars(self).items()})


def shard_key(seed: int, stage: str, round: int, shard: int) -> int:
    """The key of `draw` for a shard, in one round over the data."""
    return hashing.key("layouts", seed, stage, round, shard)


def draw(
    layouts: Layouts, columns, *, key: int, tagged: np.ndarray, rows=None
) -> Drawn:
    """Draw the layouts of a shard's rows.

    Args:
        columns: `lengths.Columns` of the shard.
        key: from `shard_key`.
        tagged: bool [languages of the index], from `Layouts.tagged`.
        rows: int [N], or None for all.  A row's draw does not depend on the others.
    """
    if rows is None:
        rows = np.arange(len(columns.frames))
    first, second = hashing.fields(key, rows), hashing.fields(hashing.key(key, 1), rows)

    def chance(field: np.ndarray, probability: float) -> np.ndarray:
        return field.astype(np.int32) < round(probability * 65536)

    mate = _mates(columns.mate, rows, second[:, 1])
    icl = chance(second[:, 0], layouts.reference) & (mate >= 0)
    icl &= columns.frames[mate] <= layouts.reference_frames
    if layouts.voice == "none":
        voiced = np.zeros(len(rows), bool)
    else:
        voiced = ~chance(first[:, 3], layouts.no_voice)
    mate[~(icl | voiced) if layouts.voice == "x_vector" else ~icl] = -1
    drop = chance(first[:, 1], layouts.drop_language)
    instructed = chance(first[:, 2], layouts.instruct) & (columns.instruct[rows] > 0)
    return Drawn(
        row=rows,
        streaming=chance(first[:, 0], layouts.streaming)
        & _fits(columns, rows, icl, mate),
        tagged=tagged[columns.language[rows]] & ~drop,
        instructed=instructed,
        voiced=voiced,
        icl=icl,
        mate=mate,
    )


def _mates(ring: np.ndarray, rows: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Int32 [N]: one to three hops along the ring, -1 for a voice that is alone.

    Where two or three hops lead back to the row, the first hop is taken.
    """
    one = ring[rows]
    two = ring[one]
    hops = field.astype(np.int32) * _HOPS >> 16
    mate = np.where(hops == 0, one, np.where(hops == 1, two, ring[two]))
    return np.where((one < 0) | (mate == rows), one, mate).astype(np.int32)


def _fits(columns, rows, icl, mate) -> np.ndarray:
    """Bool [N]: all of the text has a frame to stand on when it trails them.

    One id stands on codec_bos, and one on each frame; the end mark may be left over.
    """
    room = columns.frames[rows].astype(np.int32) + 1
    text = columns.text[rows].astype(np.int32)
    text += np.where(icl, columns.text[mate], 0)
    return text <= room + np.where(icl, columns.frames[mate], 0)


def positions(drawn: Drawn, columns) -> np.ndarray:
    """Int64 [N]: positions of the packed examples, prompt and frames.

    `prompt.build` lays the same number of positions out.
    """
    rows, icl = drawn.row, drawn.icl
    total = columns.frames[rows].astype(np.int64)
    total += _MARKS
    total += drawn.tagged
    total += drawn.voiced
    total += np.where(drawn.instructed, columns.instruct[rows], 0)
    text = np.where(icl, columns.text[drawn.mate], 0) + columns.text[rows].astype(int)
    # codec_bos, and before it the text and its end mark where it does not trail
    total += np.where(drawn.streaming, 1, text + 2)
    total += np.where(icl, columns.frames[drawn.mate], 0)
    return total
