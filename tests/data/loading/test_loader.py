"""Batches: the same for any hosts, workers and start; damaged corpora."""

import dataclasses
import functools
import multiprocessing
import pickle
import shutil

import corpora
import numpy as np
import pytest

from data import index
from data.format import records
from data.loading import loader as pipeline
from data.loading import packed_rows
from data.mixture import plan, prompt_layouts, stages
from qwen3tts_jax.config import released, tiny, tts
from qwen3tts_jax.generation import prompt
from qwen3tts_jax.text import tokenizer as text_tokenizer

CODEC, SHARDS, ROWS, DIM = corpora.CODEC, corpora.SHARDS, corpora.ROWS, corpora.DIM
LENGTH, STEPS = 160, 6
SHAPE = packed_rows.Shape(length=LENGTH, voices=20)


def encoded(shard: int, **changes) -> list[bytes]:
    made = (corpora.record(shard, row) for row in range(ROWS))
    return [
        records.encode(dataclasses.replace(one, **changes), codec=CODEC) for one in made
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    out = tmp_path_factory.mktemp("corpus")
    corpora.write(out, tokenizer)
    return out


@pytest.fixture
def damaged(corpus, tmp_path):
    """A copy to damage."""
    return shutil.copytree(corpus, tmp_path / "corpus")


@pytest.fixture(scope="module")
def config():
    return tts.Qwen3TTSConfig.from_hf(tiny.tts_config("base"))


def make_plan(corpus, **draws) -> plan.Plan:
    stage = stages.Stage(
        name="test",
        length=LENGTH,
        rows=8,
        seed=3,
        pools=(stages.Pool(weight=1),),
        layouts=prompt_layouts.Layouts(**draws),
        block_shards=2,
    )
    opened = index.open_index(corpus, codec=CODEC)
    return plan.Plan.make(opened, stage, log=lambda line: None)


@pytest.fixture(scope="module", autouse=True)
def hash_once():
    """Hashing 150,000 tokens takes a third of a second, and is done over and over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "vocabulary_hash", functools.cache(index.vocabulary_hash))
        yield


@pytest.fixture(scope="module")
def make(corpus, config, tokenizer):
    """make(corpus, draws=..., **options of Batches)."""

    def batches(where=corpus, draws=None, config=config, **options):
        options = dict(shape=SHAPE, steps=STEPS) | options
        made = make_plan(where, **(draws or {}))
        return pipeline.Batches(made, config, tokenizer, **options)

    return batches


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


# ------------------------------------------------------------------- what a batch is


def shard_of(item, made: plan.Plan) -> int:
    return int(made.index.shards[item["shard"]].removeprefix("shard-")[:5])


def name_of(item, made: plan.Plan) -> str:
    return f"{shard_of(item, made)}/{item['row']}"


def expected(item, made: plan.Plan, tokenizer, config) -> packed_rows.Example:
    """What an item of the plan should become, straight from `record`."""
    shard = shard_of(item, made)
    one = corpora.record(shard, item["row"])
    mate = corpora.record(shard, item["mate"]) if item["mate"] >= 0 else one
    has = {name: item["flags"] & getattr(plan, name) for name in FLAGS}
    role, text = tokenizer.role_and_text_ids(one.text)
    said = prompt.Reference(tokenizer.reference_ids(mate.text), mate.codes)
    built = prompt.build(
        config,
        role=role,
        text=text,
        instruct=tokenizer.instruct_ids(one.instruct) if has["INSTRUCTED"] else None,
        language=one.language if has["TAGGED"] else "auto",
        x_vector=mate.x_vector if has["VOICED"] else None,
        reference=said if has["ICL"] else None,
        non_streaming=not has["STREAMING"],
    )
    return packed_rows.Example(
        built, one.codes, mate.x_vector if has["VOICED"] else None
    )


FLAGS = ("STREAMING", "TAGGED", "INSTRUCTED", "VOICED", "ICL")


def test_a_batch_is_what_the_plan_says(make, tokenizer, config):
    """Every layout comes up, and each is what `prompt.build` makes of the record."""
    draws = dict(drop_language=0.3, instruct=0.7, no_voice=0.2, reference=0.5)
    batches, seen = make(draws=draws), set()
    for step in range(len(batches)):
        rows = batches.plan.batch(step)
        seen |= {(int(f), m >= 0) for row in rows for f, m in row[["flags", "mate"]]}
        items = [
            [expected(item, batches.plan, tokenizer, config) for item in row]
            for row in rows
        ]
        made = batches[step]
        assert made.pop(pipeline.CUT) == 0
        assert made.pop(pipeline.BAD).tolist() == []
        ids = made.pop(pipeline.IDS).tolist()
        assert ids == [[name_of(item, batches.plan) for item in row] for row in rows]
        assert_same(made, packed_rows.pack(config, items, SHAPE))
    flags = np.asarray([flag for flag, _ in seen])
    for bit in (getattr(plan, name) for name in FLAGS):
        assert 0 < np.count_nonzero(flags & bit) < len(flags)


def test_unknown_languages_have_no_tag(make, config):
    batches = make(draws=dict(drop_language=0))
    tags = {config.talker.codec_think_id, config.talker.codec_nothink_id}
    for step in range(3):
        made = batches[step]
        for row, names in enumerate(made[pipeline.IDS]):
            for number, name in enumerate(names, 1):
                here = made["segment"][row] == number
                (mark,) = tags & set(made["codes"][row, here, 0].tolist())
                language = corpora.record(*map(int, name.split("/"))).language
                tagged = mark == config.talker.codec_think_id
                assert tagged == (language in released.LANGUAGES), name


def test_voices_are_those_of_another_utterance(make):
    """Mels and x-vectors of the mate; the same examples in both kinds."""
    vectors = make()[2]
    mels = make(shape=dataclasses.replace(SHAPE, mel_frames=30))[2]
    assert "x_vector" not in mels
    np.testing.assert_array_equal(vectors["speaker_at"], mels["speaker_at"])
    whole, used = make().plan, 0
    for row, items in enumerate(whole.batch(2)):
        for slot, item in enumerate(items):
            assert item["mate"] not in (-1, item["row"])
            mate = corpora.record(shard_of(item, whole), item["mate"])
            vector = vectors["x_vector"][row, slot]
            np.testing.assert_array_equal(vector, mate.x_vector)
            length = min(len(mate.mel), 30)
            assert mels["mel_length"][row, slot] == length
            mel = mels["mel"][row, slot]
            np.testing.assert_array_equal(mel[:length], mate.mel[:length])
            assert not mel[length:].any()
            used += 1
    assert used > 10


def test_speakers_of_the_checkpoint_by_id(make):
    names = [f"voice {shard} {n}" for shard in range(SHARDS) for n in range(5)]
    voices = dict(zip(names, range(3000, 3100)))
    values = tiny.tts_config("custom_voice")
    values["talker_config"]["spk_id"] = voices
    values["talker_config"]["spk_is_dialect"] = dict.fromkeys(voices, False)
    config = tts.Qwen3TTSConfig.from_hf(values)
    batches = make(draws=dict(voice="id"), config=config)
    assert pipeline.voices_needed(batches.plan) == 1
    made = batches[0]
    for row, names in enumerate(made[pipeline.IDS]):
        for number, name in enumerate(names, 1):
            codes = made["codes"][row, made["segment"][row] == number, :2]
            marks = codes[codes[:, 1] == prompt.NONE, 0].tolist()
            speakers = [mark for mark in marks if mark in voices.values()]
            shard, utterance = map(int, name.split("/"))
            assert speakers == [voices[f"voice {shard} {utterance % 5}"]]
    assert (made["speaker_at"] == prompt.NONE).all()
    values["talker_config"]["spk_is_dialect"]["voice 0 0"] = "sichuan_dialect"
    config = tts.Qwen3TTSConfig.from_hf(values)
    batches = make(draws=dict(voice="id", drop_language=1), config=config)
    with pytest.raises(ValueError, match="dialect speaker 'voice 0 0'.*drop_lang"):
        [batches[step] for step in range(STEPS)]


def test_voices_beyond_the_table_are_left_out_and_counted(make):
    full, short = make(), make(shape=packed_rows.Shape(length=LENGTH, voices=2))
    assert 2 < pipeline.voices_needed(full.plan) <= SHAPE.voices
    whole, cut = full[0], short[0]
    counts = [np.sum(row["flags"] & plan.VOICED > 0) for row in full.plan.batch(0)]
    assert cut[pipeline.CUT] == sum(max(0, int(n) - 2) for n in counts) > 0
    assert whole[pipeline.CUT] == 0
    assert (cut["speaker_at"] >= 0).sum(axis=1).tolist() == [min(n, 2) for n in counts]
    np.testing.assert_array_equal(cut["x_vector"], whole["x_vector"][:, :2])
    assert cut[pipeline.IDS].tolist() == whole[pipeline.IDS].tolist()


# ------------------------------------------------------- hosts, workers, resumption


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_share_a_batch(make, hosts):
    whole = make()
    parts = [make(host=host, hosts=hosts) for host in range(hosts)]
    for step in (0, 4):
        shares = [part[step] for part in parts]
        for name in whole[step].keys() - {pipeline.BAD, pipeline.CUT}:
            joined = np.concatenate([share[name] for share in shares])
            np.testing.assert_array_equal(joined, whole[step][name], err_msg=name)


def told(batches, start: int, **options) -> list:
    """(step, arrays and ids) of all that a loader gives."""
    out, source = [], pipeline.loader(batches, start, **options)
    for step, arrays in source:
        kept = {name: np.array(value) for name, value in arrays.items()}
        out.append((step, kept | {pipeline.IDS: np.asarray(source.ids, object)}))
    source.close()
    return out


def check_loader(batches, start: int, **options) -> None:
    found = told(batches, start, **options)
    assert [step for step, _ in found] == list(range(start, len(batches)))
    for step, arrays in found:
        direct = batches[step]
        assert direct.pop(pipeline.CUT) == 0
        direct.pop(pipeline.BAD)
        assert_same(arrays, direct)


@pytest.mark.parametrize("start", [0, 1, 5, STEPS])
@pytest.mark.parametrize("options", [dict(), dict(threads=0), dict(threads=3)])
def test_a_loader_starts_anywhere(make, start, options):
    check_loader(make(), start, **options)


def test_workers_change_nothing(make):
    check_loader(make(host=1, hosts=2), 1, workers=2)


def test_closing_ends_the_workers(make):
    loader = pipeline.loader(make(steps=10**9), workers=1)
    assert next(loader)[0] == 0
    assert multiprocessing.active_children()
    loader.close()
    assert not multiprocessing.active_children()
    assert list(loader) == []


def test_starting_late_reads_nothing_before(make):
    """Resumption takes the same work at any step."""
    batches = make(steps=10**9)
    asked = []
    batches.plan.batch = lambda step, rows: asked.append(step) or [[]] * 0
    loader = pipeline.loader(batches, 10**9 - 2, threads=0)
    assert [step for step, _ in loader] == asked == [10**9 - 2, 10**9 - 1]


def test_batches_can_be_pickled_while_in_use(make):
    batches = make()
    first = batches[0]
    assert_same(pickle.loads(pickle.dumps(batches))[0], first)


def test_few_shards_are_open(make, monkeypatch):
    monkeypatch.setattr(pipeline, "OPEN_SHARDS", 2)
    batches, whole = make(), make()
    for step in range(STEPS):
        assert_same(batches[step], whole[step])
        assert len(batches._shards._open) <= 2


# ------------------------------------------------------------------- what is refused


def break_record(corpus, shard: int, row: int) -> str:
    """Damage one record; returns its id."""
    rows = encoded(shard)
    rows[row] = rows[row][:-7]
    corpora.write_shard(corpus, shard, rows)
    return f"{shard}/{row}"


def test_a_damaged_record_is_one_error(damaged, make):
    break_record(damaged, 2, 7)
    with pytest.raises(records.RecordError, match="shard-00002.* row 7: .*damaged"):
        list(pipeline.loader(make(damaged)))


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_records_are_skipped_and_counted(damaged, make, workers):
    """The others of their rows stay; those that needed them as mates go, too."""
    broken = break_record(damaged, 2, 7)
    batches = make(damaged, max_bad_records=1, steps=40)
    loader = pipeline.loader(batches, workers=workers)
    for step, _ in loader:
        for item in left_out(batches.plan, step, loader.ids):
            mate = f"{shard_of(item, batches.plan)}/{item['mate']}"
            assert broken in (name_of(item, batches.plan), mate)
    loader.close()
    (reason,) = loader.bad
    assert "row 7" in reason and "damaged" in reason


def left_out(made: plan.Plan, step: int, ids: list) -> list:
    """The plan's items that are not among a batch's ids."""
    return [
        item
        for items, names in zip(made.batch(step), ids)
        for item in items
        if name_of(item, made) not in names
    ]


def test_too_many_damaged_records_are_an_error(damaged, make):
    break_record(damaged, 2, 7)
    break_record(damaged, 3, 1)
    batches = make(damaged, max_bad_records=1, steps=40)
    with pytest.raises(records.RecordError, match="(?s)2 records.*max_bad_records=1"):
        list(pipeline.loader(batches))


def test_bytes_that_cannot_be_read_spare_the_rest_of_their_shard(damaged, make):
    """Damage below the record: the library refuses to read the row."""
    path = damaged / f"shard-00001{records.SUFFIX}"
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 64] = bytes(64)
    path.write_bytes(data)
    batches = make(damaged, max_bad_records=5, steps=40)
    loader = pipeline.loader(batches)
    ids = {name for _ in loader for row in loader.ids for name in row}
    assert len(loader.bad) == 1
    assert sum(name.startswith("1/") for name in ids) >= ROWS - 5


@pytest.mark.parametrize(
    "changes",
    [
        dict(text="Another text."),
        dict(language="german"),
        dict(instruct="Be loud, but kind."),
    ],
)
def test_a_corpus_that_has_changed_needs_another_index(damaged, make, changes):
    for shard in range(SHARDS):
        corpora.write_shard(damaged, shard, encoded(shard, **changes))
    with pytest.raises(ValueError, match="(?s)index.*make the index again"):
        make(damaged, max_bad_records=1000)[0]


def test_a_corpus_of_another_codec_or_size(damaged, make):
    batches = make(damaged, max_bad_records=1000)
    for shard in range(SHARDS):
        rows = [
            records.encode(corpora.record(shard, row), codec=CODEC[::-1])
            for row in range(ROWS)
        ]
        corpora.write_shard(damaged, shard, rows)
    with pytest.raises(ValueError, match=f"codec {CODEC[::-1]}, .*make the index ag"):
        batches[0]
    for shard in range(SHARDS):
        corpora.write_shard(damaged, shard, encoded(shard)[1:])
    with pytest.raises(ValueError, match="23 records, .*make the index again"):
        make(damaged, max_bad_records=1000)[0]


def test_a_record_without_the_voice(damaged, make):
    for shard in range(SHARDS):
        corpora.write_shard(damaged, shard, encoded(shard, x_vector=None))
    with pytest.raises(ValueError, match="without x_vector"):
        make(damaged)[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(shape=packed_rows.Shape(length=99)), "99 positions, expected the 160"),
        (dict(hosts=3), "8 rows a batch on 3 hosts"),
        (dict(draws=dict(tags=("czech", "english"))), "tags for czech"),
    ],
)
def test_refuses_what_does_not_fit(make, options, words):
    with pytest.raises(ValueError, match=f"got .*{words}"):
        make(**options)


def test_refuses_another_tokenizer(corpus, config, whole_dir):
    other = text_tokenizer.TextTokenizer.from_directory(whole_dir)
    other.backend.add_tokens(["<another>"])
    with pytest.raises(ValueError, match="text tokenizer with the vocabulary"):
        pipeline.Batches(make_plan(corpus), config, other, shape=SHAPE, steps=1)


def test_there_are_so_many_steps(make):
    with pytest.raises(IndexError, match=f"batch {STEPS}"):
        make()[STEPS]
