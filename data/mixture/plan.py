"""Batch k of a training run as a pure function of (seed, stage, k).

Utterances belong to pools (language, quality tier, duration), and pools have weights.
The shards are dealt into blocks of a few random shards.  Inside a block the utterances
of a pool are packed into rows of the stage's length.  Counting those rows once, for all
blocks, is the only long work; it is kept beside the index as a small file.  Then

    row g of the run -> its pool, and which row of that pool   (schedule)
                     -> an epoch, a block and a pack in it     (two shuffles: the blocks
                                                               of an epoch, the packs of
                                                               a block)
                     -> utterances, with the layouts drawn for them

takes the same time for any g, needs no state, and does not know how many hosts or
workers there are: each asks for the rows it wants.  An epoch of a pool has each of its
utterances once.  Epoch e shows the draws of round e % rounds: other layouts, other
blocks, other neighbours in a row.

Rows of a pool that follow each other come from one block, thus from `block_shards`
shards: few files are open at a time, and a block is as mixed as that many random shards
are.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable

import numpy as np

from data.mixture import blocks, hashing, plan_cache, schedule, stages

ITEM = blocks.ITEM
STREAMING, TAGGED, INSTRUCTED, VOICED, ICL = blocks.FLAGS
Pool, Stage = stages.Pool, stages.Stage


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a row of a run is found.

    Attributes:
        pool: its number in the stage.
        epoch: how often the pool was read to its end before.
        block: whose round is epoch % rounds.
        pack: of that pool in the block.
    """

    pool: int
    epoch: int
    block: int
    pack: int


