"""A stream of ten minutes: memory, and what a frame costs as the cache grows.

    python -m eval.benchmarks.long_stream --model DIR --frames 7500 \\
        --weights int8 --out FILE.json

The model speaks (or, with random weights, hums) on and on: its end token is taken from
it.  For every cache bucket the tables give the seconds per frame in the stream, those
of frames alone (no codec) in a cache of that size, what reading the bucket's keys and
values once costs at the measured read rate, and the process's memory after the bucket's
first groups and at its end.  The codec is timed alone, from the state it has at the
start and from the one it has at the end.  Time on a machine that does nothing else;
`--frames 0` leaves the stream out.
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import numpy as np

from eval.benchmarks import codec, worker_jax
from qwen3tts_jax import model, runtime
from qwen3tts_jax.generation import generate, prompt, sampling
from qwen3tts_jax.serving import engine, session

TEXT = "The ship left the harbour at dawn, and nobody on the pier waved it goodbye."
CODEC_FRAMES, CODEC_TURNS = 8, 20
TIMED_FRAMES = 16


def memory_gib() -> float:
    """Resident memory of this process, now; on Linux."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**30


def open_session(bundle, frames: int) -> session.StreamingSession:
    name = model.METHODS[bundle.config.variant]
    speaker = next((n for n, _ in bundle.config.talker.speaker_ids), None)
    wave = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    voice = bundle.voice(
        **dict(
            voice_clone=dict(ref_audio=(wave, 24000), x_vector_only_mode=True),
            custom_voice=dict(speaker=speaker),
            voice_design=dict(instruct="A calm and low voice."),
        )[name]
    )
    return session.StreamingSession(bundle, voice, seed=0, max_new_tokens=frames + 1)


def stream(bundle, frames: int) -> list[dict]:
    """One entry for every group: frames so far, seconds, cache slots, memory."""
    opened, groups = open_session(bundle, frames), []
    opened.push_text(TEXT)
    opened.end_text()
    last = time.perf_counter()
    for chunk in opened:
        now, state = time.perf_counter(), opened.engine._state
        groups.append(
            dict(
                frames=len(chunk) // 1920,
                seconds=now - last,
                slots=state.size if state is not None else groups[-1]["slots"],
                memory_gib=memory_gib(),
            )
        )
        last = now
    if len(opened.codes) != frames:
        raise ValueError(f"got {len(opened.codes)} frames, expected {frames}")
    return groups


def frame_seconds(bundle, size: int) -> float:
    """Seconds per frame, without the codec, in a cache of `size` slots."""
    lm, config = bundle.language_model, bundle.config
    item, choices = prompt.blank(config, 32), sampling.Options().sampling()
    key, active = generate.row_key(0), np.ones(1, bool)
    text, limit = np.zeros((1, TIMED_FRAMES), np.int32), np.int32([10**6])
    count, times = np.int32(TIMED_FRAMES), []
    with runtime.exact():
        state = generate.read_prompt(lm, config, item, choices, key, size=size)
        for _ in range(4):
            start = time.perf_counter()
            state, made = generate.jit_advance(lm, state, text, count, active, limit)
            jax.block_until_ready(made)
            times.append(time.perf_counter() - start)
    return min(times[1:]) / TIMED_FRAMES


def codec_seconds(bundle, codes: np.ndarray) -> float:
    """Seconds per frame of the codec, from the state after `codes`."""
    tokenizer = bundle.speech_tokenizer
    state = tokenizer.state_after(codes)
    step = jax.jit(lambda decoder, codes, state: decoder.step(codes, state))
    chunk = codes[None, :CODEC_FRAMES]
    with runtime.exact():
        times = [
            codec.timed(step, tokenizer.decoder, chunk, state)[0]
            for _ in range(CODEC_TURNS + 1)
        ]
    return min(times[1:]) / CODEC_FRAMES


def summary(groups: list[dict], slot_bytes: int, rate: float) -> list[dict]:
    """One row for every cache size; its first two groups compile and are left out."""
    rows = []
    for slots in sorted({g["slots"] for g in groups}):
        mine = [g for g in groups if g["slots"] == slots]
        steady = [g for g in mine[2:-1] if g["frames"] == engine.SCHEDULE[-1]]
        times = [g["seconds"] / g["frames"] for g in steady]
        rows.append(
            dict(
                slots=slots,
                frames=sum(g["frames"] for g in mine),
                seconds_per_frame=float(np.median(times)) if times else None,
                seconds_to_read_cache=slots * slot_bytes / rate,
                memory_gib_first=mine[min(2, len(mine) - 1)]["memory_gib"],
                memory_gib_last=mine[-1]["memory_gib"],
            )
        )
    return rows


def measure(args) -> dict:
    job = dict(model=args.model, dtype=args.dtype, weights=args.weights)
    bundle = worker_jax.load(job)  # without an end token
    lm = bundle.language_model
    c = lm.talker.config.transformer
    slot_bytes = 2 * c.layers * c.kv_heads * c.head_dim * np.dtype(lm.dtype).itemsize
    rate = worker_jax.read_rate()
    largest = generate.slots(64, max(args.frames, 7500))
    alone = {
        size: frame_seconds(bundle, size)
        for size in generate.CACHE_BUCKETS
        if size <= largest
    }
    groups = stream(bundle, args.frames) if args.frames else []
    rng = np.random.default_rng(0)
    size = bundle.speech_tokenizer.config.decoder.codebook_size
    codes = rng.integers(
        0, size, (max(args.frames, 64), lm.talker.config.code_groups)
    ).astype(np.int32)
    return dict(
        buckets=summary(groups, slot_bytes, rate),
        seconds_per_frame_alone={
            str(size): dict(seconds=seconds, cache_read=size * slot_bytes / rate)
            for size, seconds in alone.items()
        },
        slot_bytes=slot_bytes,
        read_bytes_per_second=rate,
        codec_seconds_per_frame_at_start=codec_seconds(bundle, codes[:CODEC_FRAMES]),
        codec_seconds_per_frame_at_end=codec_seconds(bundle, codes),
        seconds=sum(g["seconds"] for g in groups),
        frames=args.frames,
        device=jax.devices()[0].platform,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m eval.benchmarks.long_stream", None, __doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", required=True, help="checkpoint directory or hub id")
    add("--frames", type=int, default=7500, help="default: ten minutes")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--weights", choices=("int8", "float8"), help="of one byte each")
    add("--out", type=pathlib.Path, help="JSON file")
    args = parser.parse_args()
    result = measure(args)
    print("slots  s/frame without codec  cache read, s")
    for size, row in result["seconds_per_frame_alone"].items():
        print(f"{size:>5} {row['seconds']:22.4f} {row['cache_read']:14.4f}")
    print("slots  frames  s/frame  cache read, s  memory, GiB (first, last)")
    for row in result["buckets"]:
        frame = row["seconds_per_frame"]
        print(
            f"{row['slots']:5} {row['frames']:7} "
            f"{'' if frame is None else f'{frame:.4f}':>8} "
            f"{row['seconds_to_read_cache']:14.4f} "
            f"{row['memory_gib_first']:12.2f} {row['memory_gib_last']:.2f}"
        )
    print(
        f"codec, s per frame: {result['codec_seconds_per_frame_at_start']:.4f} at the "
        f"start, {result['codec_seconds_per_frame_at_end']:.4f} after "
        f"{result['frames']} frames"
    )
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    else:
        print(json.dumps(result), file=sys.stderr)


if __name__ == "__main__":
    main()
