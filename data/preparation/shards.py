"""The work plan: shard number -> records, a pure function of a Job.

Shard s holds the clips [s * n, (s + 1) * n) of the source, in that order, less what is
dropped.  Who makes it, after which other shard and how often, changes nothing: the same
job on the same kind of machine writes the same bytes.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data.format import lengths, records
from data.preparation import cleaning, encoding, progress, sources, speaker_features
from data.preparation import clip as raw
from data.preparation import report as tally
from data.preparation import scoring as scorers
from qwen3tts_jax.audio import io as audio_io

REPORT, SETTINGS = "report.json", "settings.json"
WORK = ".work-"  # folders with what is not finished
READ_ROWS = 64  # clips listed at a time: some sources hand over the samples with them
AHEAD = 4  # clips that each worker may be ahead
SUSPICIOUS = 16  # so many clips and none readable: not the clips are at fault


@dataclasses.dataclass(frozen=True)
class Job:
    """All that decides what stands in the shards; can be pickled.

    Attributes:
        codec: directory or hub id of the speech tokenizer.
        shard_clips: clips of the source for each shard.
        keep_bad: keep marked clips, in the tier "low".
        batch_frames: about so many frames are encoded at a time.
        workers: threads that decode and score; changes nothing but the speed.
    """

    source: sources.Spec
    codec: str
    shard_clips: int = 4096
    rules: cleaning.Rules = cleaning.Rules()
    scoring: scorers.Spec = scorers.Spec()
    voice: speaker_features.Spec = speaker_features.Spec()
    keep_bad: bool = False
    batch_frames: int = 512
    workers: int = os.cpu_count() or 1

    def __post_init__(self):
        for name in ("shard_clips", "batch_frames", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"got {name} {getattr(self, name)}, expected at least 1"
                )


class Preparer:
    """A job with its source opened and its models loaded."""

    def __init__(self, job: Job):
        """Raises: what `sources.open_source`, the scorers and the codec raise."""
        self.job, self.source = job, sources.open_source(job.source)
        self.scorers = scorers.Scorers(job.scoring, workers=job.workers)
        self.voices = speaker_features.Voices(job.voice)
        self.encoder = encoding.Encoder(job.codec, batch_frames=job.batch_frames)
        self.codec = self.encoder.tokenizer.fingerprint

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.job.shard_clips)

    def settings(self) -> dict:
        """What may not change while a corpus is made: no paths, but what they hold."""
        job = self.job
        return dict(
            schema=records.SCHEMA_VERSION,
            source=job.source.kind,
            source_clips=len(self.source),
            source_fingerprint=self.source.fingerprint(),
            language=job.source.language,
            speaker=job.source.speaker,
            codec=self.codec,
            shard_clips=job.shard_clips,
            batch_frames=job.batch_frames,
            keep_bad=job.keep_bad,
            rules=dataclasses.asdict(job.rules),
            scorers=dataclasses.asdict(job.scoring)
            | dict(asr=_listing(job.scoring.asr)),
            voice=dataclasses.asdict(job.voice) | dict(model=self.voices.fingerprint),
        )

    def shard(
        self, number: int, say: progress.Progress | None = None
    ) -> tuple[list[bytes], tally.Tally]:
        """The records of a shard, and what became of its clips."""
        count, kept, made = tally.Tally(), {}, {}
        waves = self._good(number, count, kept, say)
        for rows, batch, codes in self.encoder.encode(waves):
            for row, code, voice in zip(rows, codes, self.voices.describe(batch)):
                record = dataclasses.replace(kept.pop(row), codes=code, **voice)
                made[row] = records.encode(record, codec=self.codec)
        unreadable = len(count.dropped.get("unreadable", ()))
        if unreadable == count.clips >= SUSPICIOUS:
            name, why = next(iter(count.unreadable.items()))
            raise ValueError(
                f"none of the {unreadable} clips of shard {number} can be read, as "
                f"{name}: {why}; is the path right, the disk there?"
            )
        return [made[row] for row in sorted(made)], count

    def _good(self, number: int, count: tally.Tally, kept: dict, say) -> Iterator:
        """(row, wave) of what is kept; notes its facts in `kept`."""
        for row, (take, tier) in enumerate(self._taken(number)):
            bad = take.reason or (take.marks[0] if self._refused(take) else "")
            seconds = 0.0
            if bad:
                count.drop(take, bad)
            else:
                seconds = len(take.wave) / audio_io.SAMPLE_RATE
                count.keep(take, tier, seconds)
                kept[row] = _record(take.clip, tier, seconds)
                yield row, take.wave
            if say:
                say.add(1, seconds)

    def _refused(self, take: cleaning.Take) -> bool:
        return bool(take.marks) and not self.job.keep_bad

    def _taken(self, number: int) -> Iterator[tuple[cleaning.Take, str]]:
        """Each clip of a shard, decoded and judged by threads, in order.

        Decoding, resampling and the scorers leave the interpreter's lock.
        """
        start = number * self.job.shard_clips
        stop = min(start + self.job.shard_clips, len(self.source))
        listed = (
            clip
            for at in range(start, stop, READ_ROWS)
            for clip in self.source.clips(at, min(at + READ_ROWS, stop))
        )
        with concurrent.futures.ThreadPoolExecutor(self.job.workers) as pool:
            yield from _ahead(pool, self._take, listed, self.job.workers * AHEAD)

    def _take(self, clip: raw.Clip) -> tuple[cleaning.Take, str]:
        return self.scorers.judge(cleaning.take(clip, self.job.rules))

    def write(
        self, number: int, out: Path, say: progress.Progress | None = None
    ) -> None:
        """Make a shard and its done-marker in a directory; both whole or not at all.

        The marker comes last, when the shard is on the disk.  A shard of which nothing
        is left has a marker alone.
        Raises: OSError if the disk is full.
        """
        made, count = self.shard(number, say)
        frames = sum(records.peek(data).frames for data in made)
        marker = dict(
            schema=records.SCHEMA_VERSION,
            codec=self.codec,
            codebooks=records.CODEBOOKS,
            rows=len(made),
            frames=frames,
            seconds=round(count.seconds, 3),
            report=count.to_json(),
        )
        work = out / f"{WORK}{secrets.token_hex(8)}"
        work.mkdir()
        try:
            if made:
                _write_shard(work / shard_name(number), made)
                os.replace(work / shard_name(number), out / shard_name(number))
            write_json(marker_path(out, number), marker, work=work)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _record(clip: raw.Clip, tier: str, seconds: float) -> records.Record:
    """A record that lacks its codes."""
    facts = dataclasses.asdict(dataclasses.replace(clip, audio=""))
    del facts["audio"], facts["problem"]
    return records.Record(**facts, tier=tier, seconds=round(seconds, 4), codes=None)


def _ahead(pool, function: Callable, items: Iterable, window: int) -> Iterator:
    """map, in order, with at most `window` results waiting."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _listing(directory: str | None) -> str | None:
    """A hash of the names and sizes of a directory's files."""
    if directory is None:
        return None
    files = sorted((p.name, p.stat().st_size) for p in Path(directory).iterdir())
    return hashlib.blake2b(repr(files).encode(), digest_size=8).hexdigest()


