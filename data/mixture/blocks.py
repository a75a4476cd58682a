"""Blocks: a few random shards, their utterances sorted into pools and packed into rows.

Both the making of a plan, which counts the packs of all blocks, and the reading of one
batch, which needs the packs of a few, come through here, so that they agree.
"""

import collections
import dataclasses
import functools

import numpy as np

from data.format import lengths, records
from data.mixture import bin_packing, hashing, prompt_layouts, stages

FRAMES_PER_SECOND = 12.5  # of the 12Hz codec

# One utterance of a pack: which layout it has (bits of flags), and which row of the
# same shard is its mate (reference or source of the voice), -1 for none.
ITEM = np.dtype([("shard", "i4"), ("row", "i4"), ("mate", "i4"), ("flags", "u1")])
FLAGS = STREAMING, TAGGED, INSTRUCTED, VOICED, ICL = 1, 2, 4, 8, 16

# Why an utterance is left out of a stage.
LEFT_OUT = NO_POOL, TOO_LONG, UNUSABLE = (
    "in no pool",
    "longer than a row",
    "no text, or too much of it",
)


@dataclasses.dataclass(frozen=True)
class Count:
    """What a block holds.

    Attributes:
        packs: int32 [pools].
        positions: int64 [pools], of all packs together.
        most: int32 [pools], utterances in the fullest pack.
        left_out: utterances by reason.
    """

    packs: np.ndarray
    positions: np.ndarray
    most: np.ndarray
    left_out: collections.Counter


