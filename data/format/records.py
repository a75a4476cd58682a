"""Records and shards: one utterance's text, codes and facts in an ArrayRecord shard.

A record is a fixed header (magic, schema version, codebooks, bits a code, frames, hash
of the codec), a JSON object with the facts, the codes, 11 bits each, and, where the
preparation kept them, a log-mel crop and an x-vector for the speaker.  11 bits hold the
2,048 codes of the 12Hz codec and take 22 bytes a frame.
"""

import dataclasses
import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

SCHEMA_VERSION = 1
CODEBOOKS = 16
CODE_BITS = 11
CODEC_HASH_BYTES = 8
TIERS = ("low", "medium", "high")  # quality: kept though marked, plain, scored well
NO_CODEC = "0" * 2 * CODEC_HASH_BYTES

SUFFIX = ".array_record"
_MAGIC = b"Q3TS"
# magic, version, codebooks, bits a code, frames, bytes of the facts, codec
_HEADER = struct.Struct(f"<4sBBHII{CODEC_HASH_BYTES}s")
_FACTS = ("id", "text", "language", "speaker", "tier", "source", "seconds", "instruct")


class RecordError(ValueError):
    """A record or shard that cannot be read as this schema says."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One utterance.

    Attributes:
        id: unique in the corpus.
        text: what is said, as written.
        language: lower case, "english"; "" where unknown.
        speaker: unique in the corpus for each voice; "" where unknown.
        tier: one of TIERS.
        source: where it comes from, "asterisk/en".
        seconds: of the trimmed recording.
        codes: uint16 [T, 16].
        instruct: a description of how it is said, or "".
        mel: float16 [M, 128], log-mel of a piece of the recording, or None.
        x_vector: float16 [D], or None.
    """

    id: str
    text: str
    language: str
    speaker: str
    tier: str
    source: str
    seconds: float
    codes: np.ndarray
    instruct: str = ""
    mel: np.ndarray | None = None
    x_vector: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Header:
    """What stands before the codes of a record: sizes, codec (hex) and the facts."""

    codebooks: int
    frames: int
    codec: str
    facts: dict
    start: int  # byte at which the codes begin


def encode(record: Record, *, codec: str) -> bytes:
    """The bytes of a record.  codec: hex, see `speech_tokenizer`'s `fingerprint`.

    Raises: RecordError for codes that are no uint16 [T, 16] below 2048, T at least 1.
    """
    codes = np.asarray(record.codes)
    if codes.ndim != 2 or codes.shape[1] != CODEBOOKS or not len(codes):
        raise RecordError(
            f"{record.id}: got codes of shape {codes.shape}, expected [T, {CODEBOOKS}] "
            "with T at least 1"
        )
    if codes.min() < 0 or codes.max() >= 1 << CODE_BITS:
        raise RecordError(
            f"{record.id}: got codes from {codes.min()} to {codes.max()}, expected 0 "
            f"to {(1 << CODE_BITS) - 1}"
        )
    if record.tier not in TIERS:
        raise RecordError(
            f"{record.id}: got tier {record.tier!r}, expected one of {', '.join(TIERS)}"
        )
    facts = {name: getattr(record, name) for name in _FACTS}
    tails = [_pack(codes)]
    for name in ("mel", "x_vector"):
        value = getattr(record, name)
        if value is not None:
            value = np.ascontiguousarray(value, np.float16)
            facts[name] = value.shape
            tails.append(value.tobytes())
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
    header = _HEADER.pack(
        _MAGIC,
        SCHEMA_VERSION,
        CODEBOOKS,
        CODE_BITS,
        len(codes),
        len(text),
        bytes.fromhex(codec),
    )
    return b"".join([header, text, *tails])


