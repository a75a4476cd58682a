"""Small corpora of random codes and short texts, as data/prepare.py leaves them."""

import json
import pathlib

import numpy as np

from data import index
from data.format import records
from qwen3tts_jax.text import tokenizer as text_tokenizer

CODEC = "0123456789abcdef"
SHARDS, ROWS = 5, 24
LANGUAGES = ("english", "chinese", "czech", "")
DIM = 64  # of an x-vector: the width of a tiny talker
WORDS = "The ship left harbour at dawn and nobody on the pier waved goodbye".split()


def record(shard: int, row: int) -> records.Record:
    """4 to 49 frames; every voice has several records in its shard."""
    rng = np.random.default_rng([shard, row])
    said = " ".join(rng.choice(WORDS, rng.integers(1, 12)))
    frames = int(rng.integers(4, 50))
    return records.Record(
        id=f"{shard}/{row}",
        text=f"{said} {shard}, {row}.",
        language=LANGUAGES[row % len(LANGUAGES)],
        speaker=f"voice {shard} {row % 5}",
        tier="medium",
        source="test",
        seconds=frames / 12.5,
        codes=rng.integers(0, 2048, (frames, 16), np.uint16),
        instruct="Speak calmly." if row % 3 == 0 else "",
        mel=rng.normal(size=(20 + row, 128)).astype(np.float16),
        x_vector=rng.normal(size=DIM).astype(np.float16),
    )


def write_shard(
    corpus: pathlib.Path, shard: int, rows: list[bytes], *, codec: str = CODEC
) -> None:
    """A shard and its done-marker."""
    name = f"shard-{shard:05d}"
    records.write_shard(corpus / (name + records.SUFFIX), rows)
    facts = dict(schema=1, codec=codec, codebooks=16, rows=len(rows))
    (corpus / (name + ".json")).write_text(json.dumps(facts))


def write(
    corpus: pathlib.Path,
    tokenizer: text_tokenizer.TextTokenizer,
    *,
    codec: str = CODEC,
    shards: int = SHARDS,
) -> None:
    """A corpus with its index.  codec: the fingerprint of the codec it shall be of."""
    corpus.mkdir(exist_ok=True)
    for shard in range(shards):
        rows = [records.encode(record(shard, row), codec=codec) for row in range(ROWS)]
        write_shard(corpus, shard, rows, codec=codec)
    index.build(corpus, tokenizer, log=lambda line: None)
