"""Plan and shards to host batches: batch k of a run, read, laid out and packed.

`Batches` is a Grain source with random access: `batches[k]` depends on the plan and k
alone, so that a run can go on at any step, on any number of hosts and workers, without
having stored where it was.  `loader` has Grain prefetch it, in threads or processes.

    for step, arrays in loader(batches, start=state.step, workers=2):
        ...

Speed: see `eval/benchmarks/loader.py`.
"""

import collections
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags

from data import index as indexes
from data.format import records
from data.loading import packed_rows
from data.mixture import plan
from qwen3tts_jax.config import tts
from qwen3tts_jax.generation import prompt
from qwen3tts_jax.text import tokenizer as text_tokenizer

OPEN_SHARDS = 256  # at a time; each pool reads from one block of shards

# What a batch holds beside its arrays; `Loader` takes them out.
IDS, BAD, CUT = "ids", "bad", "cut"


class Batches:
    """The batches of a stage, as one host sees them; can be pickled.

    `batches[k]` is a dict of the arrays of `packed_rows.pack`, for this host's rows,
    and of

        ids: object [B], for each row the ids of its examples.
        bad: object [N], what is wrong with each record that was left out.
        cut: int, examples without their voice, see `packed_rows.Shape.voices`.
    """

    def __init__(
        self,
        plan: plan.Plan,
        config: tts.Qwen3TTSConfig,
        tokenizer: text_tokenizer.TextTokenizer,
        *,
        shape: packed_rows.Shape,
        steps: int,
        host: int = 0,
        hosts: int = 1,
        max_bad_records: int = 0,
    ):
        """Args:
            config: of the checkpoint to train; its speakers and languages count.
            tokenizer: of the checkpoint, the one that the index was made with.
            shape: of a row; `length` as in the stage.  Examples of a row beyond its
                `voices` go without a voice (they are counted).
            steps: how many batches there are.
            host, hosts: this host reads rows host * B / hosts on, B / hosts of them.
            max_bad_records: 0 raises at the first record that cannot be read; else it
                is left out of its row and named in `bad`, and `loader` counts.
        Raises: ValueError for a tokenizer, stage or checkpoint that does not fit.
        """
        self.plan, self.config, self.tokenizer = plan, config, tokenizer
        self.shape, self.steps = shape, steps
        self.max_bad_records = max_bad_records
        _check_fit(plan, config, tokenizer, shape, hosts)
        share = plan.stage.rows // hosts
        self.rows = range(host * share, (host + 1) * share)
        self._shards = _Shards(plan.index)
        self._by_id = plan.stage.layouts.voice == "id"

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        """Raises: IndexError from `steps` on; ValueError for a corpus that is not the
        index's; RecordError for a damaged record, see `max_bad_records`."""
        if not 0 <= step < self.steps:
            raise IndexError(f"got batch {step}, expected 0 to {self.steps - 1}")
        arrays = packed_rows.empty(self.config, len(self.rows), self.shape)
        ids, bad, cut = np.empty(len(self.rows), object), [], 0
        for row, items in enumerate(self.plan.batch(step, self.rows)):
            laid = self._lay_out(items)
            packed_rows.fill(self.config, arrays, row, laid.examples)
            ids[row], cut = laid.ids, cut + laid.cut
            bad += laid.bad
        return arrays | {IDS: ids, BAD: np.asarray(bad, object), CUT: cut}

    def _lay_out(self, items: np.ndarray) -> "_Row":
        """The examples of a row: `plan.ITEM` [N]."""
        found, row, voices = self._read(items), _Row(), 0
        for item in items.tolist():
            try:
                example, name = self._example(_Item(*item), found, voices)
            except records.RecordError as error:
                if not self.max_bad_records:
                    raise
                row.bad.append(str(error))
                continue
            row.examples.append(example)
            row.ids.append(name)
            row.cut += example.voice is None and self._has_vector(item[3])
            voices += example.voice is not None
        return row

    def _has_vector(self, flags: int) -> bool:
        return bool(flags & plan.VOICED) and not self._by_id

    def _read(self, items: np.ndarray) -> dict[tuple[int, int], bytes]:
        """The records of some items and their mates; those that cannot be read miss.

        Rows of one shard are read in one call.
        """
        wanted = collections.defaultdict(set)
        for shard, row, mate, _ in items.tolist():
            wanted[shard].add(row)
            if mate >= 0:
                wanted[shard].add(mate)
        found = {}
        for shard, rows in wanted.items():
            rows = sorted(rows)
            for row, data in zip(rows, self._shards.get(shard).read(rows)):
                found[shard, row] = data
        return found

    def _example(self, item: "_Item", found: dict, voices: int):
        """(packing.Example, id) of an item; voices: how many the row has already."""
        shard = self._shards.get(item.shard)
        record = shard.decode(item.row, found[item.shard, item.row])
        mate = record
        if item.mate >= 0:
            mate = shard.decode(item.mate, found[item.shard, item.mate])
        role, text = self.tokenizer.role_and_text_ids(record.text)
        shard.check(item.row, record, text=text)
        instruct = voice = speaker = reference = None
        if item.flags & plan.INSTRUCTED:
            instruct = self.tokenizer.instruct_ids(record.instruct)
            shard.check(item.row, record, instruct=instruct)
        if item.flags & plan.VOICED and self._by_id:
            speaker = self._speaker(record, item.flags)
        elif item.flags & plan.VOICED and voices < self.shape.voices:
            voice = self._voice(mate)
        if item.flags & plan.ICL:
            said = self.tokenizer.reference_ids(mate.text)
            shard.check(item.mate, mate, text=said)
            reference = prompt.Reference(said, mate.codes)
        example = packed_rows.example(
            self.config,
            record.codes,
            role=role,
            text=text,
            instruct=instruct,
            language=record.language if item.flags & plan.TAGGED else prompt.AUTO,
            speaker=speaker,
            voice=voice,
            reference=reference,
            non_streaming=not item.flags & plan.STREAMING,
        )
        return example, record.id

    def _speaker(self, record: records.Record, flags: int) -> str:
        """The name of a record's speaker.

        A dialect is named even where the language is not; the plan does not know.
        """
        dialects = dict(self.config.talker.speaker_dialects)
        if dialects.get(record.speaker.lower()) and not flags & plan.TAGGED:
            raise ValueError(
                f"{record.id}: got the dialect speaker {record.speaker!r} without a "
                "language, expected Chinese; set drop_language=0, and say the language "
                "of every record"
            )
        return record.speaker

    def _voice(self, record: records.Record) -> np.ndarray:
        """What the speaker of a record is told by."""
        name = "mel" if self.shape.mel_frames else "x_vector"
        voice = getattr(record, name)
        if voice is None:
            raise ValueError(
                f"{record.id}: got a record without {name}, expected one; prepare the "
                "corpus with it, or choose another kind of voice"
            )
        return voice


