"""What is evaluated: lists of clips and of texts, read strictly."""

import dataclasses
import json
import pathlib
import re

import numpy as np

from data.preparation import sources

SHOWN = 10  # problems listed in one error
KEYS = ("id", "text", "language", "speaker", "reference")
LISTED = re.compile(r"([a-z]{2})=(.+)")  # it=sentences.txt


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording and its text.

    Attributes:
        language: ISO 639-1.
        speaker, source: "" where unknown.
    """

    id: str
    audio: str
    text: str
    language: str
    speaker: str
    source: str


@dataclasses.dataclass(frozen=True)
class Text:
    """Something to say.

    Attributes:
        language: ISO 639-1.
        speaker: whose voice, as the clips name it; "" to let the program choose.
        reference: a recording of the voice to clone, or None.
    """

    id: str
    text: str
    language: str
    speaker: str = ""
    reference: str | None = None


def read_clips(path: str, *, limit: int | None = None, seed: int = 0) -> list[Clip]:
    """Clips of a manifest (see `data.preparation.sources.Manifest`), in its order.

    Args:
        limit: at most so many, drawn by `seed` in turn from each source and language.
    Raises: FileNotFoundError naming the sound files that are missing: a clip that is
        left out would make every figure look better than it is.  ValueError for bad
        lines, and for clips without text or language.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"got a limit of {limit} clips, expected at least 1")
    manifest = sources.Manifest(sources.Spec("manifest", str(path)))
    manifest.check()
    clips = [_clip(raw) for raw in manifest.clips(0, len(manifest))]
    if not clips:
        raise ValueError(f"got no clip in {str(path)!r}, expected some; check the file")
    for what in ("text", "language"):
        if lacking := [clip.id for clip in clips if not getattr(clip, what)]:
            raise ValueError(
                f"got clips without {what} in {str(path)!r}: {_some(lacking)}; add it"
            )
    if limit is not None:
        clips = spread(clips, limit, seed)
    check_files([clip.audio for clip in clips], path)
    return clips


def _clip(raw) -> Clip:
    return Clip(
        id=raw.id,
        audio=str(raw.audio),
        text=raw.text,
        language=sources.CODES.get(raw.language, raw.language),
        speaker=raw.speaker,
        source=raw.source,
    )


def spread(clips: list, limit: int, seed: int) -> list:
    """`limit` clips or texts, in their order, even over sources and languages."""
    order = np.random.default_rng(seed).permutation(len(clips))
    groups: dict[tuple, list[int]] = {}
    for i in order.tolist():
        name = (getattr(clips[i], "source", ""), clips[i].language)
        groups.setdefault(name, []).append(i)
    turns = [(turn, name, i) for name, g in groups.items() for turn, i in enumerate(g)]
    return [clips[i] for i in sorted(i for _, _, i in sorted(turns)[:limit])]


def check_files(paths: list[str], where) -> None:
    """Raises: FileNotFoundError unless all are there."""
    missing = [path for path in paths if not pathlib.Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"got {len(missing)} of {len(paths)} recordings of {str(where)!r} that do "
            f"not exist: {_some(missing)}; every one is scored, so put them there, or "
            "take their lines out of the list"
        )


def read_texts(path: str) -> list[Text]:
    """Texts of a file of JSON lines, {"text", "language"} and any of id, speaker,
    reference (a path, relative to the file); or of LANGUAGE=FILE.txt, one text a line.

    Raises: FileNotFoundError; ValueError naming the lines that cannot be used.
    """
    listed = LISTED.fullmatch(str(path))
    file = pathlib.Path(listed[2] if listed else path)
    if not file.is_file():
        raise FileNotFoundError(f"got the texts {str(path)!r}, expected a file there")
    found, problems = [], []
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        values = dict(text=line, language=listed[1]) if listed else _values(line)
        if isinstance(values, str):
            problems.append(f"line {number}: {values}")
        else:
            found.append(_text(values, file, number))
    if problems or not found:
        raise ValueError(
            f"got texts {str(path)!r} that cannot be used: "
            f"{_some(problems) or 'no line'}; correct them"
        )
    references = [text.reference for text in found if text.reference]
    check_files(references, path)
    return found


def _values(line: str) -> dict | str:
    """A line's object, or what is wrong with it."""
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return 'no JSON object, expected {"text": "...", "language": "en"}'
    if unknown := values.keys() - set(KEYS):
        return f"unknown keys {', '.join(sorted(unknown))}, expected {', '.join(KEYS)}"
    for key in ("text", "language"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            return f"{key} is {values.get(key)!r}, expected text"
    for key in KEYS:
        if not isinstance(values.get(key), str | None):
            return f"{key} is {values[key]!r}, expected text"
    return values


def _text(values: dict, file: pathlib.Path, number: int) -> Text:
    language = sources.language_name(values["language"])
    reference = values.get("reference")
    return Text(
        id=values.get("id") or f"{file.stem}/{number}",
        text=sources.tidy(values["text"]),
        language=sources.CODES.get(language, language),
        speaker=values.get("speaker") or "",
        reference=str(file.parent / reference) if reference else None,
    )


def _some(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
