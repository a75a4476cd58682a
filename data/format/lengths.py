"""What the index keeps of each utterance, and how it is counted from a shard."""

import collections
import dataclasses
import json
import pathlib

import numpy as np

from data.format import records
from qwen3tts_jax.text import tokenizer as text_tokenizer

MOST = np.iinfo(np.uint16).max  # frames, and ids, of one utterance

FIELDS = dict(  # in the order of the file; wide ones first keeps them aligned
    mate=np.dtype("<i4"),
    frames=np.dtype("<u2"),
    text=np.dtype("<u2"),
    instruct=np.dtype("<u2"),
    language=np.dtype("u1"),
    tier=np.dtype("u1"),
)
ROW_BYTES = sum(dtype.itemsize for dtype in FIELDS.values())
_READ_ROWS = 512  # records in memory at a time


@dataclasses.dataclass(frozen=True)
class Columns:
    """The utterances of one shard; arrays [rows].

    Attributes:
        frames: uint16.
        text: uint16, ids of the text; 0 marks an utterance that cannot be used.
        instruct: uint16, ids of the instruction with its user role, 0 for none.
        language: uint8, place in the index's languages.
        tier: uint8, place in `records.TIERS`.
        mate: int32, the voice's next row in this shard: a ring through all its rows.
            -1 where the voice is unknown or has no other row.
    """

    frames: np.ndarray
    text: np.ndarray
    instruct: np.ndarray
    language: np.ndarray
    tier: np.ndarray
    mate: np.ndarray


def unpack(raw: np.ndarray, rows: int) -> Columns:
    values, start = {}, 0
    for name, dtype in FIELDS.items():
        end = start + rows * dtype.itemsize
        values[name] = raw[start:end].view(dtype)
        start = end
    return Columns(**values)


# ---------------------------------------------------------------------- counting


@dataclasses.dataclass(frozen=True)
class Counted:
    """One shard: its columns as bytes, where languages count its own names."""

    name: str
    rows: int
    codec: str
    languages: list[str]
    data: bytes
    left_out: dict[str, int]


def marker_of(shard: pathlib.Path) -> pathlib.Path:
    return shard.with_name(shard.name.removesuffix(records.SUFFIX) + ".json")


_worker = {}  # what a worker process was started with


def start_worker(tokenizer: text_tokenizer.TextTokenizer) -> None:
    _worker["tokenizer"] = tokenizer


def count_in_worker(path: pathlib.Path) -> Counted | str:
    """`count` in a process that `start_worker` began: a tokenizer is sent once."""
    return count(path, _worker["tokenizer"])


def count(path: pathlib.Path, tokenizer: text_tokenizer.TextTokenizer) -> Counted | str:
    """Read a shard: its columns, or what is wrong with it."""
    try:
        return _read_shard(path, tokenizer)
    except (ValueError, FileNotFoundError) as error:  # RecordError is a ValueError
        return str(error)


def _read_shard(path: pathlib.Path, tokenizer: text_tokenizer.TextTokenizer) -> Counted:
    rows, codec = _read_marker(path)
    shard = records.Shard(path)
    if shard.rows != rows:
        raise ValueError(
            f"{path} holds {shard.rows} records, expected {rows} as its done-marker "
            "says; delete both and run data/prepare.py again"
        )
    columns = {name: np.zeros(rows, dtype) for name, dtype in FIELDS.items()}
    languages, voices, left_out = {}, {}, collections.Counter()
    for row, record in _decoded(shard, codec):
        columns["language"][row] = languages.setdefault(record.language, len(languages))
        columns["tier"][row] = records.TIERS.index(record.tier)
        lengths = _lengths(record, tokenizer)
        reason = _unusable(*lengths)
        if reason:
            left_out[reason] += 1
            continue
        for name, value in zip(("frames", "text", "instruct"), lengths):
            columns[name][row] = value
        if record.speaker:
            voices.setdefault(record.speaker, []).append(row)
    columns["mate"][:] = _rings(rows, voices)
    data = b"".join(values.tobytes() for values in columns.values())
    return Counted(
        name=path.name,
        rows=rows,
        codec=codec,
        languages=list(languages),
        data=data,
        left_out=left_out,
    )


def _read_marker(path: pathlib.Path) -> tuple[int, str]:
    """Rows and codec of a shard, as its done-marker says."""
    marker = marker_of(path)
    try:
        facts = json.loads(marker.read_text("utf-8"))
        schema, codebooks = facts["schema"], facts["codebooks"]
        rows, codec = facts["rows"], facts["codec"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{marker} is no done-marker ({error!r}); delete it and its shard and run "
            "data/prepare.py again"
        ) from error
    if schema != records.SCHEMA_VERSION or codebooks != records.CODEBOOKS:
        raise ValueError(
            f"{marker}: got schema version {schema} with {codebooks} codebooks, "
            f"expected {records.SCHEMA_VERSION} with {records.CODEBOOKS}; the shard is "
            "of another version or codec: encode the audio again"
        )
    return rows, codec


def _decoded(shard: records.Shard, codec: str):
    """(row, record) of a shard; whole records, so that damage shows here and not on the
    tenth day of a run."""
    for start in range(0, shard.rows, _READ_ROWS):
        rows = range(start, min(start + _READ_ROWS, shard.rows))
        for row, data in zip(rows, shard.read(rows)):
            yield row, records.decode(data, codec=codec, where=shard.name(row))


def _lengths(record: records.Record, tokenizer) -> tuple[int, int, int]:
    """Frames, text ids, instruction ids."""
    _, text = tokenizer.role_and_text_ids(record.text)
    instruct = len(tokenizer.instruct_ids(record.instruct)) if record.instruct else 0
    return len(record.codes), len(text), instruct


def _unusable(frames: int, text: int, instruct: int) -> str | None:
    if not text:
        return "no text"
    if frames > MOST:
        return f"more than {MOST} frames"
    if max(text, instruct) > MOST:
        return f"more than {MOST} ids"
    return None


def _rings(rows: int, voices: dict[str, list[int]]) -> np.ndarray:
    """Int32 [rows]: the next row of the same voice."""
    mate = np.full(rows, -1, np.int32)
    for members in voices.values():
        if len(members) > 1:
            mate[members] = np.roll(members, -1)
    return mate