class _Item(NamedTuple):
    """One `plan.ITEM`."""

    shard: int
    row: int
    mate: int
    flags: int


@dataclasses.dataclass
class _Row:
    """Examples of one row, their ids, what was left out, voices that were."""

    examples: list = dataclasses.field(default_factory=list)
    ids: list = dataclasses.field(default_factory=list)
    bad: list = dataclasses.field(default_factory=list)
    cut: int = 0


def _check_fit(plan, config, tokenizer, shape, hosts: int) -> None:
    """Raises: ValueError, see `Batches`."""
    stage, vocabulary = plan.stage, indexes.vocabulary_hash(tokenizer)
    if plan.index.text_vocabulary != vocabulary:
        raise ValueError(
            f"got a text tokenizer with the vocabulary {vocabulary}, expected "
            f"{plan.index.text_vocabulary} of the index; make the index again with "
            "the tokenizer of this checkpoint"
        )
    if stage.length != shape.length:
        raise ValueError(
            f"got rows of {shape.length} positions, expected the {stage.length} of "
            f"stage {stage.name}"
        )
    if stage.rows % hosts:
        raise ValueError(
            f"got {stage.rows} rows a batch on {hosts} hosts, expected a multiple; "
            "change `rows`"
        )
    known = set(prompt.supported_languages(config.talker))
    if unknown := sorted(set(stage.layouts.tags) - known):
        raise ValueError(
            f"got tags for {', '.join(unknown)}, expected languages of the checkpoint: "
            f"{', '.join(sorted(known))}; leave them out of the stage's `tags`"
        )


def voices_needed(plan: plan.Plan) -> int:
    """How many voices any row of a plan can have (`packed_rows.Shape.voices`).

    Every slot costs memory and, where voices are mels, a run of the speaker encoder:
    with fewer slots, the rare row that is fuller shows its last examples without.
    """
    return plan.most_items if plan.stage.layouts.voice == "x_vector" else 1


# ------------------------------------------------------------------------ shards