def peek(data: bytes, *, where: str = "record") -> Header:
    """What a record is about, its codes left alone.

    Raises: RecordError for bytes that are no record of this schema version, or not of
    16 codebooks.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise RecordError(
            f"{where}: got {len(data)} bytes that are no speech record; make the shard "
            "again with data/prepare.py"
        )
    _, version, codebooks, bits, frames, size, codec = _HEADER.unpack_from(data)
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{where}: got schema version {version}, expected {SCHEMA_VERSION}; make "
            "the shard again with this version's data/prepare.py"
        )
    if codebooks != CODEBOOKS or bits != CODE_BITS:
        raise RecordError(
            f"{where}: got {codebooks} codebooks of {bits} bits, expected {CODEBOOKS} "
            f"of {CODE_BITS}; the shard is of another codec: encode the audio again"
        )
    start = _HEADER.size + size
    try:
        facts = json.loads(data[_HEADER.size : start])
    except ValueError as error:
        raise RecordError(f"{where}: the facts are not JSON ({error})") from error
    return Header(codebooks, frames, codec.hex(), facts, start)


def decode(data: bytes, *, codec: str | None = None, where: str = "record") -> Record:
    """The record in some bytes.

    Args:
        codec: hex; a record of any other codec is refused.  None takes any.
        where: named in errors.
    Raises: RecordError.
    """
    header = peek(data, where=where)
    if codec is not None and header.codec != codec:
        raise RecordError(
            f"{where}: got codes of the codec {header.codec}, expected {codec}; encode "
            "the audio again with that codec, or train with the other"
        )
    facts = header.facts
    end = header.start + -(-header.frames * CODEBOOKS * CODE_BITS // 8)
    values = {}
    try:
        values["codes"] = _unpack(data[header.start : end], header.frames)
        for name in ("mel", "x_vector"):
            if name in facts:
                shape = tuple(facts[name])
                count = int(np.prod(shape))
                flat = np.frombuffer(data, np.float16, count, end)
                values[name] = flat.reshape(shape)
                end += flat.nbytes
        if end != len(data):
            raise ValueError(f"{len(data)} bytes, expected {end}")
        return Record(**{name: facts[name] for name in _FACTS}, **values)
    except (ValueError, KeyError) as error:
        raise RecordError(f"{where}: the record is damaged ({error})") from error


def _pack(codes: np.ndarray) -> bytes:
    """11 bits for each code, the highest first; the last byte is filled with zeros."""
    bits = np.unpackbits(codes.astype(">u2").reshape(-1, 1).view(np.uint8), axis=1)
    return np.packbits(bits[:, 16 - CODE_BITS :]).tobytes()


def _unpack(data: bytes, frames: int) -> np.ndarray:
    """uint16 [T, 16] of what `_pack` made.

    Eight codes fill eleven bytes, so that two codebook rows of eight are read at once.
    """
    raw = np.frombuffer(data, np.uint8).reshape(frames * CODEBOOKS // 8, CODE_BITS)
    wide = np.zeros((len(raw), CODE_BITS + 2), np.uint32)
    wide[:, :CODE_BITS] = raw
    starts = np.arange(8) * CODE_BITS
    first, shift = starts // 8, 24 - CODE_BITS - starts % 8
    joined = wide[:, first] << 16 | wide[:, first + 1] << 8 | wide[:, first + 2]
    codes = joined >> shift[None].astype(np.uint32) & (1 << CODE_BITS) - 1
    return codes.astype(np.uint16).reshape(frames, CODEBOOKS)


# ---------------------------------------------------------------------- shards


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Write a shard; it appears whole or not at all.  Returns the number of records."""
    part = path.with_name(path.name + ".part")
    count = 0
    try:
        # groups of one: any record can be read alone
        writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
        try:
            for data in records:
                writer.write(data)
                count += 1
        finally:
            writer.close()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


class Shard:
    """An open shard."""

    def __init__(self, path: Path):
        """Raises: FileNotFoundError; RecordError for a file that is no whole shard, or
        an empty one."""
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} is missing; make the index again")
        try:
            self._reader = array_record_module.ArrayRecordReader(str(path))
            rows = self._reader.num_records()
        except Exception as error:  # the library raises kinds of its own
            raise RecordError(
                f"{path} is not a whole ArrayRecord file ({error}; it has "
                f"{self.path.stat().st_size} bytes); delete it and its done-marker and "
                "run data/prepare.py again"
            ) from error
        if not rows:
            raise RecordError(
                f"{path} holds no record; delete it and its done-marker and run "
                "data/prepare.py again"
            )
        self.rows = rows

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The bytes of some rows.  Raises: RecordError for what cannot be read."""
        try:
            found = self._reader.read([int(row) for row in rows])
        except Exception as error:
            raise RecordError(
                f"{self.path}: one of the rows {list(rows)[:8]} cannot be read "
                f"({error}); delete the shard and its done-marker and run "
                "data/prepare.py again"
            ) from error
        if len(found) != len(rows):
            raise RecordError(
                f"{self.path}: got {len(found)} of the {len(rows)} rows asked for; the "
                "index is of another shard: make it again"
            )
        return found

    def name(self, row: int) -> str:
        """How errors name a row."""
        return f"{self.path} row {row}"
