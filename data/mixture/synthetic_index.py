"""An index of any size without a corpus: lengths that look like speech, by hashing.

It stands in for `index.Index` where only lengths count: to try a plan for 5 million
hours, and in tests.  The shape of its distributions is this project's own choice.
"""

import dataclasses
import functools
import hashlib
import pathlib
import statistics

import numpy as np

from data import index
from data.format import lengths, records
from data.mixture import blocks, hashing
from qwen3tts_jax.config import released

LANGUAGES = tuple(released.LANGUAGES)
LANGUAGE_SHARES = (0.3, 0.3) + (0.05,) * 8
TIER_SHARES = (0.3, 0.5, 0.2)  # low, medium, high
MEDIAN_SECONDS, SIGMA = 6.5, 0.6  # of the lognormal part
SHORTEST, LONGEST = 1.0, 40.0  # seconds, of the lognormal part
TAIL, TAIL_LONGEST = 0.005, 1800.0  # share and seconds of the long recordings
IDS_PER_SECOND = 4
INSTRUCTED = 0.2
UTTERANCES_PER_VOICE = 8
ALONE = 0.1  # voices that have a single utterance
_LEVELS = 1 << 16


@dataclasses.dataclass(frozen=True)
class SyntheticIndex:
    """What `index.Index` offers, made from a seed.

    Attributes:
        home: folder in which plans are kept.
        shard_count, shard_rows: the size.
        seed: of the lengths.
    """

    home: pathlib.Path
    shard_count: int
    shard_rows: int = 65536
    seed: int = 0
    languages: tuple[str, ...] = LANGUAGES
    codec: str = records.NO_CODEC
    text_vocabulary: str = "synthetic"

    @property
    def directory(self) -> pathlib.Path:
        return self.home

    @functools.cached_property
    def shards(self) -> tuple[str, ...]:
        return tuple(f"synthetic-{i:05d}" for i in range(self.shard_count))

    @functools.cached_property
    def rows(self) -> np.ndarray:
        return np.full(self.shard_count, self.shard_rows, np.int64)

    @functools.cached_property
    def fingerprint(self) -> str:
        facts = (self.shard_count, self.shard_rows, self.seed, self.languages)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    def columns(self, shard: int) -> lengths.Columns:
        """The lengths of one shard."""
        row = np.arange(self.shard_rows)
        draws = hashing.fields(hashing.key("synthetic", self.seed, shard), row)
        frames = _frames()[draws[:, 0]]
        # 3 to 5 ids a second, at least one
        ids = frames * (IDS_PER_SECOND * (0.75 + draws[:, 1] / (2 * _LEVELS)))
        voices = max(1, self.shard_rows // UTTERANCES_PER_VOICE)
        voice = row % voices
        told = hashing.fields(
            hashing.key("voices", self.seed, shard), np.arange(voices)
        )
        mate = np.where(row + voices < self.shard_rows, row + voices, voice)
        mate[(told[:, 2] < ALONE * _LEVELS)[voice] | (mate == row)] = -1
        return lengths.Columns(
            frames=frames.astype(np.uint16),
            text=np.maximum(ids / blocks.FRAMES_PER_SECOND, 1).astype(np.uint16),
            instruct=_instruct()[draws[:, 2]],
            language=_pick(LANGUAGE_SHARES)[told[:, 0]][voice],
            tier=_pick(TIER_SHARES)[told[:, 1]][voice],
            mate=mate.astype(np.int32),
        )

    def write(self, home: pathlib.Path) -> index.Index:
        """The same lengths as an index on disk, without a corpus."""

        def count(shard: int) -> lengths.Counted:
            columns = self.columns(shard)
            values = [getattr(columns, name) for name in lengths.FIELDS]
            return lengths.Counted(
                name=self.shards[shard],
                rows=self.shard_rows,
                codec=self.codec,
                languages=list(self.languages),
                data=b"".join(value.tobytes() for value in values),
                left_out={},
            )

        counted = map(count, range(self.shard_count))
        return index.write(
            home, counted, self.shard_count, text_vocabulary=self.text_vocabulary
        )


@functools.cache
def _frames() -> np.ndarray:
    """Float32 [65536]: the frames of an utterance by its rank in length."""
    rank = (np.arange(_LEVELS) + 0.5) / _LEVELS
    normal = statistics.NormalDist(np.log(MEDIAN_SECONDS), SIGMA).inv_cdf
    body = np.exp([normal(r) for r in rank / (1 - TAIL) if r < 1])
    seconds = np.clip(body, SHORTEST, LONGEST)
    tail = np.linspace(0, 1, _LEVELS - len(body))
    tail = LONGEST * (TAIL_LONGEST / LONGEST) ** tail  # as many for each octave
    frames = np.concatenate([seconds, tail]) * blocks.FRAMES_PER_SECOND
    return np.ceil(frames).astype(np.float32)


@functools.cache
def _instruct() -> np.ndarray:
    """Uint16 [65536]: ids of the instruction, 16 to 79, for a share of utterances."""
    ids = np.zeros(_LEVELS, np.uint16)
    count = int(INSTRUCTED * _LEVELS)
    ids[:count] = 16 + np.arange(count) % 64
    return ids


@functools.cache
def _pick(shares: tuple[float, ...]) -> np.ndarray:
    """Uint8 [65536]: a kind for each draw of 16 bits."""
    ends = np.cumsum(shares)[:-1] * _LEVELS
    return np.searchsorted(ends, np.arange(_LEVELS), "right").astype(np.uint8)
