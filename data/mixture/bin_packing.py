"""Packing: examples of known length into rows of one length, almost full.

Large examples go first, each into the fullest row that still takes it (best fit
decreasing).  The many small ones follow in random order: they fill the gaps of those
rows and then fresh rows, each until the next one does not fit.  So most rows are a
random sample, and what stays empty is about half a small example.
"""

import bisect

import numpy as np

from data.mixture import hashing

SMALL = 16  # an example is small up to a sixteenth of the row


def assign(sizes: np.ndarray, length: int, *, key: int) -> np.ndarray:
    """Put every example into a row.

    Args:
        sizes: int [N], positions, each from 1 to `length`.
        length: positions a row.
        key: orders the small examples.
    Returns: int64 [N], the row of each example; rows are numbered from 0 without holes.
    """
    order = hashing.permutation(key, len(sizes))
    shuffled = sizes[order]
    large = shuffled * SMALL > length
    rows = np.empty(len(sizes), np.int64)
    rows[order[large]], gaps = _best_fit(shuffled[large], length)
    rows[order[~large]] = _next_fit(shuffled[~large], length, gaps)
    return rows


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, list[int]]:
    """Best fit decreasing.  Returns: the row of each, and the gap of each row.

    `opened` holds gap * 2**32 + row, sorted, of the rows that can take one more.
    """
    order = np.argsort(-sizes, kind="stable")
    smallest = int(sizes.min()) if len(sizes) else 0
    rows, gaps, opened = [], [], []
    for size in sizes[order].tolist():
        found = bisect.bisect_left(opened, size << 32)
        if found < len(opened):
            row = opened.pop(found) & 0xFFFFFFFF
            gaps[row] -= size
        else:
            row = len(gaps)
            gaps.append(length - size)
        rows.append(row)
        if gaps[row] >= smallest:
            bisect.insort(opened, gaps[row] << 32 | row)
    placed = np.empty(len(sizes), np.int64)
    placed[order] = rows
    return placed, gaps


def _next_fit(sizes: np.ndarray, length: int, gaps: list[int]) -> np.ndarray:
    """Each row takes the next examples until one does not fit: the row of each."""
    ends = np.cumsum(sizes)
    counts, start, used = [], 0, 0
    while start < len(sizes):
        room = gaps[len(counts)] if len(counts) < len(gaps) else length
        stop = int(ends.searchsorted(used + room, "right"))
        counts.append(stop - start)
        if stop > start:
            start, used = stop, int(ends[stop - 1])
    return np.repeat(np.arange(len(counts)), counts)


def gather(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort examples by their row.

    Returns: int64 [N], the examples, row after row; int64 [rows + 1], where each row
    begins in it.
    """
    number = np.arange(len(rows), dtype=np.int64)
    order = np.sort(rows.astype(np.int64) << 32 | number) & 0xFFFFFFFF
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    return order, starts
