"""What is never trained on: texts, recordings and speakers, fixed by lists.

held_out/sentences.jsonl: 100 English sentences and 20 of each other language, half from
    the packages that training texts come from, half written for this list.
held_out/long.jsonl: an English text of a minute, written for this list.
held_out/clips.json: ids of 40 recordings of each source and language, and characters of
    a game who are held out entirely.  Asterisk and fillets clips are 2 to 10 s long and
    say no digits, tuxpaint's 1.2 to 10 s; among these chance chose.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable
from importlib import resources

from data.preparation import clip as raw
from data.small_family import texts

FOLDER = "held_out"
SENTENCES, LONG, CLIPS = "sentences.jsonl", "long.jsonl", "clips.json"


@dataclasses.dataclass(frozen=True)
class Lists:
    """All that is held out.

    Attributes:
        texts: language (ISO 639-1) -> texts.
        clips: ids of recordings.
        speakers: every recording of theirs.
    """

    texts: dict[str, list[str]]
    clips: frozenset[str]
    speakers: frozenset[str]


def load() -> Lists:
    """The lists of this repository."""
    said = collections.defaultdict(list)
    for name in (SENTENCES, LONG):
        for line in _read(name).splitlines():
            row = json.loads(line)
            said[row["language"]].append(row["text"])
    listed = json.loads(_read(CLIPS))
    ids = frozenset(name for found in listed["clips"].values() for name in found)
    return Lists(dict(said), ids, frozenset(listed["speakers"]))


def split(clips: Iterable[raw.Clip], lists: Lists) -> dict[str, str]:
    """id -> train, test, or "" for a clip of neither.

    Neither: a recording that says what a held-out one of its source says, perhaps the
    same sound under another name.
    """
    found = list(clips)
    test = {c.id for c in found if c.id in lists.clips or c.speaker in lists.speakers}
    said = {(c.source, texts.plain(c.text)) for c in found if c.id in test}

    def part(clip: raw.Clip) -> str:
        if clip.id in test:
            return "test"
        return "" if (clip.source, texts.plain(clip.text)) in said else "train"

    return {clip.id: part(clip) for clip in found}


def _read(name: str) -> str:
    return (resources.files("data.small_family") / FOLDER / name).read_text("utf-8")
