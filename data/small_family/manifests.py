"""The corpus as two lists of clips, for training and held out, and in figures."""

import collections
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.small_family import agreement, reading
from data.small_family import human_speech as human
from data.small_family import reading_plan as plan

TRAIN, HELD_OUT = "manifest.jsonl", "held_out.jsonl"
RATES = "asr.jsonl"
KOKORO = "kokoro"
UNCHECKED = "not heard yet"
ILL_READ = "not read as written"


def rates(out: Path) -> dict[str, float]:
    """id -> rate of errors; a line that a killed run left unfinished is not read."""
    path = out / RATES
    if not path.is_file():
        return {}
    lines = path.read_text("utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("}\n")]
    return {row["id"]: row["cer"] for row in rows}


def write(out: Path, *, unchecked: bool = False) -> list[dict]:
    """Write both manifests from the clips that are there; returns the rows of all.

    Args:
        unchecked: take also clips that speech recognition has not heard.
    """
    known = rates(out)
    rows = [*_read(out, known, unchecked), *_recorded(out)]
    for name, part in ((TRAIN, "train"), (HELD_OUT, "test")):
        kept = [_line(row) for row in rows if row["split"] == part and not row["why"]]
        plan.write_lines(out / name, kept)
    return rows


def _line(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "why"}


def _read(out: Path, known: dict[str, float], unchecked: bool) -> Iterator[dict]:
    for language, readings in plan.load(out).items():
        for one in readings:
            path = out / one.audio
            if not path.is_file():
                continue
            rate, why = known.get(one.id), ""
            if rate is None:
                why = "" if unchecked else UNCHECKED
            elif rate > agreement.MOST[language]:
                why = ILL_READ
            yield dict(
                id=one.id,
                audio=one.audio,
                text=one.text,
                language=language,
                speaker=f"{KOKORO}/{one.voice}",
                source=f"{KOKORO}/{one.source}",
                seconds=round(reading.seconds(path), 3),
                split="test" if one.kind == plan.HELD_OUT else "train",
                cer=rate,
                why=why,
            )


def _recorded(out: Path) -> Iterator[dict]:
    for row in human.load(out) if (out / human.LISTING).is_file() else ():
        path, why = out / row["audio"], row.pop("dropped")
        length = round(reading.seconds(path), 3) if not why else 0.0
        yield row | dict(seconds=length, cer=None, why=why)


def table(rows: Iterable[dict]) -> str:
    """Clips and hours by language, speaker and source, and what was dropped."""
    found = list(rows)
    kept = [row for row in found if not row["why"]]
    lines = []
    for part in ("train", "test"):
        mine = [row for row in kept if row["split"] == part]
        lines += [f"{part}: {_sum(mine)}", ""]
        for key in ("language", "source", "speaker"):
            lines += [f"  by {key}", *_groups(mine, key), ""]
    counts = collections.Counter((row["source"], row["why"]) for row in found)
    lines.append("dropped")
    for (source, why), number in sorted(counts.items()):
        lines += [f"  {source:20} {why:28} {number:6}"] if why else []
    return "\n".join(lines)


def _groups(rows: list[dict], key: str) -> list[str]:
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[key] or "(unknown)"].append(row)
    return [f"    {name:28} {_sum(groups[name])}" for name in sorted(groups)]


def _sum(rows: list[dict]) -> str:
    hours = sum(row["seconds"] for row in rows) / 3600
    return f"{len(rows):6} clips {hours:7.2f} h"
