"""Records and shards: what goes in comes out, and damage is found and named."""

import dataclasses
import struct

import numpy as np
import pytest

from data.format import records

CODEC, OTHER = "0123456789abcdef", "fedcba9876543210"


def record(frames: int = 5, **facts) -> records.Record:
    rng = np.random.default_rng(frames)
    codes = rng.integers(0, 2048, (frames, 16)).astype(np.uint16)
    given = dict(
        id="a/1",
        text="Über das Wasser, 水の上で.",
        language="german",
        speaker="s",
        tier="high",
        source="test",
        seconds=frames * 0.08,
        codes=codes,
    )
    return records.Record(**given | facts)


def same(a: records.Record, b: records.Record) -> bool:
    pairs = [
        (getattr(a, f.name), getattr(b, f.name))
        for f in dataclasses.fields(records.Record)
    ]
    return all(type(x) is type(y) and np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("frames", [1, 2, 3, 125])
def test_what_goes_in_comes_out(frames):
    given = record(frames)
    found = records.decode(records.encode(given, codec=CODEC), codec=CODEC)
    assert same(given, found)
    assert found.codes.dtype == np.uint16


def test_the_extremes_of_a_code_survive():
    codes = np.zeros((3, 16), np.uint16)
    codes[::2, ::3] = 2047
    found = records.decode(records.encode(record(codes=codes), codec=CODEC))
    assert np.array_equal(found.codes, codes)


def test_mel_and_x_vector_come_back():
    rng = np.random.default_rng(0)
    given = record(
        mel=rng.standard_normal((7, 128)).astype(np.float16),
        x_vector=rng.standard_normal(64).astype(np.float16),
        instruct="whispering",
    )
    assert same(given, records.decode(records.encode(given, codec=CODEC)))


def test_a_frame_takes_22_bytes():
    short, long = (
        len(records.encode(record(n, seconds=1.0), codec=CODEC)) for n in (8, 18)
    )
    assert long - short == 10 * 22


def test_peek_tells_the_facts_and_leaves_the_codes():
    header = records.peek(records.encode(record(9), codec=CODEC))
    assert (header.frames, header.codebooks, header.codec) == (9, 16, CODEC)
    assert header.facts["language"] == "german"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(codes=np.zeros((0, 16), np.uint16)), "T at least 1"),
        (dict(codes=np.zeros((4, 17), np.uint16)), r"\[4, 17\]|\(4, 17\)"),
        (dict(codes=np.full((4, 16), 2048)), "0 to 2047"),
        (dict(codes=np.full((4, 16), -1)), "from -1"),
        (dict(tier="best"), "'best'"),
    ],
)
def test_what_is_no_record_is_not_written(change, message):
    with pytest.raises(records.RecordError, match=message):
        records.encode(record(**change), codec=CODEC)


def test_another_codec_is_refused():
    data = records.encode(record(), codec=OTHER)
    with pytest.raises(records.RecordError, match=f"shard row 3.*{OTHER}.*{CODEC}"):
        records.decode(data, codec=CODEC, where="shard row 3")


@pytest.mark.parametrize(
    "at, value, message",
    [
        (0, b"RIFF", "no speech record"),
        (4, b"\x09", "schema version 9"),
        (5, b"\x11", "17 codebooks"),
        (6, struct.pack("<H", 12), "12 bits"),
    ],
)
def test_another_format_is_refused(at, value, message):
    data = bytearray(records.encode(record(), codec=CODEC))
    data[at : at + len(value)] = value
    with pytest.raises(records.RecordError, match=message):
        records.decode(bytes(data))


def test_a_record_that_breaks_off_is_refused_wherever_it_does():
    data = records.encode(record(mel=np.zeros((6, 128), np.float16)), codec=CODEC)
    for size in range(0, len(data), 37):
        with pytest.raises(records.RecordError):
            records.decode(data[:size])
    with pytest.raises(records.RecordError, match="damaged"):
        records.decode(data + b"\0")


# ----------------------------------------------------------------------- shards


def test_a_shard_gives_any_row(tmp_path):
    given = [record(n, id=str(n)) for n in range(1, 40)]
    path = tmp_path / f"s{records.SUFFIX}"
    data = [records.encode(r, codec=CODEC) for r in given]
    assert records.write_shard(path, data) == 39
    shard = records.Shard(path)
    assert shard.rows == 39
    assert shard.read([38, 0, 7]) == [data[38], data[0], data[7]]
    assert shard.name(7) == f"{path} row 7"
    with pytest.raises(records.RecordError):
        shard.read([39])


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield records.encode(record(), codec=CODEC)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        records.write_shard(tmp_path / f"s{records.SUFFIX}", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_shard_is_refused(tmp_path):
    path = tmp_path / f"s{records.SUFFIX}"
    with pytest.raises(FileNotFoundError, match="make the index again"):
        records.Shard(path)
    records.write_shard(path, [])
    with pytest.raises(records.RecordError, match="no record"):
        records.Shard(path)
    records.write_shard(path, [records.encode(record(), codec=CODEC)])
    path.write_bytes(path.read_bytes()[:-100])
    # the library finds no end, and so no records or no file
    with pytest.raises(records.RecordError, match="delete it and its done-marker"):
        records.Shard(path)
    path.write_bytes(b"RIFF" * 99)
    with pytest.raises(records.RecordError, match="delete it and its done-marker"):
        records.Shard(path)
