"""What a training stage reads: row length, batch, and the mixture of its utterances."""

import dataclasses
import math

from data.format import records
from data.mixture import prompt_layouts

MOST_POOLS = 1000


@dataclasses.dataclass(frozen=True)
class Pool:
    """Utterances of one kind and their weight in the mixture.

    Attributes:
        weight: share of the stage's positions, relative to the other pools' weights; 0
            keeps these utterances out.
        languages: names as in the records, "" for unknown; () for any.
        tiers: of `records.TIERS`; () for any.
        min_seconds, max_seconds: of speech; the first is inside, the second is not.
    """

    weight: float
    languages: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    min_seconds: float = 0
    max_seconds: float = math.inf

    def __post_init__(self):
        if not (0 <= self.weight < math.inf):
            raise ValueError(f"got {self}, expected a weight of 0 or more")
        if not self.min_seconds < self.max_seconds:
            raise ValueError(f"got {self}, expected min_seconds below max_seconds")
        for name in ("languages", "tiers"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"got {self}, expected a tuple of {name}")
        unknown = sorted(set(self.tiers) - set(records.TIERS))
        if unknown:
            raise ValueError(
                f"got {self}, expected tiers of {', '.join(records.TIERS)}"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage, S1 to S3 of the paper or any other.

    Attributes:
        name: part of every random choice, as is the seed.
        length: positions of a row (8,192 in S1 and S2, 32,768 in S3 of the paper).
        rows: rows of the global batch.
        seed: of all draws and shuffles.
        pools: an utterance belongs to the first one that it fits; one that fits none
            is left out.
        layouts: how utterances are shown.
        rounds: epochs that differ in layouts and packs; epoch e is as epoch e - rounds,
            in another order.  The plan takes so many times as long to make.
        block_shards: shards whose utterances are packed together.  More of them fill
            the rows of small pools better and mix better; fewer are read with less.
    """

    name: str
    length: int
    rows: int
    seed: int
    pools: tuple[Pool, ...]
    layouts: prompt_layouts.Layouts = prompt_layouts.Layouts()
    rounds: int = 1
    block_shards: int = 4

    def __post_init__(self):
        for name in ("length", "rows", "rounds", "block_shards"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"got {name} {getattr(self, name)}, expected 1 or more"
                )
        if not 0 < len(self.pools) <= MOST_POOLS:
            raise ValueError(
                f"got {len(self.pools)} pools, expected 1 to {MOST_POOLS}; one "
                "Pool(weight=1) takes all utterances"
            )
        if not any(pool.weight for pool in self.pools):
            raise ValueError("got pools of weight 0 only, expected one above 0")
