"""The plan: batch k as a pure function, nothing lost or shown twice, rows full."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from data.format import lengths, records
from data.mixture import (
    blocks,
    hashing,
    plan,
    plan_cache,
    prompt_layouts,
    schedule,
    synthetic_index,
)
from eval.benchmarks import data_scale

SHARDS, ROWS = 6, 400
POOLS = (
    plan.Pool(0.5, ("chinese", "english"), max_seconds=15),
    plan.Pool(0.2, tiers=("high",)),
    plan.Pool(0, ("french",)),  # kept out
    plan.Pool(0.3, min_seconds=2),
)
STAGE = plan.Stage(
    name="test", length=1024, rows=16, seed=1, pools=POOLS, rounds=2, block_shards=2
)


USED = np.asarray([pool.weight > 0 for pool in POOLS])
FLAG_NAMES = "streaming", "tagged", "instructed", "voiced", "icl"


def quiet(line: str) -> None:
    pass


def make(index, stage: plan.Stage = STAGE, **changes) -> plan.Plan:
    return plan.Plan.make(index, dataclasses.replace(stage, **changes), log=quiet)


@pytest.fixture
def index(tmp_path):
    return synthetic_index.SyntheticIndex(tmp_path, SHARDS, ROWS)


@pytest.fixture
def made(index):
    return make(index)


def utterances(rows) -> list[tuple[int, int]]:
    return [(i["shard"].item(), i["row"].item()) for items in rows for i in items]


def assert_same(rows, others) -> None:
    assert len(rows) == len(others) > 0
    for one, other in zip(rows, others):
        np.testing.assert_array_equal(one, other)


# ----------------------------------------------------------------- every one, once


def epochs_of(made: plan.Plan, count: int) -> dict[tuple[int, int], list]:
    """{(pool, epoch): its rows}, from row 0 of the run on, to the end of a window in
    which every pool has begun epoch `count`."""
    found, g = collections.defaultdict(list), 0
    while g % schedule.WINDOW or made.epochs(g)[USED].min() < count + 0.1:
        place = made.place(g)
        found[place.pool, place.epoch].append(made.row(g))
        g += 1
    return found


def members(index, number: int, round: int) -> set[tuple[int, int]]:
    """What an epoch of a pool should show, straight from the pool's definition."""
    tagged, found = STAGE.layouts.tagged(index.languages), set()
    for shard in range(SHARDS):
        columns = index.columns(shard)
        key = prompt_layouts.shard_key(STAGE.seed, STAGE.name, round, shard)
        drawn = prompt_layouts.draw(STAGE.layouts, columns, key=key, tagged=tagged)
        fits = prompt_layouts.positions(drawn, columns) <= STAGE.length
        for row in np.flatnonzero(fits).tolist():
            language = index.languages[columns.language[row]]
            tier = records.TIERS[columns.tier[row]]
            seconds = columns.frames[row] / 12.5
            pools = [
                language in (pool.languages or [language])
                and tier in (pool.tiers or [tier])
                and pool.min_seconds <= seconds < pool.max_seconds
                for pool in POOLS
            ]
            if any(pools) and pools.index(True) == number:
                found.add((shard, row))
    return found


def test_an_epoch_shows_every_utterance_once(index, made):
    """Three epochs, so that both rounds and the return to the first are seen."""
    found = epochs_of(made, 3)
    for pool in np.flatnonzero(USED).tolist():
        for epoch in range(3):
            expected = members(index, pool, epoch % STAGE.rounds)
            assert expected and sorted(utterances(found[pool, epoch])) == sorted(
                expected
            )
    assert not any(pool == 2 for pool, _ in found)


