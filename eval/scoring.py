"""One clip of one system: what the judges say; and what they say on average."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from qwen3tts_jax import metrics
from qwen3tts_jax.audio import io as audio_io

JUDGE_RATE = 16_000  # Hz
RECORDINGS = "recordings"  # the system that is the ceiling


@dataclasses.dataclass(frozen=True)
class Item:
    """What is judged, whatever made its sound.

    Attributes:
        text: what is to be said; language: ISO 639-1.
    """

    id: str
    text: str
    language: str
    source: str = ""
    speaker: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one sound.

    Attributes:
        system: what made it.
        heard: what the recogniser wrote.
        words, characters: edits against the text; words are characters in zh and ja.
        values: figures by name; what cannot be measured of this clip is not there.
    """

    item: Item
    system: str
    heard: str
    words: metrics.Edits
    characters: metrics.Edits
    values: dict[str, float]

    def as_json(self) -> dict:
        """Plain values, one level deep but for the edits."""
        found = dataclasses.asdict(self)
        return found.pop("item") | found


def judge(panel, item: Item, system: str, wave: np.ndarray, **values) -> Score:
    """Words and quality of float32 [W] at 24 kHz; values: figures known already."""
    low = audio_io.resample(wave, audio_io.SAMPLE_RATE, JUDGE_RATE)
    heard = panel.hear(low, item.language)
    both = (panel.plain(text, item.language) for text in (item.text, heard))
    said, understood = both
    seconds = dict(seconds=len(wave) / audio_io.SAMPLE_RATE)
    return Score(
        item=item,
        system=system,
        heard=heard,
        words=metrics.word_edits(said, understood, item.language),
        characters=metrics.character_edits(said, understood),
        values=seconds | panel.quality(low) | values,
    )


def compare(panel, recording: np.ndarray, wave: np.ndarray) -> dict[str, float]:
    """Figures of float32 [W] against the recording of which it was made, 24 kHz both.

    Returns: mel, cosine, and pesq and stoi where they can be measured.
    """
    low = [
        audio_io.resample(w, audio_io.SAMPLE_RATE, JUDGE_RATE)
        for w in (recording, wave)
    ]
    found = dict(
        stoi=panel.stoi(*low),
        pesq=panel.pesq(*low),
        mel=metrics.mel_distance(recording, wave),
        cosine=metrics.cosine(*(panel.speaker(w) for w in low)),
    )
    return {name: value for name, value in found.items() if value is not None}


# ----------------------------------------------------------------------- averages


def summarise(scores: list[Score], *, seed: int) -> dict:
    """The figures of one system over some clips.

    Returns: n; wer and cer, each a dict of pooled (all edits over all tokens), low,
        high (95 %), macro (mean of the clips' rates), n, and the edits by kind; each
        value's mean, its error and n.
    """
    found = dict(n=len(scores))
    for name, kind in (("wer", "words"), ("cer", "characters")):
        found[name] = rate([getattr(score, kind) for score in scores], seed=seed)
    names = dict.fromkeys(name for score in scores for name in score.values)
    for name in names:
        kept = [s.values[name] for s in scores if name in s.values]
        found[name] = dataclasses.asdict(metrics.mean(kept))
    return found


def rate(edits: list[metrics.Edits], *, seed: int) -> dict:
    """An error rate and how sure it is."""
    total = metrics.pooled(edits)
    counts, lengths = [e.count for e in edits], [e.length for e in edits]
    low, high = metrics.ratio_interval(counts, lengths, seed=seed)
    return dict(
        pooled=total.rate,
        low=low,
        high=high,
        macro=metrics.macro(edits),
        n=len(edits),
        **dataclasses.asdict(total),
    )


def increase(scores: list[Score], ceiling: list[Score], *, seed: int) -> dict:
    """How many more words are wrong than in the recordings of the same clips.

    Returns: value, low, high (95 %, clips drawn in pairs), n.
    Raises: ValueError where the clips differ.
    """
    before = {score.item.id: score.words for score in ceiling}
    if missing := [s.item.id for s in scores if s.item.id not in before]:
        raise ValueError(f"got scores of clips without a recording: {missing[:3]}")
    more = [s.words.count - before[s.item.id].count for s in scores]
    lengths = [s.words.length for s in scores]
    low, high = metrics.ratio_interval(more, lengths, seed=seed)
    value = sum(more) / sum(lengths) if sum(lengths) else math.nan
    return dict(value=value, low=low, high=high, n=len(scores))


def table(
    scores: list[Score], group: str | None, *, seed: int, paired: bool = True
) -> list[dict]:
    """A row for each group of clips and each system in it, in order of appearance.

    Args:
        group: "language", "source" or "speaker" of the items; None for all together.
        paired: whether the systems have made their sound of the recordings.
    """
    rows = []
    for name in dict.fromkeys(_group(score, group) for score in scores):
        mine = [score for score in scores if _group(score, group) == name]
        ceiling = [score for score in mine if score.system == RECORDINGS]
        for system in dict.fromkeys(score.system for score in mine):
            own = [score for score in mine if score.system == system]
            row = dict(group=name, system=system) | summarise(own, seed=seed)
            if paired and system != RECORDINGS:
                row["wer_increase"] = increase(own, ceiling, seed=seed)
            rows.append(row)
    return rows


def _group(score: Score, group: str | None) -> str:
    return getattr(score.item, group) if group else "all"


def missing_values(scores: Iterable[Score], names: tuple[str, ...]) -> dict:
    """name -> ids of clips whose score could not be measured, in any system."""
    found: dict[str, list[str]] = {}
    for score in scores:
        for name in names:
            ids = found.setdefault(name, [])
            if name not in score.values and score.item.id not in ids:
                ids.append(score.item.id)
    return {name: ids for name, ids in found.items() if ids}
