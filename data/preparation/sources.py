"""Where recordings come from: manifest, folder, TFDS builder, real recordings.

A source is a fixed list of clips: the number of a clip never changes while the source
does not, so that shard s is clips [s * n, (s + 1) * n) wherever and whenever it is
made.  The fingerprint of a source tells whether it has changed.
"""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data import optional
from data.preparation import clip as raw
from data.preparation import debian_recordings

# ISO 639-1 -> the name under which a checkpoint knows a language, or its English name
# where Qwen3-TTS has none: the trainer takes such a language as Auto.
LANGUAGES = dict(
    be="belarusian",
    bg="bulgarian",
    ca="catalan",
    cs="czech",
    da="danish",
    de="german",
    el="greek",
    en="english",
    es="spanish",
    fr="french",
    it="italian",
    ja="japanese",
    ko="korean",
    lt="lithuanian",
    nl="dutch",
    pt="portuguese",
    ro="romanian",
    ru="russian",
    zh="chinese",
)
CODES = {name: code for code, name in LANGUAGES.items()}
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".g722")
FACTS = "facts.json"
REQUIRED = ("audio", "text")
OPTIONAL = ("id", "language", "speaker", "instruct", "source")
KINDS = ("manifest", "folder", "tfds", *debian_recordings.PACKAGES)
SHOWN = 20  # problems listed in one error


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which recordings to take.

    Attributes:
        kind: one of KINDS.
        where: a manifest's path, a folder, the name of a TFDS builder ("ljspeech",
            "mine/config:1.0.0"), or the root under which Debian packages are unpacked.
        languages: of real recordings, which to take, as ISO 639-1; () for all.
        language, speaker: of clips about which the source says nothing.
        limit: at most so many clips, the first ones.
        split, data_dir, rate: of a TFDS builder; Hz where its features tell none.
    """

    kind: str
    where: str
    languages: tuple[str, ...] = ()
    language: str = ""
    speaker: str = ""
    limit: int | None = None
    split: str = "train"
    data_dir: str | None = None
    rate: int | None = None


class Source:
    """A list of clips in memory."""

    def __init__(self, clips: list[raw.Clip], *, limit: int | None = None):
        self._clips = clips[:limit]
        self._rows = len(self._clips)

    def __len__(self) -> int:
        return self._rows

    def clips(self, start: int, stop: int) -> list[raw.Clip]:
        """The clips of some numbers."""
        return self._clips[start : min(stop, len(self))]

    def fingerprint(self) -> str:
        """A hash of all that the clips say and of their files' sizes."""
        state = hashlib.blake2b(digest_size=16)
        for clip in self._clips:
            facts = dataclasses.astuple(dataclasses.replace(clip, audio=None))
            size = os.path.getsize(clip.audio) if os.path.isfile(clip.audio) else -1
            state.update(repr((facts, size)).encode())
        return state.hexdigest()

    def check(self) -> set[str]:
        """Refuse what would only be found on the way; returns names that nobody reads.

        Raises: ValueError for ids that occur twice.
        """
        seen, twice = set(), []
        for clip in self._clips:
            if clip.id in seen:
                twice.append(clip.id)
            seen.add(clip.id)
        _refuse(f"ids occur twice: {', '.join(twice[:SHOWN])}" if twice else "")
        return set()


def open_source(spec: Spec) -> Source:
    """The clips that a spec names.

    Raises: FileNotFoundError, ValueError: nothing there; the error says what to do.
    """
    if spec.kind == "manifest":
        found = Manifest(spec)
    elif spec.kind == "folder":
        found = Source(list(folder(spec)), limit=spec.limit)
    elif spec.kind == "tfds":
        found = optional.load("data.preparation.tfds_source").Builder(spec)
    elif spec.kind in debian_recordings.PACKAGES:
        clips = debian_recordings.find(
            spec.kind, Path(spec.where), spec.languages, LANGUAGES
        )
        found = Source(clips, limit=spec.limit)
    else:
        raise ValueError(
            f"got a source of kind {spec.kind!r}, expected one of {', '.join(KINDS)}"
        )
    if not len(found):
        raise ValueError(
            f"got no clip from {spec.where!r}, expected recordings; check the path"
        )
    return found


def language_name(name: str) -> str:
    """ "en" or "English" -> "english"."""
    name = name.strip().lower()
    return LANGUAGES.get(name, name)