class Plan:
    """The rows and batches of a stage; can be pickled, threads may share it.

    Attributes:
        index, stage: what it was made from.
        epoch_rows: rows after which every utterance would have been shown once, if
            every pool were read at the same speed.
        efficiency: positions that hold an example, of all positions, in the mixture.
        left_out: utterances left out of the first epoch, by reason.
        most_items: utterances in the fullest row.
        fingerprint: hex, of all that decides which examples batch k has.
    """

    @classmethod
    def make(
        cls, index, stage: Stage, *, workers: int = 1, log: Callable = print
    ) -> "Plan":
        """The plan kept beside the index, or a new one, which is kept there.

        Args:
            index: `index.Index`, or what offers the same.
            workers: processes that count blocks, if it must be made.
            log: takes lines for the user.
        Raises: ValueError for a pool that has a weight but no utterance.
        """
        tables = plan_cache.load_or_make(index, stage, workers=workers, log=log)
        return cls(index, stage, tables)

    def __init__(self, index, stage: Stage, tables: plan_cache.Tables):
        self.index, self.stage, self._tables = index, stage, tables
        self.fingerprint = plan_cache.fingerprint(index, stage)
        self._packs = tables.packs.sum(axis=2, dtype=np.int64)  # [pools, rounds]
        self.left_out = dict(zip(blocks.LEFT_OUT, tables.left_out[0].tolist()))
        weights = np.asarray([pool.weight for pool in stage.pools], float)
        self._check_pools(weights)
        used = weights > 0
        capacity = self._packs.sum(axis=1) * stage.length
        positions = np.where(used, tables.positions.sum(axis=1), 1)
        shares = weights * capacity / positions  # of rows: emptier ones need more
        self.efficiency = float(weights.sum() / shares.sum())
        self.epoch_rows = int(self._packs[used, 0].sum())
        self.most_items = int(tables.most[used].max())
        self._blocks = blocks.Blocks(index, stage)
        key = self._blocks.key("schedule")
        self._schedule = schedule.Schedule(shares, key=key)
        self._lock = threading.Lock()
        size = self._blocks_in_use(shares / shares.sum())
        self._packed = functools.lru_cache(size)(self._pack)
        self._epoch = functools.lru_cache(size)(self._shuffle_blocks)
        self._order = functools.lru_cache(size)(self._shuffle_packs)

    def __reduce__(self):
        return Plan, (self.index, self.stage, self._tables)

    def _blocks_in_use(self, shares: np.ndarray) -> int:
        """How many blocks are read side by side: of each pool the current one and the
        next, and all that two windows of the schedule may reach."""
        rows = 2 * schedule.WINDOW * shares
        in_block = self._packs.sum(axis=1) / self._tables.packs[0].size
        reached = np.ceil(rows[shares > 0] / in_block[shares > 0])
        return int((2 + reached).sum())

    def _check_pools(self, weights: np.ndarray) -> None:
        empty = np.flatnonzero((weights > 0) & (self._packs.sum(axis=1) == 0))
        if len(empty):
            named = "; ".join(f"pool {i}, {self.stage.pools[i]}" for i in empty)
            others = ", ".join(f"{n} {why}" for why, n in self.left_out.items())
            raise ValueError(
                f"got stage {self.stage.name!r} with a pool that no utterance is in: "
                f"{named}; of {self.index.rows.sum()} utterances {others}, the rest "
                "in the other pools; change the pool or take it out"
            )

    def batch(self, k: int, rows: slice | range | None = None) -> list[np.ndarray]:
        """The rows of global batch k, or some of them.

        rows: which ones of the stage's `rows`, as a host's share; None for all.
        """
        if k < 0:
            raise ValueError(f"got batch {k}, expected 0 or more")
        start = k * self.stage.rows
        wanted = range(self.stage.rows)
        if isinstance(rows, slice):
            wanted = wanted[rows]
        elif rows is not None:
            wanted = [wanted[i] for i in rows]
        return [self.row(start + i) for i in wanted]

    def row(self, g: int) -> np.ndarray:
        """The examples of row g of the run: ITEM [N]."""
        return self.at(self.place(g))

    def pool_row(self, pool: int, number: int) -> np.ndarray:
        """The examples of a pool's own row `number`: ITEM [N]."""
        return self.at(self.pool_place(pool, number))

    def at(self, place: Place) -> np.ndarray:
        """The examples at a place: ITEM [N]."""
        return self._packed_at(place)[place.pack]

    def positions(self, g: int) -> int:
        """How many of the `stage.length` positions of row g hold an example."""
        place = self.place(g)
        return int(self._packed_at(place).positions[place.pack])

    def place(self, g: int) -> Place:
        """Where row g of the run is found."""
        if g < 0:
            raise ValueError(f"got row {g}, expected 0 or more")
        return self.pool_place(*self._schedule.place(g))

    def pool_place(self, pool: int, number: int) -> Place:
        """Where the pool's own row `number` is found, of all its epochs."""
        ends = np.cumsum(self._packs[pool])  # of the rounds
        cycle, number = divmod(number, int(ends[-1]))
        round = int(np.searchsorted(ends, number, "right"))
        epoch = cycle * self.stage.rounds + round
        number -= int(ends[round] - self._packs[pool, round])
        order, starts = self._epoch(pool, epoch)
        at = int(np.searchsorted(starts, number, "right")) - 1
        block, number = int(order[at]), number - int(starts[at])
        return Place(pool, epoch, block, int(self._order(pool, epoch, block)[number]))

    def block_numbers(self, pool: int, epoch: int, block: int) -> range:
        """The pool's rows that an epoch takes from a block, as `pool_place` counts."""
        cycle, round = divmod(epoch, self.stage.rounds)
        first = cycle * self._packs[pool].sum() + self._packs[pool, :round].sum()
        order, starts = self._epoch(pool, epoch)
        at = int(np.flatnonzero(order == block)[0])
        return range(int(first + starts[at]), int(first + starts[at + 1]))

    def _packed_at(self, place: Place) -> blocks.Packed:
        with self._lock:  # so that threads do not pack the same block side by side
            round = place.epoch % self.stage.rounds
            return self._packed(place.pool, round, place.block)

    def _shuffle_packs(self, pool: int, epoch: int, block: int) -> np.ndarray:
        """The order in which an epoch of a pool takes a block's packs."""
        count = int(self._tables.packs[pool, epoch % self.stage.rounds, block])
        key = self._blocks.key("pack order", pool, epoch, block)
        return hashing.permutation(key, count)

    def _shuffle_blocks(self, pool: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of blocks in an epoch of a pool, and each one's first row in it."""
        key = self._blocks.key("block order", pool, epoch)
        order = hashing.permutation(key, len(self._blocks))
        counts = self._tables.packs[pool, epoch % self.stage.rounds, order]
        return order, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def _pack(self, pool: int, round: int, block: int) -> blocks.Packed:
        packed = self._blocks.packed(pool, round, block)
        count = int(self._tables.packs[pool, round, block])
        if len(packed.starts) - 1 != count:
            raise ValueError(
                f"got {len(packed.starts) - 1} packs in block {block} of pool {pool}, "
                f"expected {count} as the plan says; the index has changed under a "
                f"running job: delete {plan_cache.path_of(self.index, self.stage)}"
            )
        return packed

    def epochs(self, g: int) -> np.ndarray:
        """Float64 [pools]: how often each pool was read after g rows."""
        rows = g / schedule.PERIOD * self._schedule.quotas
        return rows / np.maximum(self._packs.mean(axis=1), 1)
