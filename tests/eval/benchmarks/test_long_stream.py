"""The table of a long stream, from groups made up here."""

import pytest

from eval.benchmarks import long_stream


def group(frames, seconds, slots, memory):
    return dict(frames=frames, seconds=seconds, slots=slots, memory_gib=memory)


def test_a_row_for_every_cache_size():
    """The first two groups of a size compile, the last one may be short."""
    groups = [group(1, 9.0, 256, 1.0), group(2, 9.0, 256, 1.0)]
    groups += [group(8, 1.6, 256, 1.1)] * 5 + [group(8, 99.0, 256, 1.2)]
    groups += [group(8, 9.0, 512, 2.0)] * 2 + [group(8, 2.4, 512, 2.0)] * 3
    groups += [group(3, 0.1, 512, 2.1)]
    rows = long_stream.summary(groups, slot_bytes=1000, rate=1e6)
    assert [row["slots"] for row in rows] == [256, 512]
    assert [row["frames"] for row in rows] == [51, 43]
    assert [row["seconds_per_frame"] for row in rows] == pytest.approx([0.2, 0.3])
    assert [row["seconds_to_read_cache"] for row in rows] == [0.256, 0.512]
    assert [row["memory_gib_first"] for row in rows] == [1.1, 2.0]
    assert [row["memory_gib_last"] for row in rows] == [1.2, 2.1]


def test_too_few_groups_have_no_figure():
    [row] = long_stream.summary([group(1, 9.0, 256, 1.0)], slot_bytes=1, rate=1.0)
    assert row["seconds_per_frame"] is None and row["frames"] == 1