@dataclasses.dataclass(frozen=True)
class Packed:
    """The packs of one pool of a block.

    Attributes:
        items: ITEM [N], pack after pack.
        starts: int64 [packs + 1], where each pack begins.
        positions: int64 [packs], how many of a row's positions each pack takes.
    """

    items: np.ndarray
    starts: np.ndarray
    positions: np.ndarray

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.items[self.starts[pack] : self.starts[pack + 1]]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of an index in a stage; index: `index.Index` or a synthetic one."""

    index: object
    stage: stages.Stage

    def __len__(self) -> int:
        return -(-len(self.index.shards) // self.stage.block_shards)

    def key(self, what: str, *numbers: int) -> int:
        return hashing.key(what, self.stage.seed, self.stage.name, *numbers)

    def shards(self, round: int, block: int) -> np.ndarray:
        """The shards of a block, int64.  Blocks differ by one shard at most."""
        count = len(self.index.shards)
        start, stop = (i * count // len(self) for i in (block, block + 1))
        return _permutation(self.key("shards", round), count)[start:stop]

    def count(self, round: int, block: int) -> Count:
        """Pack all pools of a block, and count."""
        pools, sizes, left_out = [], [], collections.Counter()
        for shard in self.shards(round, block):
            found = self._examples(round, int(shard), None)
            pools.append(found.pools)
            sizes.append(found.sizes)
            left_out.update(found.left_out)
        sizes = np.concatenate(sizes)
        order, starts = bin_packing.gather(np.concatenate(pools))
        total = np.zeros((3, len(self.stage.pools)), np.int64)
        for pool in range(len(starts) - 1):
            mine = sizes[order[starts[pool] : starts[pool + 1]]]
            if len(mine):
                members = np.bincount(self._assign(mine, pool, round, block))
                total[:, pool] = len(members), mine.sum(), members.max()
        return Count(
            packs=total[0].astype(np.int32),
            positions=total[1],
            most=total[2].astype(np.int32),
            left_out=left_out,
        )

    def packed(self, pool: int, round: int, block: int) -> Packed:
        """The packs of one pool of a block."""
        items, sizes = [], []
        for shard in self.shards(round, block):
            found = self._examples(round, int(shard), pool)
            items.append(_items(int(shard), found.drawn))
            sizes.append(found.sizes)
        sizes = np.concatenate(sizes)
        rows = self._assign(sizes, pool, round, block)
        order, starts = bin_packing.gather(rows)
        positions = np.zeros(len(starts) - 1, np.int64)
        np.add.at(positions, rows, sizes)
        return Packed(np.concatenate(items)[order], starts, positions)

    def _assign(self, sizes, pool: int, round: int, block: int) -> np.ndarray:
        key = self.key("packs", pool, round, block)
        return bin_packing.assign(sizes, self.stage.length, key=key)

    def _examples(self, round: int, shard: int, pool: int | None) -> "_Examples":
        """The utterances of a shard that are packed; of one pool, or of all."""
        stage, columns = self.stage, self.index.columns(shard)
        pools = self._pool_of(columns)
        usable = columns.text > 0
        chosen = usable & ((pools >= 0) if pool is None else (pools == pool))
        rows = np.flatnonzero(chosen)
        drawn = prompt_layouts.draw(
            stage.layouts,
            columns,
            key=prompt_layouts.shard_key(stage.seed, stage.name, round, shard),
            tagged=self._tagged,
            rows=rows,
        )
        sizes = prompt_layouts.positions(drawn, columns)
        fits = sizes <= stage.length
        left_out = {
            NO_POOL: np.count_nonzero(usable & (pools < 0)),
            TOO_LONG: np.count_nonzero(~fits),
            UNUSABLE: np.count_nonzero(~usable),
        }
        if left_out[TOO_LONG]:
            rows, sizes, drawn = rows[fits], sizes[fits], drawn.take(fits)
        return _Examples(pools[rows], sizes, drawn, left_out)

    @functools.cached_property
    def _tagged(self) -> np.ndarray:
        return self.stage.layouts.tagged(self.index.languages)

    def _pool_of(self, columns: lengths.Columns) -> np.ndarray:
        """Int16 [rows]: the pool of each utterance, -1 for none."""
        table, kinds = self._table
        _, tiers, long = table.shape
        place = kinds.take(columns.frames)
        place += columns.language.astype(np.int32) * (tiers * long)
        place += columns.tier.astype(np.int32) * long
        return table.ravel().take(place)

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Int16: pool by language, tier and kind of length, -1 for none; int32: kind of
        length by frames."""
        languages, pools = self.index.languages, self.stage.pools
        ends = {p.min_seconds for p in pools} | {p.max_seconds for p in pools}
        ends = np.asarray(sorted(ends)) * FRAMES_PER_SECOND
        kinds = np.searchsorted(ends, np.arange(lengths.MOST + 1), "right")
        shape = len(languages), len(records.TIERS), len(ends) + 1
        table = np.full(shape, -1, np.int16)
        for number in reversed(range(len(pools))):  # the first one that fits stays
            pool = pools[number]
            first = np.searchsorted(ends, pool.min_seconds * FRAMES_PER_SECOND)
            last = np.searchsorted(ends, pool.max_seconds * FRAMES_PER_SECOND)
            chosen = [languages.index(n) for n in pool.languages or languages]
            tiers = [records.TIERS.index(n) for n in pool.tiers or records.TIERS]
            table[np.ix_(chosen, tiers, range(first + 1, last + 1))] = number
        return table, kinds.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _Examples:
    pools: np.ndarray
    sizes: np.ndarray
    drawn: prompt_layouts.Drawn
    left_out: dict[str, int]


@functools.lru_cache(8)
def _permutation(key: int, count: int) -> np.ndarray:
    return hashing.permutation(key, count)


def _items(shard: int, drawn: prompt_layouts.Drawn) -> np.ndarray:
    items = np.empty(len(drawn.row), ITEM)
    items["shard"], items["row"], items["mate"] = shard, drawn.row, drawn.mate
    bits = (drawn.streaming, drawn.tagged, drawn.instructed, drawn.voiced, drawn.icl)
    items["flags"] = sum(flag * bit for flag, bit in zip(FLAGS, bits))
    return items


def check(index, stage: stages.Stage) -> None:
    """Raises: ValueError for a pool with a language that the index does not have."""
    for number, pool in enumerate(stage.pools):
        unknown = sorted(set(pool.languages) - set(index.languages))
        if unknown:
            raise ValueError(
                f"got pool {number} of stage {stage.name!r} with the languages "
                f"{', '.join(unknown)}, expected some of {', '.join(index.languages)}, "
                "which the index has; correct the name or take the pool out"
            )
