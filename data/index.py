"""The length index of a corpus: what a plan must know about every utterance.

    python -m data.index --data CORPUS --text_tokenizer DIR --workers 8

reads every record of every finished shard once and writes CORPUS/index: `index.json`
(shards, languages, codec) and `columns.bin`, 12 bytes an utterance, shard after shard.
Nothing else needs to be read again to find batch k of a training run.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures

import numpy as np

from data.format import lengths, records
from qwen3tts_jax.text import tokenizer as text_tokenizer

SCHEMA_VERSION = 1

FOLDER = "index"  # inside the corpus
_JSON, _COLUMNS = "index.json", "columns.bin"
_AGAIN = "make it again with `python -m data.index`"


@dataclasses.dataclass(frozen=True)
class Index:
    """An opened index; it can be pickled, and holds no file open.

    Attributes:
        home: the folder of the index, in which plans are kept too.
        shards: file names, in `directory`.
        rows: int64 [shards].
        languages: the names that `Columns.language` counts; "" is unknown.
        codec: hex, of all codes.
        text_vocabulary: hex, of the tokenizer that counted the text ids.
        left_out: utterances that cannot be used, by reason.
        fingerprint: hex, of all that a plan depends on.
    """

    home: pathlib.Path
    shards: tuple[str, ...]
    rows: np.ndarray
    languages: tuple[str, ...]
    codec: str
    text_vocabulary: str
    left_out: dict[str, int]
    fingerprint: str

    @property
    def directory(self) -> pathlib.Path:
        """The corpus: where the shards are."""
        return self.home.parent

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.rows)])

    def columns(self, shard: int) -> lengths.Columns:
        """Read one shard's columns.

        They are read, not mapped: pages of a map would count as this process's memory,
        and a file that shrinks would end it.
        """
        rows = int(self.rows[shard])
        path = self.home / _COLUMNS
        start = int(self._starts[shard]) * lengths.ROW_BYTES
        raw = np.fromfile(path, np.uint8, rows * lengths.ROW_BYTES, offset=start)
        if len(raw) != rows * lengths.ROW_BYTES:
            raise ValueError(f"{path} ends inside shard {shard}; make the index again")
        return lengths.unpack(raw, rows)


def open_index(directory: str | pathlib.Path, *, codec: str | None) -> Index:
    """Open the index of a corpus.

    Args:
        directory: the corpus, or its index folder.
        codec: hex; an index of another codec is refused.  None takes any.
    Raises: FileNotFoundError; ValueError for an index that is damaged, of another
        version, or of another codec.
    """
    home = pathlib.Path(directory)
    if not (home / _JSON).is_file():
        home = home / FOLDER
    if not (home / _JSON).is_file():
        raise FileNotFoundError(
            f"got {directory} without {FOLDER}/{_JSON}, expected a corpus with its "
            "index; make it with `python -m data.index`"
        )
    found = _read_facts(home)
    expected = int(found.rows.sum()) * lengths.ROW_BYTES
    size = (home / _COLUMNS).stat().st_size if (home / _COLUMNS).is_file() else 0
    if size != expected:
        raise ValueError(
            f"got {home / _COLUMNS} of {size} bytes, expected {expected}; {_AGAIN}"
        )
    if codec is not None and codec != found.codec:
        raise ValueError(
            f"got {home} with codes of the codec {found.codec}, expected {codec}; "
            "encode the audio again with that codec, or train with the other"
        )
    return found


def _read_facts(home: pathlib.Path) -> Index:
    path = home / _JSON
    try:
        facts = json.loads(path.read_text("utf-8"))
        version = facts.pop("schema")
        if version == SCHEMA_VERSION:
            return _from_facts(home, facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {_AGAIN}") from error
    raise ValueError(
        f"got {path} of schema version {version}, expected {SCHEMA_VERSION}; {_AGAIN}"
    )


def _from_facts(home: pathlib.Path, facts: dict) -> Index:
    shards = facts["shards"]
    return Index(
        home=home.resolve(),
        shards=tuple(name for name, _, _ in shards),
        rows=np.asarray([rows for _, rows, _ in shards], np.int64),
        languages=tuple(facts["languages"]),
        codec=facts["codec"],
        text_vocabulary=facts["text_vocabulary"],
        left_out=dict(facts["left_out"]),
        fingerprint=_digest([SCHEMA_VERSION, facts]),
    )


def _digest(value) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.lru_cache(4)  # a tokenizer never changes, and this takes half a second
def vocabulary_hash(tokenizer: text_tokenizer.TextTokenizer) -> str:
    """Hex, of the tokens and their ids; the same for every form of the files."""
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    return _digest(sorted((number, token) for token, number in ids.items()))[:16]


# ---------------------------------------------------------------------- building


def build(
    corpus: str | pathlib.Path,
    tokenizer: text_tokenizer.TextTokenizer,
    *,
    workers: int = 1,
    log: Callable[[str], None] = print,
) -> Index:
    """Read all finished shards of a corpus and write its index.

    An index that was there is replaced, and with it the plans kept in it.

    Args:
        workers: processes; 1 works in this one.
        log: takes lines for the user.
    Raises: FileNotFoundError without a shard; ValueError that names every shard which
        cannot be read, does not hold what its done-marker says, or is of another codec
        than the first.
    """
    corpus = pathlib.Path(corpus)
    paths = _finished(corpus, log)
    counted = _count_all(paths, tokenizer, workers)
    vocabulary = vocabulary_hash(tokenizer)
    return write(
        corpus / FOLDER, counted, len(paths), text_vocabulary=vocabulary, log=log
    )


def write(
    home: pathlib.Path,
    counted: Iterator[lengths.Counted | str],
    count: int,
    *,
    text_vocabulary: str,
    log: Callable[[str], None] = print,
) -> Index:
    """Write an index; the folder appears whole or not at all.

    Args:
        home: the index folder.
        counted: shards in order, or for a bad one what is wrong with it.
        count: how many.
    Raises: ValueError that names all bad shards.
    """
    part = home.with_name(f"{home.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        with open(part / _COLUMNS, "wb") as file:
            facts = _collect(counted, count, file, log)
        facts |= dict(schema=SCHEMA_VERSION, text_vocabulary=text_vocabulary)
        (part / _JSON).write_text(json.dumps(facts) + "\n", "utf-8")
        _replace(home, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_index(home, codec=None)


def _replace(folder: pathlib.Path, new: pathlib.Path) -> None:
    """Put a finished folder in another's place."""
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _finished(corpus: pathlib.Path, log) -> list[pathlib.Path]:
    """The shards that have a done-marker."""
    found = sorted(corpus.glob("*" + records.SUFFIX))
    done = [path for path in found if lengths.marker_of(path).is_file()]
    if len(done) < len(found):
        first = min(set(found) - set(done)).name
        log(
            f"{len(found) - len(done)} shards have no done-marker and are ignored, the "
            f"first is {first}; data/prepare.py has not finished them"
        )
    if not done:
        raise FileNotFoundError(
            f"got {corpus} without a finished shard (*{records.SUFFIX} and its .json), "
            "expected a corpus; make it with data/prepare.py"
        )
    return done


