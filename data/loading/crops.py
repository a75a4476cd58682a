"""Crops of waves for codec training: batch k is a function of (seed, k).

A crop begins at a frame of the codec, so that the teacher's frames fit it.  Every frame
of a pool is as likely as any other to be where a crop begins.  Where a clip ends before
the crop, the next clip of the shard follows: many recordings are shorter than a second,
and silence in their place would teach nothing.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from data import waves
from data.mixture import hashing
from data.preparation import shards

MEASURED = 20_000  # frames of the teacher from which its mean and deviation are taken
QUIET = 1e-4  # least deviation of a channel: one that never changes stays near 0
MOST = 0.99  # of full scale: a gain does not lift a crop beyond


@dataclasses.dataclass(frozen=True)
class Pool:
    """A share of the crops, from the clips whose source a pattern finds first."""

    weight: float
    sources: str = ""


class Waves:
    """The shards of one folder, or several, as one list of clips."""

    def __init__(self, directories: Sequence[str | Path]):
        """Raises: FileNotFoundError, ValueError for folders without finished shards or
        with different teachers."""
        folders = [s for d in directories for s in waves.shards(Path(d))]
        if not folders:
            raise FileNotFoundError(
                f"got {', '.join(map(str, directories))}, expected folders that "
                "`python -m data.waves` has filled; make one, or check the path"
            )
        settings = [waves.read_json(Path(d) / shards.SETTINGS) for d in directories]
        teachers = {(s["teacher"], s["teacher_dim"]) for s in settings}
        if len(teachers) > 1:
            raise ValueError(
                f"got folders of different teachers ({teachers}), expected one; make "
                "them again with the same --teacher"
            )
        [(self.teacher, self.teacher_dim)] = teachers
        self._wave = [np.load(f / "wave.npy", mmap_mode="r") for f in folders]
        self._teacher = []
        if self.teacher_dim:
            self._teacher = [np.load(f / "teacher.npy", mmap_mode="r") for f in folders]
            self._mean, self._deviation = _spread(self._teacher)
        tables = [np.load(f / "clips.npy") for f in folders]
        markers = [waves.read_json(f / waves.MARKER) for f in folders]
        self.shard = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
        self.clips = np.concatenate(tables)
        self.sources = [s for m in markers for s in m["sources"]]
        self.ids = [i for m in markers for i in m["ids"]]
        said = repr([(m["ids"], m["frames"]) for m in markers]) + repr(settings)
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()[:16]

        self.lengths = [len(wave) // waves.FRAME for wave in self._wave]

    def clip(self, number: int, frames: int) -> dict[str, np.ndarray]:
        """A clip from its start, followed by silence; as `window`."""
        row, shard = self.clips[number], int(self.shard[number])
        count = min(int(row["frames"]), frames)
        return self._read(shard, int(row["start"]), count, frames)

    def window(self, shard: int, start: int, frames: int) -> dict[str, np.ndarray]:
        """Some frames of a shard, whatever clips they are of; silence after its end.

        Returns: wave float32 [frames * 1920]; with a teacher also teacher float16
            [frames, D], each channel with mean 0 and deviation 1 over the corpus, and
            frames int32 [], how many are no silence of that kind.
        """
        count = min(self.lengths[shard] - start, frames)
        return self._read(shard, start, count, frames)

    def _read(self, shard: int, start: int, count: int, frames: int) -> dict:
        wave = np.zeros(frames * waves.FRAME, np.float32)
        samples = self._wave[shard][start * waves.FRAME : (start + count) * waves.FRAME]
        wave[: len(samples)] = samples.astype(np.float32) / waves.PCM
        found = dict(wave=wave)
        if self.teacher_dim:
            heard = np.zeros((frames, self.teacher_dim), np.float16)
            said = self._teacher[shard][start : start + count].astype(np.float32)
            heard[:count] = (said - self._mean) / self._deviation
            found |= dict(teacher=heard, frames=np.int32(count))
        return found


def _spread(teacher: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Float32 [D] mean and deviation of each channel, over frames of all shards.

    Without this, states of unrelated frames have a cosine of 0.25 (Whisper base): what
    they share would be learnt first.
    """
    total = sum(len(part) for part in teacher)
    every = max(total // MEASURED, 1)
    found = np.concatenate([part[::every] for part in teacher]).astype(np.float32)
    return found.mean(axis=0), np.maximum(found.std(axis=0), QUIET)


class Crops:
    """Batches of random crops; `crops[k]` is batch k, as dicts of [rows, ...]."""

    def __init__(
        self,
        found: Waves,
        *,
        seed: int,
        steps: int,
        rows: int,
        frames: int,
        pools: tuple[Pool, ...] = (Pool(1.0),),
        gain_db: tuple[float, float] = (0.0, 0.0),
        host: int = 0,
        hosts: int = 1,
    ):
        """
        Args:
            rows: of the whole batch; this host makes rows [host * n, (host + 1) * n).
            frames: of a crop.
            gain_db: range from which the level of each crop is drawn.
        Raises: ValueError for a pool without clips.
        """
        self.found, self.steps, self.rows, self.frames = found, steps, rows, frames
        self.seed, self.gain_db = seed, gain_db
        share = rows // hosts
        self._mine = range(host * share, (host + 1) * share)
        first = [
            next((i for i, p in enumerate(pools) if re.search(p.sources, s)), -1)
            for s in found.sources
        ]
        self._clips = [np.flatnonzero(np.array(first) == i) for i in range(len(pools))]
        for pool, clips in zip(pools, self._clips):
            if not len(clips):
                known = ", ".join(sorted(set(found.sources)))
                raise ValueError(
                    f"got the pool {pool.sources!r}, which finds none of the sources "
                    f"that no pool before it took; there are {known}"
                )
        self._ends = [np.cumsum(found.clips["frames"][c]) for c in self._clips]
        weights = np.array([p.weight for p in pools], np.float64)
        self._shares = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        rows = [self._row(number * self.rows + i) for i in self._mine]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, number: int) -> dict[str, np.ndarray]:
        which, where, gain = (
            float(
                hashing.bits(hashing.key("crop", name, self.seed), np.array([number]))[
                    0
                ]
            )
            / 2.0**64
            for name in ("pool", "frame", "gain")
        )
        pool = min(int(np.searchsorted(self._shares, which, "right")), self._last)
        ends = self._ends[pool]
        frame = min(int(where * ends[-1]), int(ends[-1]) - 1)
        place = int(np.searchsorted(ends, frame, "right"))
        clip = int(self._clips[pool][place])
        row, shard = self.found.clips[clip], int(self.found.shard[clip])
        start = int(row["start"]) + int(row["frames"]) - (int(ends[place]) - frame)
        start = max(min(start, self.found.lengths[shard] - self.frames), 0)
        row = self.found.window(shard, start, self.frames)
        low, high = self.gain_db
        scale = 10 ** ((low + gain * (high - low)) / 20)
        peak = float(np.abs(row["wave"]).max(initial=1e-9))
        row["wave"] *= np.float32(min(scale, max(MOST / peak, 1.0)))
        return row

    @property
    def _last(self) -> int:
        return len(self._shares) - 1


def loader(crops: Crops, start: int = 0, *, buffer: int = 4) -> Iterator[dict]:
    """Read batches ahead in a thread, from number `start` on, in order."""
    if start >= len(crops):
        return iter(())
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer)
    return iter(grain.MapDataset.source(crops)[start:].to_iter_dataset(options))
