"""The plan's file: made once, for one index and stage, and made again if damaged."""

import dataclasses

import numpy as np
import pytest

from data.mixture import blocks, plan, plan_cache, prompt_layouts, synthetic_index

SHARDS, ROWS = 6, 400
POOLS = (
    plan.Pool(0.5, ("chinese", "english"), max_seconds=15),
    plan.Pool(0, ("french",)),
    plan.Pool(0.3, min_seconds=2),
)
STAGE = plan.Stage(
    name="test", length=1024, rows=16, seed=1, pools=POOLS, rounds=2, block_shards=2
)


def quiet(line: str) -> None:
    pass


def make(index, stage: plan.Stage = STAGE, **changes) -> plan.Plan:
    return plan.Plan.make(index, dataclasses.replace(stage, **changes), log=quiet)


def assert_same(rows, others) -> None:
    assert len(rows) == len(others) > 0
    for one, other in zip(rows, others):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def index(tmp_path):
    return synthetic_index.SyntheticIndex(tmp_path, SHARDS, ROWS)


@pytest.fixture
def made(index):
    return make(index)


@pytest.fixture
def counting(monkeypatch):
    """Blocks counted so far, in this process."""
    calls, count = [], blocks.Blocks.count

    def noted(self, *job):
        calls.append(job)
        return count(self, *job)

    monkeypatch.setattr(blocks.Blocks, "count", noted)
    return calls


def test_a_plan_is_made_once(index, counting):
    first = make(index)
    assert len(counting) == STAGE.rounds * SHARDS // STAGE.block_shards
    pools = tuple(dataclasses.replace(p, weight=p.weight + 1) for p in POOLS)
    others = make(index), make(index, rows=3), make(index, pools=pools)
    assert len(counting) == 6
    assert_same(first.batch(2), others[0].batch(2))
    # what is in a batch is another thing there, and the fingerprint says so
    assert len({other.fingerprint for other in others}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        dict(seed=9),
        dict(name="s2"),
        dict(length=1025),
        dict(rounds=1),
        dict(block_shards=3),
        dict(pools=POOLS[:2]),
        dict(layouts=prompt_layouts.Layouts(streaming=0.4)),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_stage_has_another_plan(index, made, counting, changes):
    make(index, **changes)
    assert counting and len(list(index.home.glob("plan-*.npz"))) == 2


def test_another_index_has_another_plan(index, made, counting):
    other = dataclasses.replace(index, seed=5)
    rows = make(other).batch(0)
    assert counting
    assert not {r.tobytes() for r in rows} & {r.tobytes() for r in made.batch(0)}


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


def scramble(path):
    data = bytearray(path.read_bytes())
    middle = data.find(b"packs.npy") + 200
    data[middle : middle + 8] = b"damaged!"
    path.write_bytes(data)


def nothing(path):
    path.write_bytes(b"")


def other_content(path):
    """The plan of another stage under this one's name."""
    index = synthetic_index.SyntheticIndex(path.parent, SHARDS, ROWS)
    other = dataclasses.replace(STAGE, seed=77)
    make(index, other)
    plan_cache.path_of(index, other).replace(path)


@pytest.mark.parametrize("harm", [truncate, scramble, nothing, other_content])
def test_a_damaged_plan_is_made_again(index, harm):
    expected = make(index).batch(1)
    path = plan_cache.path_of(index, STAGE)
    whole, lines = path.read_bytes(), []
    harm(path)
    again = plan.Plan.make(index, STAGE, log=lines.append)
    assert_same(expected, again.batch(1))
    assert len(lines) == 1 and f"{path} is damaged" in lines[0]
    assert path.read_bytes() == whole
    assert not list(index.home.glob("*.part-*"))


def test_an_index_that_changes_under_a_run_is_noticed(index, made):
    class Changed(synthetic_index.SyntheticIndex):
        fingerprint = index.fingerprint

    other = Changed(index.home, SHARDS, ROWS, seed=8)
    with pytest.raises(ValueError, match="the index has changed under a running job"):
        make(other).batch(0)


def test_workers_make_the_same_plan(index, made):
    path = plan_cache.path_of(index, STAGE)
    whole = path.read_bytes()
    path.unlink()
    plan.Plan.make(index, STAGE, workers=2, log=quiet)
    assert path.read_bytes() == whole


def test_long_work_says_how_far_it_is(index, monkeypatch):
    monkeypatch.setattr(plan_cache, "_LOG_SECONDS", 0)
    lines = []
    plan.Plan.make(index, STAGE, log=lines.append)
    assert len(lines) == 6
    assert lines[2].startswith("plan of stage 'test': 3 of 6 blocks, ")
    assert lines[-1] == "plan of stage 'test': 6 of 6 blocks, 0 s left"
