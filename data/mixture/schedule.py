"""Which pool each row of a training run is taken from.

The mixture repeats after PERIOD rows.  Within a period every pool gets its share by
largest remainder, spread evenly, so that any stretch of rows has the shares to within a
row or two; then each window of WINDOW rows is shuffled.  A row's place is found without
the rows before it.
"""

import functools

import numpy as np

from data.mixture import hashing

PERIOD = 1 << 18  # a share of 1/2000 is met within 0.4 %
WINDOW = 1 << 10


class Schedule:
    """Rows of a run -> (pool, which row of that pool), each exactly once.

    Attributes:
        quotas: int64 [pools], rows of each pool in a period.
    """

    def __init__(self, shares: np.ndarray, *, key: int):
        """shares: float [pools], of rows; not negative, of any sum; 0 is never used."""
        self.quotas = quotas(shares, PERIOD)
        pool = np.repeat(np.arange(len(self.quotas), dtype=np.int16), self.quotas)
        turn = np.concatenate([np.arange(count) for count in self.quotas])
        order = np.argsort((turn + 0.5) / self.quotas[pool], kind="stable")
        self._pool, self._turn = pool[order], turn[order].astype(np.int32)
        self._key = key
        self._shuffled = functools.lru_cache(16)(self._shuffle)

    def _shuffle(self, window: int) -> np.ndarray:
        return hashing.permutation(hashing.key(self._key, window), WINDOW)

    def place(self, row: int) -> tuple[int, int]:
        """The pool of a row, and how many rows that pool had before it."""
        window, offset = divmod(row, WINDOW)
        row = window * WINDOW + int(self._shuffled(window)[offset])
        period, offset = divmod(row, PERIOD)
        pool = int(self._pool[offset])
        return pool, period * int(self.quotas[pool]) + int(self._turn[offset])


def quotas(shares: np.ndarray, total: int) -> np.ndarray:
    """Int64 [pools]: `total` dealt out by largest remainder.

    A share that is not 0 gets at least one.
    """
    exact = shares / shares.sum() * total
    dealt = np.floor(exact).astype(np.int64)
    most = np.argsort(dealt - exact, kind="stable")[: total - dealt.sum()]
    dealt[most] += 1
    missing = (shares > 0) & (dealt == 0)
    dealt[missing] = 1
    dealt[np.argmax(dealt)] -= missing.sum()
    return dealt