def _count_all(paths, tokenizer, workers: int) -> Iterator[lengths.Counted | str]:
    """For each path in order: its columns, or what is wrong with it."""
    if workers <= 1:
        yield from (lengths.count(path, tokenizer) for path in paths)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads
    with futures.ProcessPoolExecutor(
        workers, spawn, lengths.start_worker, (tokenizer,)
    ) as pool:
        yield from pool.map(lengths.count_in_worker, paths)


def _collect(found: Iterator[lengths.Counted | str], count: int, file, log) -> dict:
    """Write the columns of all shards; returns what index.json says of them."""
    shards, bad, left_out, languages, codec = [], [], collections.Counter(), {}, None
    for done, item in enumerate(found, 1):
        if isinstance(item, lengths.Counted) and item.codec != (codec or item.codec):
            item = (
                f"{item.name}: got codes of the codec {item.codec}, expected {codec} "
                "as in the shards before; encode its audio again"
            )
        if isinstance(item, str):
            bad.append(item)
            continue
        codec = item.codec
        data = _rename_languages(item, languages)
        file.write(data)
        shards.append([item.name, item.rows, zlib.crc32(data)])
        left_out.update(item.left_out)
        if done % max(1, count // 20) == 0 or done == count:
            log(f"indexed {done} of {count} shards")
    if bad:
        raise ValueError(
            "\n".join([f"{len(bad)} of {count} shards cannot be used:", *bad])
        )
    return dict(
        codec=codec, languages=list(languages), left_out=left_out, shards=shards
    )


def _rename_languages(item: lengths.Counted, languages: dict[str, int]) -> bytes:
    """The shard's columns, its languages counted as in the whole index."""
    names = [languages.setdefault(name, len(languages)) for name in item.languages]
    if len(languages) > 256:
        raise ValueError(f"got {len(languages)} languages, expected at most 256")
    raw = np.frombuffer(item.data, np.uint8).copy()
    language = lengths.unpack(raw, item.rows).language
    language[:] = np.asarray(names, np.uint8)[language]
    return raw.tobytes()


def main(argv: list[str] | None = None) -> None:
    """Make the index of a corpus."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the corpus, a folder of shards")
    parser.add_argument(
        "--text_tokenizer", required=True, help="a folder with a text tokenizer"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    try:
        tokenizer = text_tokenizer.TextTokenizer.from_directory(args.text_tokenizer)
        made = build(args.data, tokenizer, workers=args.workers)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    left_out = "".join(f", {n} left out ({why})" for why, n in made.left_out.items())
    print(
        f"{made.rows.sum()} utterances in {len(made.shards)} shards, languages "
        f"{', '.join(made.languages)}{left_out}: {made.home}"
    )


if __name__ == "__main__":
    main()
