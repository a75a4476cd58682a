"""Recordings of people, decoded, trimmed and brought to the corpus' level."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from data.preparation import cleaning as clips
from data.preparation import clip as raw
from data.preparation import debian_recordings as recordings
from data.preparation import sources
from data.small_family import held_out, reading
from data.small_family import reading_plan as plan

TAKEN = dict(  # source -> languages
    asterisk=("en", "es", "fr", "it", "ru"),
    tuxpaint=("es", "fr", "ru"),
    fillets=("cs", "nl"),
)
LISTING = "recordings.jsonl"
RULES = clips.Rules(min_seconds=0.5, margin_seconds=0.1, level_db=None)
SAY_EVERY = 1000  # clips


def find(root: Path) -> list[raw.Clip]:
    """Every recording that is taken; root: where the packages are unpacked."""
    return [
        clip
        for kind, languages in TAKEN.items()
        for clip in recordings.find(kind, root, languages, sources.LANGUAGES)
    ]


def run(
    root: Path, out: Path, lists: held_out.Lists, say: Callable[[str], None] = print
) -> None:
    """Decode what is not there yet, and write OUT/recordings.jsonl when all is done.

    A row says why a clip was dropped, or of which part it is.
    Raises: ValueError for clips held out by the lists that cannot be used.
    """
    found = find(root)
    rows = list(_rows(found, out, held_out.split(found, lists), say))
    test = {row["id"] for row in rows if row["split"] == "test" and not row["dropped"]}
    if lost := sorted(lists.clips - test):
        raise ValueError(
            f"got {len(lost)} recordings of {held_out.CLIPS} that are not there or "
            f"cannot be used: {', '.join(lost[:10])}; correct the list"
        )
    plan.write_lines(out / LISTING, rows)


def _rows(
    found: list[raw.Clip], out: Path, parts: dict[str, str], say: Callable[[str], None]
) -> Iterable[dict]:
    for number, clip in enumerate(found, 1):
        audio = f"audio/{clip.id}.flac"
        dropped = "" if parts[clip.id] else "says what is held out"
        if not dropped and not (out / audio).is_file():
            take = clips.take(clip, RULES)
            dropped = take.reason or next(iter(take.marks), "")
            if not dropped:
                reading.write(out / audio, reading.finish(take.wave))
        yield dict(
            id=clip.id,
            audio=audio,
            text=sources.tidy(clip.text),
            language=sources.CODES[clip.language],
            speaker=clip.speaker,
            source=clip.source,
            split=parts[clip.id],
            dropped=dropped,
        )
        if number % SAY_EVERY == 0:
            say(f"{number} of {len(found)} recordings")


def load(out: Path) -> list[dict]:
    """The rows that `run` has written."""
    lines = (out / LISTING).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
