"""The length index: what it says of real shards, and all ways to be wrong."""

import json
import pickle

import numpy as np
import pytest

from data import index
from data.format import lengths, records
from data.mixture import synthetic_index
from qwen3tts_jax.text import tokenizer as text_tokenizer

CODEC, OTHER = "0123456789abcdef", "fedcba9876543210"
ROWS = 12
LANGUAGES = ("english", "chinese", "")


def record(shard: int, row: int, **changes) -> records.Record:
    """Shard 1 has one language that shard 0 does not."""
    frames = 3 + (7 * row + shard) % 40
    facts = dict(
        id=f"{shard}/{row}",
        text=f"Number {row} of shard {shard}" + "!" * row,
        language=LANGUAGES[row % 2 + (shard > 0)],
        speaker=("ann", "bob", "", "cat")[row % 4] if row < 11 else "alone",
        tier=records.TIERS[row % 3],
        source="test",
        seconds=frames / 12.5,
        codes=np.random.default_rng([shard, row]).integers(0, 2048, (frames, 16)),
        instruct="Softly." if row % 5 == 0 else "",
    )
    return records.Record(**facts | changes)


def encoded(shard: int, codec: str = CODEC, rows: int = ROWS) -> list[bytes]:
    return [records.encode(record(shard, row), codec=codec) for row in range(rows)]


def path_of(corpus, shard: int):
    return corpus / f"shard-{shard:05d}{records.SUFFIX}"


def write_shard(corpus, shard: int, data: list[bytes], **changes) -> None:
    records.write_shard(path_of(corpus, shard), data)
    facts = dict(schema=1, codec=CODEC, codebooks=16, rows=len(data))
    marker = path_of(corpus, shard).with_suffix(".json")
    marker.write_text(json.dumps(facts | changes))


def quiet(line: str) -> None:
    pass


@pytest.fixture
def corpus(tmp_path):
    for shard in range(3):
        write_shard(tmp_path, shard, encoded(shard))
    return tmp_path


@pytest.fixture
def indexed(corpus, tokenizer):
    index.build(corpus, tokenizer, log=quiet)
    return corpus


# ------------------------------------------------------------------------- contents


def test_columns_say_what_the_records_hold(corpus, tokenizer):
    made = index.build(corpus, tokenizer, log=quiet)
    assert made.shards == tuple(path_of(corpus, shard).name for shard in range(3))
    assert made.directory == corpus and made.rows.tolist() == [ROWS] * 3
    assert sorted(made.languages) == sorted(LANGUAGES) and made.codec == CODEC
    for shard in range(3):
        columns = made.columns(shard)
        for row in range(ROWS):
            one = record(shard, row)
            _, text = tokenizer.role_and_text_ids(one.text)
            told = tokenizer.instruct_ids(one.instruct) if one.instruct else []
            assert columns.frames[row] == len(one.codes)
            assert columns.text[row] == len(text)
            assert columns.instruct[row] == len(told)
            assert made.languages[columns.language[row]] == one.language
            assert records.TIERS[columns.tier[row]] == one.tier


def test_mates_go_round_a_voice(indexed):
    mate = index.open_index(indexed, codec=CODEC).columns(0).mate
    voices = [0, 4, 8], [1, 5, 9], [3, 7]
    for members in voices:
        assert mate[members].tolist() == [*members[1:], members[0]]
    unknown_or_alone = [2, 6, 10, 11]
    assert (mate[unknown_or_alone] == -1).all()


def test_what_cannot_be_spoken_is_left_out_and_counted(corpus, tokenizer, monkeypatch):
    data = encoded(1)
    data[4] = records.encode(record(1, 4, text=""), codec=CODEC)
    write_shard(corpus, 1, data)
    monkeypatch.setattr(lengths, "MOST", 40)
    made = index.build(corpus, tokenizer, log=quiet)
    long = sum(len(record(s, r).codes) > 40 for s in range(3) for r in range(ROWS))
    assert long and made.left_out == {"no text": 1, "more than 40 frames": long}
    columns = made.columns(1)
    assert columns.text[4] == columns.frames[4] == 0
    # and nobody takes its voice from there
    assert columns.mate[[0, 8]].tolist() == [8, 0] and columns.mate[4] == -1


