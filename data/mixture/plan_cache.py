"""The numbers a plan is made of: counted once for all blocks, kept beside the index."""

import collections
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures

import numpy as np

from data.mixture import blocks as blocks_
from data.mixture import stages

VERSION = 1  # of all that decides what is in a pack
_LOG_SECONDS = 10
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a plan knows of every block.

    Attributes:
        packs: int32 [pools, rounds, blocks].
        positions: int64 [pools, rounds].
        most: int32 [pools], utterances in the fullest pack.
        left_out: int64 [rounds, reasons], see `blocks.LEFT_OUT`.
    """

    packs: np.ndarray
    positions: np.ndarray
    most: np.ndarray
    left_out: np.ndarray


def path_of(index, stage: stages.Stage) -> pathlib.Path:
    """Where the tables of a stage are kept; the name tells index and stage apart.

    Weights and batch size are no part of it: they may change and the tables hold.
    """
    facts = dataclasses.asdict(stage)
    del facts["rows"]
    for pool in facts["pools"]:
        del pool["weight"]
    text = repr((VERSION, index.fingerprint, facts))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return pathlib.Path(index.home) / f"plan-{digest}.npz"


def fingerprint(index, stage: stages.Stage) -> str:
    """Hex, of all that decides which examples batch k has."""
    text = repr((VERSION, index.fingerprint, dataclasses.asdict(stage)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_or_make(
    index, stage: stages.Stage, *, workers: int, log: Callable[[str], None]
) -> Tables:
    """The tables kept beside the index; made and kept there if they are missing.

    Args:
        workers: processes; 1 works in this one.
        log: takes lines for the user.
    Raises: ValueError for a pool with an unknown language.
    """
    blocks_.check(index, stage)
    blocks = blocks_.Blocks(index, stage)
    path = path_of(index, stage)
    tables = _load(path, blocks, log)
    if tables is None:
        tables = _make(blocks, workers, log)
        _save(path, tables)
    return tables


def _shapes(blocks: blocks_.Blocks) -> dict[str, tuple[int, ...]]:
    pools, rounds = len(blocks.stage.pools), blocks.stage.rounds
    return dict(
        packs=(pools, rounds, len(blocks)),
        positions=(pools, rounds),
        most=(pools,),
        left_out=(rounds, len(blocks_.LEFT_OUT)),
    )


def _load(path: pathlib.Path, blocks: blocks_.Blocks, log) -> Tables | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["name"]) != path.stem:
                raise ValueError(f"it is {file['name']} under another name")
            tables = Tables(**{name: file[name] for name in _shapes(blocks)})
        shapes = {name: getattr(tables, name).shape for name in _shapes(blocks)}
        if shapes != _shapes(blocks):
            raise ValueError(f"shapes {shapes}, expected {_shapes(blocks)}")
        return tables
    except _DAMAGE as error:
        log(f"{path} is damaged ({error!r}) and is made again")
        return None


def _save(path: pathlib.Path, tables: Tables) -> None:
    """Appears whole or not at all; several hosts may write the same file."""
    part = path.with_name(f"{path.stem}.part-{os.uname().nodename}-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as file:
            np.savez(file, name=path.stem, **vars(tables))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ------------------------------------------------------------------------- making


def _make(blocks: blocks_.Blocks, workers: int, log) -> Tables:
    shapes = _shapes(blocks)
    tables = Tables(
        packs=np.zeros(shapes["packs"], np.int32),
        positions=np.zeros(shapes["positions"], np.int64),
        most=np.zeros(shapes["most"], np.int32),
        left_out=np.zeros(shapes["left_out"], np.int64),
    )
    jobs = [(r, b) for r in range(blocks.stage.rounds) for b in range(len(blocks))]
    report = _progress(f"plan of stage {blocks.stage.name!r}", len(jobs), log)
    for (round, block), count in zip(jobs, _count_all(blocks, jobs, workers)):
        tables.packs[:, round, block] = count.packs
        tables.positions[:, round] += count.positions
        np.maximum(tables.most, count.most, out=tables.most)
        tables.left_out[round] += [count.left_out[why] for why in blocks_.LEFT_OUT]
        report()
    return tables


def _count_all(blocks, jobs, workers: int) -> Iterator[blocks_.Count]:
    """The counts of all jobs in order, never far ahead of who takes them."""
    if workers <= 1:
        yield from (blocks.count(*job) for job in jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads
    with futures.ProcessPoolExecutor(workers, spawn, _start, (blocks,)) as pool:
        running = collections.deque()
        for job in jobs:
            running.append(pool.submit(_count_in_worker, job))
            if len(running) > 8 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


_worker = {}  # what a worker process was started with


def _start(blocks: blocks_.Blocks) -> None:
    _worker["blocks"] = blocks


def _count_in_worker(job: tuple[int, int]) -> blocks_.Count:
    return _worker["blocks"].count(*job)


def _progress(what: str, total: int, log) -> Callable[[], None]:
    """A function to call for each job done; it logs every few seconds."""
    start = shown = time.monotonic()
    done = 0

    def report() -> None:
        nonlocal done, shown
        done, now = done + 1, time.monotonic()
        if now - shown > _LOG_SECONDS or (done == total and shown > start):
            shown, left = now, (now - start) * (total - done) / done
            log(f"{what}: {done} of {total} blocks, {left:.0f} s left")

    return report