def tidy(text: str) -> str:
    """One line, composed characters (NFC), no space at the ends."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


# ---------------------------------------------------------------------- manifest


class Manifest(Source):
    """JSON lines: {"audio": path, "text": ...}, and any of OPTIONAL.

    A path is taken relative to the manifest's folder.  Only the places of the lines are
    kept in memory.
    """

    def __init__(self, spec: Spec):
        self.spec, self.path = spec, Path(spec.where)
        if not self.path.is_file():
            raise FileNotFoundError(f"got the manifest {spec.where!r}: no such file")
        starts, at, state = [], 0, hashlib.blake2b(digest_size=16)
        with open(self.path, "rb") as file:
            for line in file:
                if line.strip():
                    starts.append(at)
                    state.update(line)
                at += len(line)
        self._starts = np.array(starts, np.int64)[: spec.limit]
        self._hash, self._rows = state.hexdigest(), len(self._starts)

    def clips(self, start: int, stop: int) -> list[raw.Clip]:
        rows = range(start, min(stop, len(self)))
        with open(self.path, "rb") as file:
            return [self._clip(self._line(file, row)) for row in rows]

    def fingerprint(self) -> str:
        """A hash of the manifest; the audio files behind it are not looked at."""
        return self._hash

    def check(self) -> set[str]:
        """Refuse bad lines, all at once; returns keys that nobody reads.

        Raises: ValueError for lines that are no JSON object, lack a key, hold something
        that is no text, or repeat an id.
        """
        problems, seen, unread = [], set(), set()
        with open(self.path, "rb") as file:
            for row in range(len(self)):
                line = self._line(file, row)
                bad = _problem(line)
                if not bad:
                    unread |= line.keys() - {*REQUIRED, *OPTIONAL}
                    name = self._clip(line).id
                    bad = f"the id {name!r} occurs twice" if name in seen else ""
                    seen.add(name)
                problems += [f"entry {row + 1}: {bad}"] * bool(bad)
        _refuse("\n  ".join(problems[:SHOWN]))
        return unread

    def _line(self, file, row: int):
        file.seek(self._starts[row])
        try:
            return json.loads(file.readline().decode("utf-8-sig"))
        except ValueError:
            return None

    def _clip(self, line: dict) -> raw.Clip:
        spec = self.spec
        return raw.Clip(
            id=line.get("id") or line["audio"],
            audio=str(self.path.parent / line["audio"]),
            text=tidy(line["text"]),
            language=language_name(line.get("language") or spec.language),
            speaker=line.get("speaker") or spec.speaker,
            source=line.get("source") or self.path.stem,
            instruct=tidy(line.get("instruct") or ""),
        )


def _problem(line) -> str:
    """What is wrong with a manifest's line."""
    if not isinstance(line, dict):
        return 'not a JSON object, expected {"audio": "a.wav", "text": "..."}'
    for key in REQUIRED:
        if not isinstance(line.get(key), str):
            return f"{key} is {line.get(key)!r}, expected text"
    for key in OPTIONAL:
        if not isinstance(line.get(key), str | None):
            return f"{key} is {line[key]!r}, expected text"
    return ""


# ------------------------------------------------------------------------ folder


def folder(spec: Spec) -> Iterable[raw.Clip]:
    """NAME.wav (flac, ogg, ...) with NAME.txt beside it, in a folder and below.

    A file facts.json, {"language": ..., "speaker": ..., "instruct": ...}, speaks for
    the clips of its folder and below; the nearest one counts, key by key.
    """
    root = Path(spec.where)
    if not root.is_dir():
        raise FileNotFoundError(f"got the folder {spec.where!r}: no such folder")
    given = dict(language=spec.language, speaker=spec.speaker, instruct="")
    found = {root.parent: given}
    for directory, names, files in os.walk(root):
        names.sort()
        here = Path(directory)
        facts = found[here] = found[here.parent] | _facts(here / FACTS)
        for name in sorted(files):
            path = here / name
            if path.suffix.lower() in AUDIO_SUFFIXES:
                yield _folder_clip(path, root, facts)


def _folder_clip(path: Path, root: Path, facts: dict) -> raw.Clip:
    text = path.with_suffix(".txt")
    return raw.Clip(
        id=path.relative_to(root).as_posix(),
        audio=str(path),
        text=tidy(text.read_text("utf-8-sig", "replace")) if text.is_file() else "",
        language=language_name(facts["language"]),
        speaker=facts["speaker"],
        source=root.resolve().name,
        instruct=tidy(facts["instruct"]),
    )


def _facts(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text("utf-8"))
        known = facts.keys() <= {"language", "speaker", "instruct"}
        if known and all(isinstance(value, str) for value in facts.values()):
            return facts
    except (ValueError, AttributeError):
        pass
    raise ValueError(
        f"{path}: expected an object with texts for any of language, speaker, instruct"
    )


def _refuse(problems: str) -> None:
    if problems:
        raise ValueError(f"the source cannot be used:\n  {problems}\nCorrect these.")