def test_workers_make_the_same_index(indexed, tokenizer):
    one = index.open_index(indexed, codec=CODEC)
    columns = (one.home / "columns.bin").read_bytes()
    two = index.build(indexed, tokenizer, workers=2, log=quiet)
    assert two.fingerprint == one.fingerprint
    assert (two.home / "columns.bin").read_bytes() == columns


def test_an_index_can_be_sent_to_a_process(indexed):
    opened = index.open_index(indexed, codec=CODEC)
    opened.columns(0)
    sent = pickle.loads(pickle.dumps(opened))
    assert sent.fingerprint == opened.fingerprint
    np.testing.assert_array_equal(sent.columns(2).text, opened.columns(2).text)


def test_the_fingerprint_follows_the_lengths(indexed, tokenizer):
    before = index.open_index(indexed, codec=CODEC).fingerprint
    data = encoded(2)
    data[0] = records.encode(record(2, 0, text="Another text"), codec=CODEC)
    write_shard(indexed, 2, data)
    assert index.build(indexed, tokenizer, log=quiet).fingerprint != before


def test_every_form_of_a_vocabulary_has_one_hash(tokenizer, whole_dir):
    whole = text_tokenizer.TextTokenizer.from_directory(whole_dir)
    assert index.vocabulary_hash(whole) == index.vocabulary_hash(tokenizer)
    whole = text_tokenizer.TextTokenizer.from_directory(whole_dir)
    whole.backend.add_tokens(["<|one more|>"])
    assert index.vocabulary_hash(whole) != index.vocabulary_hash(tokenizer)


def test_a_synthetic_index_can_be_kept_on_disk(tmp_path):
    made = synthetic_index.SyntheticIndex(tmp_path / "index", 3, 500, seed=4)
    opened = made.write(tmp_path / "index")
    assert opened.languages == made.languages and opened.rows.tolist() == [500] * 3
    for shard in range(3):
        for name, values in vars(made.columns(shard)).items():
            found = getattr(opened.columns(shard), name)
            assert found.dtype == lengths.FIELDS[name] == values.dtype
            np.testing.assert_array_equal(found, values)


# --------------------------------------------------------------------- bad corpora