# ------------------------------------------------------------------------- files


def shard_name(number: int) -> str:
    return f"shard-{number:05}{records.SUFFIX}"


def marker_path(out: Path, number: int) -> Path:
    return lengths.marker_of(out / shard_name(number))


def pending(out: Path, shards: int) -> list[int]:
    """Numbers of the shards without a done-marker."""
    return [n for n in range(shards) if not marker_path(out, n).exists()]


def write_json(path: Path, value, *, work: Path) -> None:
    """Write a file by way of a folder on the same disk: whole or not at all."""
    part = work / path.name
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    _flush(part)
    os.replace(part, path)
    _flush(path.parent)


def _write_shard(path: Path, made: list[bytes]) -> None:
    """Raises: OSError for a shard that is not on the disk as it should be."""
    try:
        records.write_shard(path, made)
        rows = records.Shard(path).rows
        _flush(path)
    except Exception as error:  # the library raises kinds of its own
        raise OSError(_full(path, error)) from error
    if rows != len(made):
        raise OSError(_full(path, f"{rows} of {len(made)} records are there"))


def _full(path: Path, error) -> str:
    free = shutil.disk_usage(path.parent).free / 2**20
    return (
        f"the shard {path.name} could not be written ({error}); {free:.0f} MiB are "
        "free on its disk: make room and give the same command again"
    )


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --------------------------------------------------------------------- directory


def settle(out: Path, settings: dict) -> None:
    """Note the settings of a corpus, or refuse others than it was begun with.

    Raises: ValueError naming what differs.
    """
    for left in out.glob(f"{WORK}*"):
        shutil.rmtree(left)
    path = out / SETTINGS
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        if list(out.glob(f"*{records.SUFFIX}")):
            raise ValueError(
                f"got {out}, which holds shards and no {SETTINGS}; give a new directory"
            )
        work = out / f"{WORK}{secrets.token_hex(8)}"
        work.mkdir()
        write_json(path, settings, work=work)
        work.rmdir()
        return
    before = json.loads(path.read_text("utf-8"))
    if before != settings:
        names = sorted(before.keys() | settings.keys())
        other = [
            f"{name}: {before.get(name)} then, {settings.get(name)} now"
            for name in names
            if before.get(name) != settings.get(name)
        ]
        raise ValueError(
            f"{out} was begun with other settings:\n  "
            + "\n  ".join(other)
            + "\nGive the same ones again, or another --out."
        )


def report(out: Path, shards: int) -> dict:
    """The report of all that is done so far; also written to report.json."""
    done = [n for n in range(shards) if marker_path(out, n).exists()]
    whole = tally.total([marker_path(out, n) for n in done])
    whole = dict(shards=shards, shards_done=len(done)) | whole
    work = out / f"{WORK}{secrets.token_hex(8)}"
    work.mkdir()
    write_json(out / REPORT, whole, work=work)
    work.rmdir()
    return whole