class _OpenShard:
    """A shard with what the index says of it."""

    def __init__(self, index: indexes.Index, number: int):
        self.shard = records.Shard(index.directory / index.shards[number])
        self.index, self.columns = index, index.columns(number)
        if self.shard.rows != len(self.columns.frames):
            self._refuse(f"{self.shard.path}: got {self.shard.rows} records")

    def read(self, rows: Sequence[int]) -> list[bytes | records.RecordError]:
        """The bytes of some rows, or why one cannot be read."""
        try:
            return self.shard.read(rows)
        except records.RecordError as error:
            if len(rows) == 1:
                return [error]
        return [self.read([row])[0] for row in rows]  # one by one: the others are fine

    def decode(self, row: int, data: bytes | records.RecordError) -> records.Record:
        """Raises: RecordError; ValueError for a record of another codec or length than
        the index says."""
        if isinstance(data, records.RecordError):
            raise data
        where = self.shard.name(row)
        try:
            record = records.decode(data, codec=self.index.codec, where=where)
        except records.RecordError:
            codec = records.peek(data, where=where).codec
            if codec != self.index.codec:
                self._refuse(f"{where}: got codes of the codec {codec}")
            raise
        language = self.index.languages[self.columns.language[row]]
        told = len(record.codes), record.language
        if told != (self.columns.frames[row], language):
            self._refuse(f"{where}: got {told[0]} frames in {told[1]!r}")
        return record

    def check(self, row: int, record: records.Record, **ids: list[int]) -> None:
        """Compare numbers of ids with the index: text=..., instruct=...

        Raises: ValueError.
        """
        for name, value in ids.items():
            expected = getattr(self.columns, name)[row]
            if len(value) != expected:
                self._refuse(
                    f"{self.shard.name(row)} ({record.id}): got {len(value)} ids of "
                    f"{name}, expected {expected}"
                )

    def _refuse(self, got: str) -> None:
        raise ValueError(
            f"{got}, not what the index in {self.index.directory} says; the corpus has "
            "changed: make the index again with `python -m data.index`"
        )


class _Shards:
    """Open shards, the least used closed; threads may share it."""

    def __init__(self, index: indexes.Index):
        self.index = index
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[int, _OpenShard] = collections.OrderedDict()

    def __reduce__(self):
        return _Shards, (self.index,)  # a worker process opens its own

    def get(self, number: int) -> _OpenShard:
        with self._lock:
            if number not in self._open:
                self._open[number] = _OpenShard(self.index, number)
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]


# ------------------------------------------------------------------------ loader


class Loader(Iterator):
    """(step, arrays) of each batch in turn; see `loader`.

    Attributes:
        ids: of the last batch, for each row the ids of its examples.
        bad: what is wrong with each record left out so far.
        cut: examples so far that went without their voice.
    """

    def __init__(self, batches: Batches, start: int, dataset):
        self.ids: list[list[str]] = []
        self.bad: set[str] = set()
        self.cut = 0
        self._step, self._most = start, batches.max_bad_records
        self._iterator = iter(dataset) if start < len(batches) else iter(())

    def __next__(self) -> tuple[int, dict[str, np.ndarray]]:
        """Raises: RecordError for more bad records than allowed; as `Batches`."""
        arrays = dict(next(self._iterator))
        step, self._step = self._step, self._step + 1
        self.ids = arrays.pop(IDS).tolist()
        self.cut += int(arrays.pop(CUT))
        self.bad.update(arrays.pop(BAD).tolist())
        if len(self.bad) > self._most:
            raise records.RecordError(
                f"got {len(self.bad)} records that cannot be read, expected at most "
                f"max_bad_records={self._most}:\n" + "\n".join(sorted(self.bad))
            )
        return step, arrays

    def close(self) -> None:
        """End the threads or worker processes; nothing comes after."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = iter(())  # else it would end with the interpreter, noisily


def loader(
    batches: Batches,
    start: int = 0,
    *,
    workers: int = 0,
    threads: int = 1,
    buffer: int = 2,
) -> Loader:
    """Read batches ahead, from number `start` on, in order.

    What comes does not depend on workers, threads or buffer.

    Args:
        workers: processes that make batches; 0 makes them in this one.  They start by
            spawning, so that a program needs its `if __name__ == "__main__"`.
        threads: of each process; 0 makes a batch when it is asked for.
        buffer: batches that each process holds ready.
    """
    dataset = grain.MapDataset.source(batches)[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain looks at its own
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffer)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
    return Loader(batches, start, dataset)


def _start_worker(worker: int, workers: int) -> None:
    """Keep a worker process off the accelerator, which the trainer holds."""
    jax.config.update("jax_platforms", "cpu")