def test_what_is_left_out_is_counted(index, made):
    shown = sum(
        len(made.pool_row(pool, number))
        for pool in range(len(POOLS))
        for block in range(SHARDS // 2)
        for number in made.block_numbers(pool, 0, block)
    )
    assert shown + sum(made.left_out.values()) == SHARDS * ROWS
    expected = sum(len(members(index, pool, 0)) for pool in range(len(POOLS)))
    assert shown == expected
    assert made.left_out["in no pool"] > 0
    assert made.left_out["longer than a row"] > 0
    assert made.left_out["no text, or too much of it"] == 0


def test_unusable_utterances_are_left_out(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Holes(synthetic_index.SyntheticIndex):
        def columns(self, shard):
            columns = super().columns(shard)
            columns.text[:7] = 0
            return columns

    made = make(Holes(tmp_path, 2, 50), pools=(plan.Pool(1),), length=8192)
    assert made.left_out["no text, or too much of it"] == 14
    shown = utterances(made.pool_row(0, n) for n in made.block_numbers(0, 0, 0))
    assert shown and min(row for _, row in shown) == 7


def test_items_carry_the_draws_and_fit(index, made):
    """Flags, mates and lengths of a row's items, drawn again straight from layouts."""
    tagged = STAGE.layouts.tagged(index.languages)
    for g in range(0, 300, 7):
        place, total = made.place(g), 0
        for item in made.row(g):
            shard, row = int(item["shard"]), int(item["row"])
            round = place.epoch % STAGE.rounds
            key = prompt_layouts.shard_key(STAGE.seed, STAGE.name, round, shard)
            columns = index.columns(shard)
            drawn = prompt_layouts.draw(
                STAGE.layouts, columns, key=key, tagged=tagged, rows=np.asarray([row])
            )
            total += int(prompt_layouts.positions(drawn, columns)[0])
            assert item["mate"] == drawn.mate[0]
            for flag, name in zip(blocks.FLAGS, FLAG_NAMES):
                assert bool(item["flags"] & flag) == getattr(drawn, name)[0]
        assert total == made.positions(g) <= STAGE.length


def test_rounds_differ_and_come_back(made):
    numbers = [made.block_numbers(0, epoch, 1) for epoch in range(3)]
    rows = [[made.pool_row(0, n) for n in some] for some in numbers]
    as_sets = [{items.tobytes() for items in some} for some in rows]
    assert as_sets[0] == as_sets[2] and not as_sets[0] & as_sets[1]
    assert [r.tobytes() for r in rows[0]] != [r.tobytes() for r in rows[2]]


# -------------------------------------------------------------- a pure function of k


def test_hosts_share_a_batch(made):
    for k in (0, 3, 10_000_000):
        whole = made.batch(k)
        for hosts in (1, 2, 4, 16):
            share = 16 // hosts
            parts = [
                made.batch(k, range(h * share, (h + 1) * share)) for h in range(hosts)
            ]
            assert_same(whole, [row for part in parts for row in part])
        assert_same(whole[3:9:2], made.batch(k, slice(3, 9, 2)))


def test_any_batch_is_the_same_without_those_before(index, made):
    """As after a restart, and in a worker process that gets the plan sent."""
    in_order = [made.batch(k) for k in range(40)]
    for k in (39, 0, 17):
        assert_same(in_order[k], make(index).batch(k))
        assert_same(in_order[k], pickle.loads(pickle.dumps(made)).batch(k))


def test_threads_share_a_plan(index, made):
    alone = make(index)
    expected = [alone.row(g) for g in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert_same(expected, list(pool.map(made.row, range(200))))


def test_seed_and_name_change_everything(index, made):
    for changes in (dict(seed=2), dict(name="other")):
        other = make(index, **changes)
        assert other.fingerprint != made.fingerprint
        rows = {items.tobytes() for items in made.batch(0)}
        assert not rows & {items.tobytes() for items in other.batch(0)}


def test_the_plan_of_this_version_stays_as_it_is(tmp_path):
    """A change here breaks the resuming of runs: then raise `plan_cache.VERSION`."""
    made = make(Arithmetic(tmp_path, 6, 300))
    digest = hashlib.sha256()
    for g in [*range(100), 10**9]:
        digest.update(made.row(g).astype(plan.ITEM).tobytes())
    assert (plan_cache.VERSION, digest.hexdigest()[:16]) == GOLDEN


GOLDEN = (1, "cf51dfca8477ea3b")


class Arithmetic(synthetic_index.SyntheticIndex):
    """Lengths from whole numbers alone, the same on every machine."""

    def columns(self, shard: int) -> lengths.Columns:
        draws = hashing.fields(shard, np.arange(self.shard_rows)).astype(np.int64)
        row = np.arange(self.shard_rows)
        values = dict(
            frames=20 + draws[:, 0] % 300,
            text=5 + draws[:, 1] % 80,
            instruct=draws[:, 2] % 3 * 20,
            language=draws[:, 3] % 10,
            tier=draws[:, 3] // 16 % 3,
            mate=np.where(row % 9, (row + 9) % self.shard_rows, -1),
        )
        types = lengths.FIELDS.items()
        return lengths.Columns(**{name: values[name].astype(t) for name, t in types})


@pytest.mark.parametrize("g", [-1, -(10**6)])
def test_negative_numbers_are_refused(made, g):
    with pytest.raises(ValueError, match=f"row {g}, expected 0 or more"):
        made.row(g)
    with pytest.raises(ValueError, match=f"batch {g}, expected 0 or more"):
        made.batch(g)


# ------------------------------------------------------------------------- mixture


def test_shares_of_positions_are_the_weights(tmp_path):
    """Pools that fill their rows differently, and are small and large."""
    index = synthetic_index.SyntheticIndex(tmp_path, 8, 4000)
    pools = (
        plan.Pool(0.02, max_seconds=3),
        plan.Pool(0.38, min_seconds=20),
        plan.Pool(3, ("english",)),  # weights need not sum to one
        plan.Pool(0.6),
    )
    made = make(index, pools=pools, length=2048)
    taken, rows = np.zeros(len(pools)), range(10**6, 10**6 + 30_000)
    for g in rows:
        taken[made.place(g).pool] += made.positions(g)
    weights = np.asarray([pool.weight for pool in pools])
    shares = taken / taken.sum()
    np.testing.assert_allclose(shares, weights / weights.sum(), rtol=0.01)
    assert taken.sum() / (len(rows) * 2048) == pytest.approx(made.efficiency, rel=1e-3)


# ------------------------------------------------------------------------- packing


@pytest.mark.parametrize(
    ("length", "pools", "share"),
    [
        (8192, (plan.Pool(1),), 0.98),
        (32768, (plan.Pool(0.5, min_seconds=60), plan.Pool(0.5)), 0.98),
        (8192, (plan.Pool(0.1, min_seconds=60), plan.Pool(0.9)), 0.97),
    ],
    ids=["natural", "long speech", "long speech in short rows"],
)
def test_rows_are_full(tmp_path, length, pools, share):
    """One block of four shards as large as real ones."""
    index = synthetic_index.SyntheticIndex(tmp_path, 4, 32768)
    made = make(index, pools=pools, length=length, rounds=1, block_shards=4)
    assert made.efficiency > share
    assert made.most_items < length // 64


# ----------------------------------------------------------------- small and wrong


def test_eight_utterances_will_do(tmp_path):
    made = make(
        synthetic_index.SyntheticIndex(tmp_path, 1, 8),
        pools=(plan.Pool(1),),
        length=32768,
    )
    everyone = [(0, row) for row in range(8)]
    assert made.epoch_rows == 1
    for items in made.batch(0) + made.batch(7):
        assert sorted(utterances([items])) == everyone


def test_shards_are_shared_out_evenly(tmp_path):
    """Five shards in blocks of at most four: three and two, each once in a round."""
    stage = dataclasses.replace(STAGE, block_shards=4)
    some = blocks.Blocks(synthetic_index.SyntheticIndex(tmp_path, 5, 10), stage)
    for round in range(2):
        found = [some.shards(round, block).tolist() for block in range(len(some))]
        assert sorted(map(len, found)) == [2, 3]
        assert sorted(sum(found, [])) == list(range(5))


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        (
            (plan.Pool(1), plan.Pool(2, min_seconds=60)),  # the first takes everything
            r"a pool that no utterance is in: pool 1, Pool\(weight=2, .*take it out",
        ),
        (
            (plan.Pool(1, min_seconds=200),),  # too long for a row
            r"pool 0, .*of 2400 utterances \d+ in no pool, [1-9]\d* longer than a row",
        ),
        (
            (plan.Pool(1, ("english", "klingon")),),
            "pool 0 of stage 'test' with the languages klingon, expected some of chin",
        ),
    ],
)
def test_a_pool_that_can_have_nothing_is_named(index, pools, message):
    with pytest.raises(ValueError, match=message):
        make(index, pools=pools)


def test_an_empty_pool_without_weight_is_fine(index):
    made = make(index, pools=(plan.Pool(1), plan.Pool(0, min_seconds=60)))
    assert {made.place(g).pool for g in range(100)} == {0}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: plan.Pool(-1), "a weight of 0 or more"),
        (lambda: plan.Pool(float("nan")), "a weight of 0 or more"),
        (lambda: plan.Pool(1, tiers=("best",)), "expected tiers of low, medium, high"),
        (lambda: plan.Pool(1, "english"), "expected a tuple of languages"),
        (lambda: plan.Pool(1, min_seconds=5, max_seconds=5), "min_seconds below max"),
        (lambda: dataclasses.replace(STAGE, rows=0), "rows 0, expected 1 or more"),
        (lambda: dataclasses.replace(STAGE, pools=()), "0 pools, expected 1 to"),
        (
            lambda: dataclasses.replace(STAGE, pools=(plan.Pool(0),)),
            "pools of weight 0 only",
        ),
    ],
)
def test_bad_stages_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --------------------------------------------------------------------------- scale


def test_the_simulation_shows_its_figures(tmp_path):
    """The short form of the run at 5 million hours; the promises hold there too."""
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "eval.benchmarks.data_scale", "--disk", "--folder"]
    command += [str(tmp_path), "--shards", "8", "--rows", "16384"]
    command += ["--sample_rows", "2000", "--out", str(out)]
    root = data_scale.__file__.removesuffix("eval/benchmarks/data_scale.py")
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    figures = json.loads(out.read_text())
    assert figures["utterances"] == 8 * 16384
    assert figures["repeated"] == figures["epoch_repeated"] == 0
    assert figures["epoch_lost"] == 0 and figures["epoch_sample"] > 100_000
    assert figures["efficiency"] > 0.9  # small pools of few shards are less full
    assert figures["mixture_error_points"] < 0.5
    assert figures["open_seconds"] < 30 and figures["opened_gib"] < 4
