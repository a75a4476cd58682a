"""Packing and the mixture's schedule: everything once, rows full, shares even."""

import collections

import numpy as np
import pytest

from data.mixture import bin_packing, schedule

# ------------------------------------------------------------------------- packing


@pytest.mark.parametrize("small", ["none", "few", "many", "all"])
def test_packs_lose_nothing_and_fit(small):
    rng = np.random.default_rng(0)
    length, count = 1000, {"none": 0, "few": 5, "many": 3000, "all": 4000}[small]
    sizes = [rng.integers(1, 60, count)]
    if small != "all":
        sizes.append(rng.integers(60, length + 1, 800))
    sizes = np.concatenate(sizes)
    rows = bin_packing.assign(sizes, length, key=1)
    assert len(rows) == len(sizes)
    used = np.bincount(rows, weights=sizes)
    assert used.max() <= length and used.min() > 0  # no row without an example
    order, starts = bin_packing.gather(rows)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    for row, (start, stop) in enumerate(zip(starts, starts[1:])):
        assert (rows[order[start:stop]] == row).all()


def test_the_key_mixes_small_examples():
    sizes = np.full(1000, 10)
    one, two = (bin_packing.assign(sizes, 500, key=key) for key in (1, 2))
    assert (np.bincount(one) == 50).all() and (one != two).mean() > 0.8


# ------------------------------------------------------------------------ schedule


def test_the_schedule_is_even_and_gives_each_turn_once():
    shares = np.asarray([0.7, 0.001, 0, 0.2, 0.099])
    made = schedule.Schedule(shares, key=3)
    places = [made.place(row) for row in range(schedule.PERIOD)]
    numbers = collections.defaultdict(list)
    for pool, number in places:
        numbers[pool].append(number)
    for pool, quota in enumerate(made.quotas.tolist()):
        assert sorted(numbers[pool]) == list(range(quota))
        assert quota == pytest.approx(shares[pool] * schedule.PERIOD, abs=1)
    for start in range(0, schedule.PERIOD, 64 * schedule.WINDOW):
        window = [pool for pool, _ in places[start : start + schedule.WINDOW]]
        counts = np.bincount(window, minlength=len(shares))
        np.testing.assert_allclose(counts, shares * schedule.WINDOW, atol=2)
    again = [made.place(schedule.PERIOD + row) for row in range(2048)]
    # the next period goes on with the pools' rows, in another order
    assert min(number for pool, number in again if pool == 0) == made.quotas[0]
    assert [p for p, _ in again] != [p for p, _ in places[:2048]]


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        ([1, 1, 1], 10, [4, 3, 3]),
        ([0.5, 0, 0.5], 9, [5, 0, 4]),
        ([1e-9, 1], 100, [1, 99]),
        ([47, 16, 15.8, 12, 6.1, 3.1], 10, [4, 2, 1, 1, 1, 1]),
    ],
)
def test_largest_remainder(shares, total, expected):
    dealt = schedule.quotas(np.asarray(shares, float), total)
    assert dealt.tolist() == expected
