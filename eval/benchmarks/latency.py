"""12Hz against 25Hz: what the listener of one stream hears when.  One command:

    python -m eval.benchmarks.latency --size 0.6B --threads 2 --max_seconds 4 --out DIR
    python -m eval.benchmarks.latency --model_12hz DIR --model_25hz DIR \\
        --text "..." --out DIR

Writes latency.md (a table), latency.json and, with matplotlib (extra eval), latency.png
into --out.  Models without a directory are random ones of real size: when sound comes
does not depend on weights.

All streams speak the same text, all of which is there at the start, one at a time, with
the same seed, sampling on and without an end token, so that each makes --max_seconds of
sound, whatever it says.  Each model is in a process of its own, in turn, --rounds
times; there each stream runs once unmeasured, so that all programs are compiled, and
then --repeats times.  Numbers are medians over all of those runs.

Sides:
- 12Hz: groups of 1, 2, 4 frames and then always 8, as sessions have them.
- 12Hz packets of 4: always 320 ms, as in the paper.
- 25Hz: packets of 8 codes.  `lookahead 1` waits for one block of 8 codes, as sessions
  and the paper do, and is an approximation; `exact` waits for all that a block depends
  on, so that the stream is what decoding the whole gives.

Rows:
- first codes: from the request to the first codes on the host; first sound: to the
  first chunk; first audible: to the chunk with the first 10 ms above -50 dBFS.
- per packet: median from chunk to chunk, for 320 ms of sound, without the chunks that
  come with the end; RTF: of all after the first chunk.
- pause: silence in all, if sound is played as soon as it comes.
- off whole: power of the wave that the same codes give when they are decoded as a whole
  over that of the stream's difference from it (200: none), and the largest difference.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import shlex
import statistics
import sys
import tempfile

import numpy as np

from eval.benchmarks import job as speed_job
from eval.benchmarks import packets, speed
from eval.benchmarks import report as speed_report
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.config import tts
from qwen3tts_jax.generation import prompt
from qwen3tts_jax.serving import engine

RATES = {"12hz": tts.TOKENIZER_12HZ, "25hz": tts.TOKENIZER_25HZ}
NAMES = {"12hz": "12Hz", "25hz": "25Hz"}
VARIANTS = ("base", "custom_voice")  # that exist at both rates
EXACT = "exact"
PLAIN = {  # rows that are medians over all runs -> how they are written
    "seconds_first_codes": "first codes, s",
    "seconds_first_sound": "first sound, s",
    "first_sound_seconds": "length of it, s",
    "seconds_first_audible": "first audible, s",
    "seconds_per_packet": "per packet of 320 ms, s",
    "rtf": "RTF",
    "pause": "pause, s",
    "seconds_total": "all of it, s",
    "difference_db": "off whole, dB",
    "largest_difference": "off whole, at most",
}


def sides_of(rate: str, args) -> dict[str, dict]:
    """Name -> what `packets.timeline` is told."""
    if rate == "12hz":
        packet = round(packets.PACKET_SECONDS * tts.FRAME_RATES[RATES[rate]])
        return {
            "12Hz": dict(schedule=engine.SCHEDULE),
            f"12Hz packets of {packet}": dict(schedule=[packet]),
        }
    return {
        f"25Hz {EXACT if blocks is None else f'lookahead {blocks}'}": dict(
            lookahead=blocks
        )
        for blocks in args.lookahead
    }


def make_job(rate: str, args, path: pathlib.Path) -> dict:
    """What the process of one model is told.

    Raises: ValueError for a checkpoint of the other rate, or too little sound.
    """
    config = tts.Qwen3TTSConfig.from_hf(hub.read_json(path / "config.json"))
    if config.tokenizer_type != RATES[rate]:
        raise ValueError(
            f"got --model_{rate} {path} of {config.tokenizer_type}, expected one of "
            f"{RATES[rate]}"
        )
    prompt.language_id(config.talker, args.language, None)
    return dict(
        task="latency",
        model=str(path),
        dtype=args.dtype,
        weights=args.weights,
        seed=args.seed,
        repeats=args.repeats,
        stream_frames=round(args.max_seconds * config.frame_rate),
        request=speed_job.request_of(config, args.text, args.language),
        sides=sides_of(rate, args),
    )


def measure(args) -> dict:
    """Everything that latency.json holds."""
    load_at_start, reports, jobs = os.getloadavg()[0], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for rate in RATES:
            variant = args.variant + ("_25hz" if rate == "25hz" else "")
            chosen = (getattr(args, f"model_{rate}"), args.size, variant)
            path = speed_job.checkpoint(*chosen, pathlib.Path(folder) / rate)
            jobs[rate] = make_job(rate, args, path)
        for n in range(1, args.rounds + 1):
            for rate, job in jobs.items():
                print(f"{NAMES[rate]}: round {n}", file=sys.stderr)
                command = [sys.executable, "-m", "eval.benchmarks.worker_jax"]
                report = speed.run(command, job)
                reports.append(report | dict(side=NAMES[rate], task="latency", n=n))
    return dict(
        sides=combine([report["sides"] for report in reports]),
        packet_seconds=packets.PACKET_SECONDS,
        text=args.text,
        warnings=speed_report.warnings(load_at_start, reports),
        machine=speed_report.machine(),
        device=reports[0]["device"],
        versions=reports[0]["versions"],
        dtype=args.dtype,
        threads=args.threads,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "eval.benchmarks.latency", *sys.argv[1:]]),
        runs=reports,
    )


def combine(rounds: list[dict]) -> dict[str, dict]:
    """Side -> medians over its rounds; what came when point by point."""
    found = {}
    for name in dict.fromkeys(name for sides in rounds for name in sides):
        mine = [sides[name] for sides in rounds if name in sides]
        merged = {}
        for key in PLAIN:
            values = [side[key] for side in mine]
            merged[key] = None if None in values else statistics.median(values)
        for key in ("made", "heard"):
            merged[key] = np.median([side[key] for side in mine], axis=0).tolist()
        found[name] = merged
    return found


# ------------------------------------------------------------------------------ report


def table(metrics: dict) -> str:
    """Markdown: a column for each side, then what came when, then notes."""
    sides = metrics["sides"]
    lines = row("", *sides) + row("---", *["---:"] * len(sides))
    for key, title in PLAIN.items():
        lines += row(title, *(speed_report.number(s[key]) for s in sides.values()))
    lines += ["", "Chunks: seconds after the request: seconds of sound so far", ""]
    for name, side in sides.items():
        chunks = ", ".join(f"{at:.3g}: {sound:.3g}" for at, sound in side["heard"])
        lines.append(f"- {name}: {chunks}")
    versions = ", ".join(f"{n} {v}" for n, v in metrics["versions"].items())
    host = metrics["machine"]
    where = f"{metrics['device']}, {host['processor']}, {metrics['threads']} threads"
    lines += ["", *(f"WARNING: {text}\n" for text in metrics["warnings"])]
    lines += [f"{where}, {metrics['dtype']}; {versions}", ""]
    return "\n".join([*lines, f"{metrics['date']}  `{metrics['command']}`"])


def row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def plot(metrics: dict, path: pathlib.Path) -> None:
    """Sound in hand over time, beside what a listener uses up who never waits again."""
    from matplotlib import figure  # here: it is optional

    picture = figure.Figure(figsize=(8, 5), layout="constrained")
    axis = picture.subplots()
    for name, side in metrics["sides"].items():
        at, sound = np.transpose(side["heard"])
        [line] = axis.step([0, *at], [0, *sound], where="post", marker=".", label=name)
        color = line.get_color()
        begin = at[0] + side["pause"]
        axis.plot([begin, begin + sound[-1]], [0, sound[-1]], ":", color=color, lw=1)
        axis.plot(side["seconds_first_codes"], 0, "|", color=color, ms=14)
    axis.set_xlabel("seconds after the request (bars: first codes)")
    axis.set_ylabel("seconds of sound in hand (dotted: played without a pause)")
    latest = max(side["seconds_total"] for side in metrics["sides"].values())
    axis.set_xlim(0, 1.05 * latest)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")
    picture.savefig(path)


def write(metrics: dict, out: pathlib.Path) -> None:
    """latency.md, latency.json and, where matplotlib is installed, latency.png."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "latency.md").write_text(table(metrics) + "\n")
    (out / "latency.json").write_text(json.dumps(metrics, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib"):
        plot(metrics, out / "latency.png")
    else:
        print(
            "no picture: matplotlib is not installed; pip install matplotlib, or the "
            "extra eval",
            file=sys.stderr,
        )


# --------------------------------------------------------------------------- arguments


def lookaheads(text: str) -> list[int | None]:
    """Blocks, or "exact", of a comma list."""
    return [
        None if part == EXACT else int(part) for part in dict.fromkeys(text.split(","))
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; see the module's docstring."""
    add = parser.add_argument
    add("--out", type=pathlib.Path, required=True, help="folder for what is found")
    for rate in RATES:
        default = "checkpoint directory or hub id; default: random weights"
        add(f"--model_{rate}", help=default)
    add("--size", choices=speed.SIZES, default="0.6B", help="of random weights")
    add("--variant", choices=VARIANTS, default="custom_voice", help="of those")
    add("--text", default=speed_job.TEXT, help="to speak; default: a sentence")
    add("--language", default="english", help="of the text; default: %(default)s")
    add("--max_seconds", type=float, default=4.0, help="of sound; default: 4")
    blocks = "blocks that 25Hz streams wait for, and exact for all; default: 1,exact"
    add("--lookahead", type=lookaheads, default=[1, None], help=blocks)
    add("--seed", type=int, default=0, help="of the draws; default: 0")
    add("--repeats", type=int, default=3, help="measured streams a round; default: 3")
    add("--rounds", type=int, default=2, help="of all models in turn; default: 2")
    add("--dtype", choices=speed.DTYPES, default="float32", help="of the models")
    add("--weights", choices=("int8", "float8"), help="of one byte each")
    add("--threads", type=int, help="processors to use; default: 2, with a GPU all")


def check_arguments(args) -> None:
    """Raises: ValueError for what cannot be measured."""
    if not args.text.strip():
        raise ValueError(f"got --text {args.text!r}, expected at least one word")
    if args.repeats < 1 or args.rounds < 1:
        raise ValueError("expected --repeats and --rounds 1 or more")
    if args.max_seconds < 2 * packets.PACKET_SECONDS:
        raise ValueError(
            f"got --max_seconds {args.max_seconds:g}, expected two packets or more: "
            f"{2 * packets.PACKET_SECONDS:g}"
        )
    if any(blocks is not None and blocks < 0 for blocks in args.lookahead):
        raise ValueError("expected --lookahead 0 or more blocks, or exact")


def main() -> None:
    parser = argparse.ArgumentParser("python -m eval.benchmarks.latency", None, __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_arguments(parser)
    args = parser.parse_args()
    try:
        check_arguments(args)
        if args.threads is None:
            args.threads = speed.default_threads()
        speed.use_processors(args.threads)
        metrics = measure(args)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(table(metrics))
    write(metrics, args.out)


if __name__ == "__main__":
    main()
