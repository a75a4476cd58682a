"""Which text is read by which voice, in which order, and where its clip lies.

A clip's id is made of its voice and text.  So a clip that is there stays good when the
texts are drawn anew, and only what is missing is read.
"""

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
ENGLISH_SHARE = 4.5 / 10.5  # of the hours; the other languages share the rest evenly
SPARE = 1.6  # texts are drawn for so many times the hours: estimates and bad clips
PLAN = "texts.jsonl"


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text and its voice.

    Attributes:
        voice: a name of Kokoro's.
        kind: sentence, short or paragraph.
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


def make(
    drawn: dict[str, Iterable[texts.Text]], hours: float
) -> dict[str, list[Reading]]:
    """Readings of every language, in order; voices take turns."""
    goals = goals_of(hours)
    return {
        language: list(_enough(found, language, SPARE * goals[language]))
        for language, found in drawn.items()
    }


def goals_of(hours: float) -> dict[str, float]:
    """language -> seconds."""
    rest = [code for code in passages.TRAINED if code != "en"]
    other = (1 - ENGLISH_SHARE) / len(rest)
    shares = dict.fromkeys(rest, other) | dict(en=ENGLISH_SHARE)
    return {code: 3600 * hours * shares[code] for code in passages.TRAINED}


def _enough(
    found: Iterable[texts.Text], language: str, seconds: float
) -> Iterator[Reading]:
    total, voices = 0.0, VOICES[language]
    for text in found:
        if total >= seconds:
            return
        total += len(text.text) / texts.LIMITS[language].second
        # by the text alone: drawing anew gives a text to the same voice
        voice = voices[texts.order(text.text, 0) % len(voices)]
        name = hashlib.blake2b(text.text.encode(), digest_size=6).hexdigest()
        yield Reading(
            id=f"{language}/{voice}/{name}",
            language=language,
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
    """What `save` has written."""
    readings = {code: [] for code in passages.TRAINED}
    for line in (out / PLAN).read_text("utf-8").splitlines():
        reading = Reading(**json.loads(line))
        readings[reading.language].append(reading)
    return readings


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
