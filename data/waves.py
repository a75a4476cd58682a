"""Waves for codec training: recordings -> shards of samples, mapped into memory.

    python -m data.waves --manifest corpus/manifest.jsonl --out waves
        [--teacher whisper --teacher_dir DIR]

A shard is a folder of three arrays: wave.npy, int16 [frames * 1920], the clips one
after the other, each filled up with silence to whole frames of the codec; teacher.npy,
float16 [frames, D], what the semantic teacher says of each frame; clips.npy, where each
clip starts.  The same command goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import prepare
from data.preparation import cleaning, progress, sources
from data.preparation import clip as raw
from data.preparation import shards as work
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.teachers import targets

FRAME = 1920  # samples
PCM = 32767
CLIP = np.dtype([("start", "i8"), ("frames", "i4"), ("samples", "i4")])
RULES = cleaning.Rules()
MARKER = "shard.json"
PART = ".part"


def make(
    source: sources.Source,
    out: Path,
    *,
    rules: cleaning.Rules = RULES,
    teacher=None,
    shard_clips: int = 2048,
    say=print,
) -> dict:
    """Write the shards that are missing; returns how many clips were kept and dropped.

    Args:
        teacher: `targets.Teacher` or None.
        shard_clips: clips of the source for each shard.
    Raises: ValueError if `out` was begun with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.settle(out, _settings(source, rules, teacher, shard_clips))
    counted = progress.Progress(len(source))
    for number in range(-(-len(source) // shard_clips)):
        folder = out / f"shard-{number:05d}"
        if not (folder / MARKER).is_file():
            rows = source.clips(number * shard_clips, (number + 1) * shard_clips)
            _write(folder, rows, rules, teacher, counted)
    total = [read_json(folder / MARKER) for folder in shards(out)]
    kept, dropped = sum(t["clips"] for t in total), {}
    for one in total:
        for reason, count in one["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    hours = sum(t["seconds"] for t in total) / 3600
    say(f"{out}: {kept} clips, {hours:.2f} h; dropped: {dropped or 'none'}")
    return dict(clips=kept, hours=hours, dropped=dropped)


def shards(directory: Path) -> list[Path]:
    """The finished shards of a folder, in order."""
    return sorted(path.parent for path in Path(directory).glob(f"shard-*/{MARKER}"))


def read_json(path: Path):
    return json.loads(path.read_text("utf-8"))


def _settings(source, rules, teacher, shard_clips: int) -> dict:
    """All that decides what stands in the shards."""
    return dict(
        source=source.fingerprint(),
        rules=dataclasses.asdict(rules),
        teacher=teacher.name if teacher else None,
        teacher_dim=teacher.dim if teacher else 0,
        shard_clips=shard_clips,
    )


def _write(folder: Path, rows: list[raw.Clip], rules, teacher, counted) -> None:
    """One shard, whole or not at all."""
    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    table, names, heard, dropped, start = [], [], [], {}, 0
    with open(part / "wave.raw", "wb") as file:
        for take in _takes(rows, rules, dropped, counted):
            frames = -(-len(take.wave) // FRAME)
            padded = np.zeros(frames * FRAME, np.int16)
            padded[: len(take.wave)] = np.round(np.clip(take.wave, -1, 1) * PCM)
            padded.astype("<i2").tofile(file)
            table.append((start, frames, len(take.wave)))
            names.append((take.clip.id, take.clip.source))
            if teacher:
                heard.append(teacher(take.wave))
            start += frames
    waves = np.fromfile(part / "wave.raw", "<i2")
    (part / "wave.raw").unlink()
    np.save(part / "wave.npy", waves)
    np.save(part / "clips.npy", np.array(table, CLIP))
    if teacher:
        empty = np.zeros((0, teacher.dim), np.float16)
        np.save(part / "teacher.npy", np.concatenate([empty, *heard]))
    marker = dict(
        clips=len(table),
        frames=start,
        seconds=len(waves) / audio_io.SAMPLE_RATE,
        dropped=dropped,
        ids=[name for name, _ in names],
        sources=[source for _, source in names],
    )
    (part / MARKER).write_text(json.dumps(marker), "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _takes(rows, rules, dropped: dict, counted) -> Iterator[cleaning.Take]:
    for clip in rows:
        take = cleaning.take(clip, rules)
        if take.wave is None:
            dropped[take.reason] = dropped.get(take.reason, 0) + 1
            counted.add(1, 0.0)
        else:
            counted.add(1, len(take.wave) / audio_io.SAMPLE_RATE)
            yield take


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    prepare.add_source(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", choices=("whisper", "wavlm"))
    parser.add_argument("--teacher_dir", help="directory of its weights")
    parser.add_argument(
        "--teacher_layer",
        type=lambda text: int(text) if text.isdigit() else text,
        help="a number, average, or what else the teacher knows; default: its own",
    )
    parser.add_argument("--shard_clips", type=int, default=2048)
    args = parser.parse_args(argv)
    try:
        if bool(args.teacher) != bool(args.teacher_dir):
            raise ValueError("got one of --teacher and --teacher_dir, expected both")
        teacher = None
        if args.teacher:
            teacher = targets.Teacher.open(
                args.teacher, args.teacher_dir, layer=args.teacher_layer
            )
        source = sources.open_source(prepare.source(args))
        make(source, args.out, teacher=teacher, shard_clips=args.shard_clips)
    except (ValueError, OSError) as error:
        sys.exit(f"data.waves: {error}")


if __name__ == "__main__":
    main()
