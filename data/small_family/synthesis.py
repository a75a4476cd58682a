"""Read the planned texts aloud: one process, one thread, clip after clip.

    python -m data.small_family.synthesis --out DIR --voices VOICES --hours 11

A clip that is there is not made again, so that a killed run goes on where it was, and
several may run at once (--worker 0 --workers 2 and --worker 1 --workers 2).
`data.small_family.corpus` starts this.
"""

import argparse
import sys
from pathlib import Path

from data.small_family import kokoro, reading


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--voices", type=Path, required=True)
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    made = reading.run(
        args.out,
        args.hours,
        kokoro.Kokoro(args.voices).speak,
        worker=args.worker,
        workers=args.workers,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(f"{made} clips made")


if __name__ == "__main__":
    main()
