"""Recordings and texts -> shards of codes, ready to train on.

    python -m data.prepare --folder recordings --language english \\
        --codec CHECKPOINT --out corpus
    python -m data.prepare --manifest clips.jsonl --codec CHECKPOINT --out corpus \\
        --dnsmos --asr WHISPER_DIR --speaker mel
    python -m data.prepare --source asterisk --root DIR --languages en,it \\
        --codec CHECKPOINT --out corpus

Each clip is decoded, checked, trimmed, brought to one level and 24 kHz, and encoded in
batches on the accelerator; `cleaning.REASONS` says why clips are dropped.  CHECKPOINT
is a Qwen3-TTS checkpoint or its speech tokenizer, a directory or a hub id.

A run that was killed goes on where it was: give the same command.  Finished shards have
a done-marker, shard-00000.json; report.json says what was dropped and why.  --beam runs
the same work as an Apache Beam pipeline, on several machines if the runner does.
Measured on 2 CPU cores: decoding and checks take 260 to 375 clips/s.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import shlex
import sys
from pathlib import Path

from data import optional
from data.preparation import (
    cleaning,
    progress,
    scoring,
    shards,
    sources,
    speaker_features,
)
from qwen3tts_jax import model

LOCK = ".lock"


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source(parser)
    add = parser.add_argument
    add("--codec", required=True, help="checkpoint or speech tokenizer")
    add("--out", required=True, type=Path, help="the corpus directory")
    add("--shard_clips", type=int, default=4096)
    add("--batch_frames", type=int, default=512, help="encoded at a time, about")
    add("--workers", type=int, help="threads that decode and score")
    add("--keep_bad", action="store_true", help="keep marked clips, in the tier low")
    rules, spec = cleaning.Rules(), scoring.Spec()
    add("--min_seconds", type=float, default=rules.min_seconds)
    add("--max_seconds", type=float, default=rules.max_seconds)
    add("--level_db", type=float, default=rules.level_db, help="of speech, dBFS")
    add("--keep_level", action="store_true", help="do not normalise")
    add("--dnsmos", action="store_true", help="score the quality (extra eval)")
    add("--min_ovrl", type=float, default=spec.min_ovrl)
    add("--min_p808", type=float, default=spec.min_p808)
    add("--asr", help="Whisper in CTranslate2's format: compare text and sound")
    add("--max_cer", type=float, default=spec.max_cer)
    add(
        "--speaker",
        choices=speaker_features.KINDS,
        default="none",
        help="what to keep of it",
    )
    add("--crop_seconds", type=float, default=speaker_features.Spec().crop_seconds)
    add("--model", help="Base checkpoint, for --speaker x_vector")
    add("--beam", action="store_true", help="as an Apache Beam pipeline (extra beam)")
    add("--beam_args", default="", help='as "--runner=FlinkRunner --parallelism=8"')
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """The flags that say which recordings to take; `source` reads them."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", help='JSON lines: {"audio": path, "text": ...}')
    source.add_argument("--folder", help="NAME.wav (flac, ogg, ...) and NAME.txt")
    source.add_argument("--tfds", help="a TFDS speech builder, as ljspeech")
    source.add_argument("--source", choices=[*sources.debian_recordings.PACKAGES])
    add("--root", default="", help="of --source: where the packages are unpacked")
    add("--languages", default="", help="of --source: as en,it; all if not given")
    add("--language", default="", help="where the source names none: en or english")
    add("--voice", default="", help="a speaker's name, where the source names none")
    add("--split", default="train", help="of --tfds")
    add("--data_dir", help="of --tfds")
    add("--rate", type=int, help="Hz, of --tfds if its features tell none")
    add("--limit", type=int, help="the first clips only")


def source(args) -> sources.Spec:
    """What the flags of `add_source` ask for.

    Raises: ValueError for flags that do not fit.
    """
    kind = args.source or next(
        k for k in ("manifest", "folder", "tfds") if getattr(args, k)
    )
    for flag, owner in dict(root="source", languages="source", rate="tfds").items():
        if getattr(args, flag) and not getattr(args, owner):
            raise ValueError(f"got --{flag} without --{owner}; leave it out")
    return sources.Spec(
        kind=kind,
        where=args.tfds or _place(args.root if args.source else getattr(args, kind)),
        languages=tuple(filter(None, args.languages.split(","))),
        language=sources.language_name(args.language),
        speaker=args.voice,
        limit=args.limit,
        split=args.split,
        data_dir=args.data_dir,
        rate=args.rate,
    )


def job(args) -> shards.Job:
    """What the flags ask for.  Raises: ValueError for flags that do not fit."""
    level = None if args.keep_level else args.level_db
    rules = _given(cleaning.Rules, args) | dict(level_db=level)
    workers = dict(workers=args.workers) if args.workers else {}
    inside = Path(args.codec) / model.SPEECH_TOKENIZER
    args.asr, args.model = _place(args.asr), _place(args.model)
    return shards.Job(
        source=source(args),
        codec=_place(str(inside) if inside.is_dir() else args.codec),
        shard_clips=args.shard_clips,
        rules=cleaning.Rules(**rules),
        scoring=scoring.Spec(**_given(scoring.Spec, args)),
        voice=speaker_features.Spec(args.speaker, args.crop_seconds, args.model),
        keep_bad=args.keep_bad,
        batch_frames=args.batch_frames,
        **workers,
    )


def _given(kind, args) -> dict:
    """The fields of a dataclass that have a flag."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _place(name: str | None) -> str | None:
    """A path made absolute, for workers that run elsewhere; a hub id as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


@contextlib.contextmanager
def alone(out: Path):
    """Refuse to write where another run does.  A killed run leaves no lock behind."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another run is writing to {out}; wait for it, or end it"
            ) from error
        yield


def prepare(wanted: shards.Job, out: Path, *, beam: str | None = None) -> dict:
    """Make the shards that are missing; returns the report.

    Args:
        beam: options of a Beam pipeline that is to do it; None: this process does it.
    """
    out = out.resolve()
    with alone(out):
        preparer = shards.Preparer(wanted)
        if unread := preparer.source.check():
            print(f"not used: {', '.join(sorted(unread))}", file=sys.stderr)
        settings = preparer.settings()
        shards.settle(out, settings)
        missing = shards.pending(out, preparer.shards)
        count, total = wanted.shard_clips, len(preparer.source)
        left = sum(min(count, total - number * count) for number in missing)
        say = progress.Progress(total, done=total - left)
        if beam is not None:
            pipeline = optional.load("data.preparation.beam")
            pipeline.run(wanted, settings, missing, out, shlex.split(beam))
        else:
            for number in missing:
                preparer.write(number, out, say)
            say.say()
        return shards.report(out, preparer.shards)


def main(argv: list[str] | None = None) -> None:
    args = flags().parse_args(argv)
    try:
        beam = args.beam_args if args.beam else None
        found = prepare(job(args), args.out, beam=beam)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"prepare: {error}")
    brief = {key: found[key] for key in found if key not in ("names", "unreadable")}
    print(json.dumps(brief, ensure_ascii=False))


if __name__ == "__main__":
    main()