def cut(corpus, shard: int) -> None:
    data = path_of(corpus, shard).read_bytes()
    path_of(corpus, shard).write_bytes(data[: len(data) // 2])


def flip(corpus, shard: int) -> None:
    """Damage in the middle of the records, the file's own index intact."""
    data = bytearray(path_of(corpus, shard).read_bytes())
    data[1000:1016] = bytes(16)
    path_of(corpus, shard).write_bytes(data)


def empty(corpus, shard: int) -> None:
    write_shard(corpus, shard, [])


def seventeen(corpus, shard: int) -> None:
    data = encoded(shard)
    data[5] = data[5][:5] + bytes([17]) + data[5][6:]  # the header's codebooks
    write_shard(corpus, shard, data)


def other_codec(corpus, shard: int) -> None:
    write_shard(corpus, shard, encoded(shard, OTHER), codec=OTHER)


def other_marker(corpus, shard: int) -> None:
    write_shard(corpus, shard, encoded(shard), codec=OTHER)


def fewer_rows(corpus, shard: int) -> None:
    write_shard(corpus, shard, encoded(shard, rows=5), rows=ROWS)


def no_marker_facts(corpus, shard: int) -> None:
    path_of(corpus, shard).with_suffix(".json").write_text('{"schema": 1}')


def other_codebooks(corpus, shard: int) -> None:
    write_shard(corpus, shard, encoded(shard), codebooks=17)


HARM = [
    (cut, "delete it and its done-marker"),
    (flip, "cannot be read"),
    (empty, "holds no record"),
    (seventeen, "row 5: got 17 codebooks of 11 bits, expected 16"),
    (other_codec, f"codes of the codec {OTHER}, expected {CODEC} as in the shards"),
    (other_marker, f"row 0: got codes of the codec {CODEC}, expected {OTHER}"),
    (fewer_rows, f"holds 5 records, expected {ROWS} as its done-marker says"),
    (no_marker_facts, "is no done-marker"),
    (other_codebooks, "with 17 codebooks, expected 1 with 16"),
]


@pytest.mark.parametrize(("harm", "message"), HARM, ids=[h.__name__ for h, _ in HARM])
def test_a_bad_shard_is_named(corpus, tokenizer, harm, message):
    harm(corpus, 1)
    with pytest.raises(ValueError) as caught:
        index.build(corpus, tokenizer, log=quiet)
    first, *others = str(caught.value).splitlines()
    assert first == "1 of 3 shards cannot be used:"
    assert len(others) == 1 and "shard-00001" in others[0] and message in others[0]


def test_all_bad_shards_are_named_in_one_error(indexed, tokenizer):
    before = index.open_index(indexed, codec=CODEC).fingerprint
    cut(indexed, 0)
    seventeen(indexed, 2)
    with pytest.raises(ValueError, match="(?s)2 of 3 .*shard-00000.*\n.*shard-00002"):
        index.build(indexed, tokenizer, log=quiet)
    # the index that was there is untouched, and nothing half-made is left
    assert index.open_index(indexed, codec=CODEC).fingerprint == before
    assert not [path for path in indexed.iterdir() if "index." in path.name]


def test_unfinished_shards_are_ignored_and_named(corpus, tokenizer):
    path_of(corpus, 1).with_suffix(".json").unlink()
    lines = []
    made = index.build(corpus, tokenizer, log=lines.append)
    assert len(made.shards) == 2
    assert "1 shards have no done-marker" in lines[0] and "shard-00001" in lines[0]


def test_a_folder_without_shards_is_refused(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="without a finished shard"):
        index.build(tmp_path, tokenizer, log=quiet)


# --------------------------------------------------------------------- bad indexes


def test_another_codec_is_refused(indexed):
    with pytest.raises(ValueError, match=f"codec {CODEC}, expected {OTHER}; encode"):
        index.open_index(indexed, codec=OTHER)
    assert index.open_index(indexed, codec=None).codec == CODEC


def test_an_index_folder_can_be_opened_itself(indexed):
    opened = index.open_index(indexed / "index", codec=CODEC)
    assert opened.directory == indexed


def test_a_corpus_without_an_index_is_refused(corpus):
    with pytest.raises(FileNotFoundError, match="python -m data.index"):
        index.open_index(corpus, codec=None)


def change(**facts):
    def harm(home):
        found = json.loads((home / "index.json").read_text())
        (home / "index.json").write_text(json.dumps(found | facts))

    return harm


def cut_columns(home):
    data = (home / "columns.bin").read_bytes()
    (home / "columns.bin").write_bytes(data[:-4])


def write(text: str):
    return lambda home: (home / "index.json").write_text(text)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change(schema=2), "schema version 2, expected 1"),
        (change(shards=[["a"]]), "index.json is damaged"),
        (write("{"), "index.json is damaged"),
        (write("[]"), "index.json is damaged"),
        (cut_columns, "columns.bin of 428 bytes, expected 432"),
        (lambda home: (home / "columns.bin").unlink(), "of 0 bytes, expected 432"),
    ],
)
def test_a_damaged_index_is_refused(indexed, harm, message):
    harm(indexed / "index")
    with pytest.raises(ValueError, match=f"{message}.*; make it again with"):
        index.open_index(indexed, codec=CODEC)


def test_columns_that_shrink_later_are_noticed(indexed):
    opened = index.open_index(indexed, codec=CODEC)
    cut_columns(indexed / "index")
    opened.columns(1)
    with pytest.raises(ValueError, match="ends inside shard 2; make the index again"):
        opened.columns(2)


# ------------------------------------------------------------------------ program


def test_the_program_makes_an_index(corpus, tokenizer_dir, capsys):
    options = ["--data", str(corpus), "--text_tokenizer", str(tokenizer_dir)]
    index.main([*options, "--workers", "1"])
    said = capsys.readouterr().out
    assert f"{3 * ROWS} utterances in 3 shards" in said and "english" in said
    assert index.open_index(corpus, codec=CODEC).rows.sum() == 3 * ROWS


def test_the_program_says_what_is_wrong(corpus, tokenizer_dir):
    cut(corpus, 0)
    options = ["--data", str(corpus), "--text_tokenizer", str(tokenizer_dir)]
    with pytest.raises(SystemExit, match="1 of 3 shards cannot be used"):
        index.main([*options, "--workers", "1"])
