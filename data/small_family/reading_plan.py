"""Which text is read by which voice, in which order, and where its clip lies.

A clip's id is made of its voice and text.  So a clip that is there stays good when the
texts are drawn anew, and only what is missing is read.
"""

import collections
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.small_family import passages, texts

# Few voices for each language, so that a small model can learn them: a woman and a man,
# in English two of either, American and British.  French has one voice.
VOICES = dict(
    en=("af_heart", "am_michael", "bf_emma", "bm_george"),
    zh=("zf_xiaobei", "zm_yunxi"),
    ja=("jf_alpha", "jm_kumo"),
    es=("ef_dora", "em_alex"),
    fr=("ff_siwis",),
    it=("if_sara", "im_nicola"),
    pt=("pf_dora", "pm_alex"),
)
ENGLISH_WEIGHT = 4.5  # of its share of the hours, where that of any other is 1
SPARE = 1.6  # texts are drawn for so many times the hours: estimates and bad clips
PLAN = "texts.jsonl"
HELD_OUT = "held_out"  # source and kind of what is read to be judged by


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text and its voice.

    Attributes:
        voice: a name of Kokoro's.
        kind: sentence, short, paragraph or HELD_OUT.
    """

    id: str
    language: str
    voice: str
    source: str
    kind: str
    text: str

    @property
    def audio(self) -> str:
        """Where the clip lies, relative to the corpus."""
        return f"audio/{self.id}.flac"


def choose_voices(
    languages: Iterable[str], names: Iterable[str] = ()
) -> dict[str, tuple[str, ...]]:
    """language -> the voices that read it: all of VOICES, or those among `names`.

    Raises: ValueError for a language or a voice that there is not, or a language that
        none of the names speaks.
    """
    languages, names = tuple(languages), tuple(names)
    known = {voice: code for code, found in VOICES.items() for voice in found}
    unknown = [code for code in languages if code not in VOICES]
    unknown += [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"got {', '.join(unknown)}, expected languages of {', '.join(VOICES)} and "
            f"voices of {', '.join(known)}"
        )
    chosen = {
        code: tuple(v for v in VOICES[code] if not names or v in names)
        for code in languages
    }
    silent = [code for code, found in chosen.items() if not found]
    silent += [name for name in names if known[name] not in chosen]
    if silent:
        raise ValueError(
            f"got {', '.join(silent)} without a voice or language that goes with it; "
            "give each language a voice of its own, or leave the voices out"
        )
    return chosen


def make(
    drawn: dict[str, Iterable[texts.Text]],
    hours: float,
    voices: dict[str, tuple[str, ...]] = VOICES,
) -> dict[str, list[Reading]]:
    """Readings of every language drawn, in order; its voices take turns."""
    goals = goals_of(hours, drawn)
    return {
        language: list(
            _enough(found, language, voices[language], SPARE * goals[language])
        )
        for language, found in drawn.items()
    }


def held_out(
    said: dict[str, Iterable[str]], voices: dict[str, tuple[str, ...]]
) -> dict[str, list[Reading]]:
    """Readings of what is never trained on: every text by every voice of its language,
    but for texts that are longer than what is read at once.

    Args:
        said: language -> texts.
    """
    return {
        language: [
            _reading(texts.Text(language, HELD_OUT, HELD_OUT, text), voice)
            for text in said[language]
            if len(text) <= texts.LIMITS[language].paragraph_most
            for voice in names
        ]
        for language, names in voices.items()
    }


def goals_of(
    hours: float, languages: Iterable[str] = passages.TRAINED
) -> dict[str, float]:
    """language -> seconds."""
    weights = {code: ENGLISH_WEIGHT if code == "en" else 1.0 for code in languages}
    total = sum(weights.values())
    return {code: 3600 * hours * weight / total for code, weight in weights.items()}


def _enough(
    found: Iterable[texts.Text], language: str, voices: tuple[str, ...], seconds: float
) -> Iterator[Reading]:
    total = 0.0
    for text in found:
        if total >= seconds:
            return
        total += len(text.text) / texts.LIMITS[language].second
        # by the text alone: drawing anew gives a text to the same voice
        yield _reading(text, voices[texts.order(text.text, 0) % len(voices)])


def _reading(text: texts.Text, voice: str) -> Reading:
    name = hashlib.blake2b(text.text.encode(), digest_size=6).hexdigest()
    return Reading(
        id=f"{text.language}/{voice}/{name}",
        language=text.language,
        voice=voice,
        source=text.source,
        kind=text.kind,
        text=text.text,
    )


def save(readings: dict[str, list[Reading]], out: Path) -> None:
    """Write OUT/texts.jsonl."""
    rows = [dataclasses.asdict(one) for found in readings.values() for one in found]
    write_lines(out / PLAN, rows)


def load(out: Path) -> dict[str, list[Reading]]:
    """What `save` has written: language -> readings."""
    readings = collections.defaultdict(list)
    for line in (out / PLAN).read_text("utf-8").splitlines():
        reading = Reading(**json.loads(line))
        readings[reading.language].append(reading)
    return dict(readings)


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """JSON lines; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, open(part, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class whole:
    """A path beside another that takes its place when all went well."""

    def __init__(self, path: Path):
        self._path = path
        self._part = path.with_name(f".{secrets.token_hex(4)}.{path.name}")

    def __enter__(self) -> Path:
        return self._part

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)
