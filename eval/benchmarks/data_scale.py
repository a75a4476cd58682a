"""Does the data plan hold 5 million hours?  A simulation with synthetic lengths.

    python -m eval.benchmarks.data_scale --folder DIR --stage s1 --disk \\
        --workers 2 --out FILE.json

makes an index of 1.8e9 utterances (27,466 shards of 65,536; with `--disk` 21.6 GB of
files, else generated when asked for), makes the plan of a stage once, and then, in a
fresh process as a training host would, opens both and measures: the time to open, the
memory, the time of batch 10 million, how full the rows are, the mixture against its
weights, and whether any utterance comes twice or is lost in an epoch.  A second call
finds index and plan and only measures.  `--shards 32 --rows 4096` is a short form.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import pathlib
import resource
import time

import numpy as np

from data import index
from data.format import records
from data.mixture import blocks, plan, schedule, synthetic_index

SHARDS, SHARD_ROWS = 27466, 65536  # 5 million hours at 10 s
BATCH, HOSTS, STEP = 512, 64, 10_000_000
SAMPLED_BLOCKS, SAMPLED_EPOCH = 4, 3
LONG = 60  # seconds
_EPOCHS = 1 << 23  # told apart in a sample
STAGES = {
    # language x tier x duration, nearly as they come, better tiers a little more
    "s1": dict(
        length=8192,
        block_shards=8,
        tiers=(0.25, 0.5, 0.25),
        durations={(0, 15): 0.53, (15, LONG): 0.35, (LONG, math.inf): 0.12},
    ),
    # no low tier, and long speech is more than half of what is read
    "s3": dict(
        length=32768,
        block_shards=16,
        tiers=(0.0, 0.5, 0.5),
        durations={(0, LONG): 0.4, (LONG, math.inf): 0.6},
    ),
}


def make_stage(name: str) -> plan.Stage:
    """Pools of every language, tier and duration; their shares are multiplied."""
    facts = dict(STAGES[name])
    tiers, durations = facts.pop("tiers"), facts.pop("durations")
    languages = zip(synthetic_index.LANGUAGES, synthetic_index.LANGUAGE_SHARES)
    kinds = itertools.product(languages, zip(records.TIERS, tiers), durations.items())
    pools = tuple(
        plan.Pool(first * second * third, (language,), (tier,), *seconds)
        for (language, first), (tier, second), (seconds, third) in kinds
    )
    return plan.Stage(name=name, rows=BATCH, seed=0, pools=pools, **facts)


def prepare(job: dict) -> None:
    """Index and plan, made if they are not there."""
    found, stage = open_index(job, make=True), make_stage(job["stage"])
    plan.Plan.make(found, stage, workers=job["workers"])


def open_index(job: dict, *, make: bool):
    home = pathlib.Path(job["folder"]) / f"index-{job['shards']}-{job['rows']}"
    generated = synthetic_index.SyntheticIndex(home, job["shards"], job["rows"])
    if not job["disk"]:
        return generated
    if make and not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        generated.write(home)
    return index.open_index(home, codec=generated.codec)


def measure(job: dict) -> dict:
    """All figures; in a process of its own, so that memory and caches start empty."""
    imported = peak_gib()
    start = time.perf_counter()
    opened = plan.Plan.make(open_index(job, make=False), make_stage(job["stage"]))
    figures = dict(
        utterances=int(opened.index.rows.sum()),
        million_hours=hours(opened.index) / 1e6,
        left_out=opened.left_out,
        epoch_rows=opened.epoch_rows,
        most_items=opened.most_items,
        open_seconds=time.perf_counter() - start,
        imported_gib=imported,
        opened_gib=peak_gib(),
    )
    share = slice(0, BATCH // HOSTS)
    for name, k, rows in (
        ("host_batch_cold", STEP, share),
        ("batch_cold", STEP, None),
        ("batch_warm", STEP, None),
        ("next_batch", STEP + 1, None),
    ):
        start = time.perf_counter()
        opened.batch(k, rows)
        figures[name + "_seconds"] = time.perf_counter() - start
    figures |= dict(peak_gib=peak_gib(), planned_efficiency=opened.efficiency)
    first = STEP * BATCH
    sampled = range(first, first + job["sample_rows"])
    figures |= sample(opened, sampled) | sampled_epoch(opened)
    return figures | dict(peak_gib_with_samples=peak_gib())


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def hours(found) -> float:
    """Of all speech, from the mean of a few shards."""
    shards = np.linspace(0, len(found.shards) - 1, 16).astype(int)
    frames = np.mean([found.columns(int(shard)).frames.mean() for shard in shards])
    return float(frames / blocks.FRAMES_PER_SECOND / 3600 * found.rows.sum())


def sample(opened: plan.Plan, rows: range) -> dict:
    """Rows that follow each other: fill, shares, utterances repeated in an epoch."""
    stage, taken, seen = opened.stage, np.zeros(len(opened.stage.pools)), []
    for g in rows:
        place = opened.place(g)
        taken[place.pool] += opened.positions(g)
        items = opened.row(g)
        seen.append(utterances(items) | place.epoch % _EPOCHS << 40)
    seen = np.concatenate(seen)
    seen.sort()
    weights = np.asarray([pool.weight for pool in stage.pools])
    error = taken / taken.sum() - weights / weights.sum()
    used = weights > 0
    relative = np.abs(error[used]) * weights.sum() / weights[used]
    return dict(
        sampled_rows=len(rows),
        sampled_examples=len(seen),
        repeated=int(np.count_nonzero(seen[1:] == seen[:-1])),
        efficiency=float(taken.sum() / (len(rows) * stage.length)),
        pools=len(weights),
        smallest_weight=float(weights[used].min() / weights.sum()),
        mixture_error_points=float(100 * np.abs(error).max()),
        mixture_error_relative=float(relative.max()),
    )


def utterances(items: np.ndarray) -> np.ndarray:
    """A number of 40 bits for each utterance."""
    return items["shard"].astype(np.int64) << 20 | items["row"]


def sampled_epoch(opened: plan.Plan) -> dict:
    """Some blocks of one epoch, all pools: utterances that come twice, or never."""
    stage, epoch = opened.stage, SAMPLED_EPOCH
    all_blocks = blocks.Blocks(opened.index, stage)
    chosen = np.linspace(0, len(all_blocks) - 1, SAMPLED_BLOCKS).astype(int)
    repeated = lost = total = 0
    for block in np.unique(chosen).tolist():
        shown = [
            utterances(opened.pool_row(pool, number))
            for pool in range(len(stage.pools))
            for number in opened.block_numbers(pool, epoch, block)
        ]
        shown = np.concatenate(shown)
        round = epoch % stage.rounds
        count = all_blocks.count(round, block)
        rows = opened.index.rows[all_blocks.shards(round, block)].sum()
        expected = int(rows - sum(count.left_out.values()))
        total += expected
        repeated += len(shown) - len(np.unique(shown))
        lost += expected - len(np.unique(shown))
    return dict(epoch_sample=total, epoch_repeated=repeated, epoch_lost=lost)


def main(argv: list[str] | None = None) -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, help="where index and plan are kept")
    parser.add_argument("--stage", choices=STAGES, default="s1")
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--rows", type=int, default=SHARD_ROWS, help="of a shard")
    parser.add_argument("--disk", action="store_true", help="lengths in real files")
    parser.add_argument(
        "--sample_rows",
        type=int,
        default=4 * schedule.PERIOD,
        help="rows in which the mixture is measured",
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args(argv)
    job = vars(args)
    start = time.perf_counter()
    prepare(job)
    made = time.perf_counter() - start
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = dict(make_seconds=made, **pool.apply(measure, (job,)))
    for name, value in figures.items():
        print(
            f"{name:24} {value:.5g}"
            if isinstance(value, float)
            else f"{name:24} {value}"
        )
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(job | figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
