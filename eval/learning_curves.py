"""How some training runs learnt: one picture and one JSON of their logs.

    python -m eval.learning_curves --runs mel vocoder join --out curves

CURVES.json has, for every run, the points of each figure over steps and over the
seconds spent on steps; CURVES.png draws those named by --figures (extra eval).
"""

import argparse
import importlib.util
import json
import pathlib
import sys
from collections.abc import Iterable

from configs import build_codec
from qwen3tts_jax.training import metrics_writer as log

LOSSES = ("loss", "held_out/loss", "mel", "log_mel", "distillation")
MEASURED = ("stoi", "pesq")
POINTS = 200  # of a curve at most


def read(run: pathlib.Path) -> dict:
    """name -> [[step, seconds, value], ...] of one run.

    Raises: FileNotFoundError for a folder without a log.
    """
    if not (run / log.FILE).is_file():
        raise FileNotFoundError(
            f"got {run}, which has no {log.FILE}; give the --workdir of a training"
        )
    lines = log.read(run)
    clock, before, seconds = {0: 0.0}, 0, 0.0
    for line in lines:
        if spent := line.get("seconds_per_step"):
            seconds += spent * (line["step"] - before)
            before = line["step"]
            clock[before] = seconds
    figures = run / build_codec.FIGURES
    if figures.is_file():
        lines += [json.loads(x) for x in figures.read_text("utf-8").splitlines()]
    found: dict[str, list] = {}
    for line in lines:
        step = line["step"]
        at = clock[max(s for s in clock if s <= step)]
        for name in (*LOSSES, *MEASURED):
            if isinstance(line.get(name), float):
                found.setdefault(name, []).append([step, round(at, 1), line[name]])
    return {name: thin(points) for name, points in found.items()}


def thin(points: list) -> list:
    """At most POINTS of them, evenly, the last one always."""
    every = -(-len(points) // POINTS)
    return points[::-1][::every][::-1]


def plot(runs: dict[str, dict], figures: Iterable[str], path: pathlib.Path) -> None:
    """One row for each figure that any run has, over minutes of steps."""
    from matplotlib import figure  # here: it is optional

    names = [n for n in figures if any(n in run for run in runs.values())]
    size = (8, 2.6 * len(names))
    picture = figure.Figure(figsize=size, layout="constrained")
    axes = picture.subplots(len(names), squeeze=False)[:, 0]
    for name, axis in zip(names, axes):
        for label, run in runs.items():
            if name in run:
                _, seconds, values = zip(*run[name])
                minutes = [s / 60 for s in seconds]
                axis.plot(minutes, values, marker=".", ms=3, lw=1, label=label)
        axis.set_ylabel(name)
        axis.legend(fontsize="small")
    axes[-1].set_xlabel("minutes spent on steps")
    picture.savefig(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", nargs="+", type=pathlib.Path, required=True, help="their --workdir")
    add("--out", type=pathlib.Path, required=True, help="of the two files, no suffix")
    add(
        "--figures",
        nargs="+",
        default=("stoi", "pesq", "log_mel", "distillation"),
        choices=(*LOSSES, *MEASURED),
        help="that are drawn",
    )
    args = parser.parse_args(argv)
    try:
        runs = {run.name: read(run) for run in args.runs}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(runs, separators=(",", ":"))
        args.out.with_suffix(".json").write_text(text + "\n", "utf-8")
    except OSError as error:
        sys.exit(f"learning_curves: {error}")
    if importlib.util.find_spec("matplotlib"):
        plot(runs, args.figures, args.out.with_suffix(".png"))
    else:
        print("no picture: pip install matplotlib, or the extra eval", file=sys.stderr)


if __name__ == "__main__":
    main()
