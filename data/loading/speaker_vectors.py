"""The vector of each voice of a corpus: what fine-tuning writes into a checkpoint."""

import collections
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from data import index as indices
from data.format import records

PER_SPEAKER = 100  # utterances whose mean is the voice: more change it little
READ_ROWS = 64  # records in memory at a time


def vectors(
    index: indices.Index,
    embed: Callable[[list[np.ndarray]], np.ndarray] | None,
    *,
    per_speaker: int = PER_SPEAKER,
) -> dict[str, np.ndarray]:
    """The mean vector of every voice.

    Args:
        embed: list of log-mels float16 [M, 128] -> float32 [N, D]; None takes the
            x-vectors that the records hold.
    Returns: speaker -> float32 [D], in the order in which they first appear.
    Raises: ValueError for records without what is needed, or a corpus without voices.
    """
    total, count = {}, collections.Counter()
    for batch in _batches(_wanted(index, per_speaker), READ_ROWS):
        made = _embed(batch, embed)
        for record, vector in zip(batch, made):
            total[record.speaker] = total.get(record.speaker, 0) + vector
            count[record.speaker] += 1
    if not total:
        raise ValueError(
            f"got {index.directory} without a named speaker, expected one on every "
            "record; prepare the corpus with speakers"
        )
    return {name: np.float32(vector / count[name]) for name, vector in total.items()}


def _wanted(index: indices.Index, most: int) -> Iterator[records.Record]:
    """Records with a voice, at most so many of each."""
    seen = collections.Counter()
    for name in index.shards:
        shard = records.Shard(index.directory / name)
        for start in range(0, shard.rows, READ_ROWS):
            rows = range(start, min(start + READ_ROWS, shard.rows))
            for row, data in zip(rows, shard.read(rows)):
                where = shard.name(row)
                record = records.decode(data, codec=index.codec, where=where)
                if record.speaker and seen[record.speaker] < most:
                    seen[record.speaker] += 1
                    yield record


def _batches(items: Iterator, size: int) -> Iterator[list]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _embed(batch: list[records.Record], embed) -> np.ndarray:
    name = "x_vector" if embed is None else "mel"
    missing = [record.id for record in batch if getattr(record, name) is None]
    if missing:
        raise ValueError(
            f"got records without {name}: {', '.join(missing[:3])}; prepare the corpus "
            f"with --speaker {name}"
        )
    values = [getattr(record, name) for record in batch]
    return np.stack(values).astype(np.float32) if embed is None else embed(values)
