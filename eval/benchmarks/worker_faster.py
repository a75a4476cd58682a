"""The side of the pip package faster-qwen3-tts in `speed`: one task, one line of
JSON on stdout.  It needs an NVIDIA GPU.

NOT RUN BY US: written from the source of version 0.5.4; there was no GPU with the
package.  Run by `python -m eval.benchmarks.speed --against faster-qwen3-tts` with the
Python of an environment of its own (it wants transformers 5, the official package 4):

    pip install faster-qwen3-tts

Its predictor always samples (that is captured in its CUDA graph), which costs what
greedy costs; its codes are not compared.
"""

import importlib.metadata
import json
import statistics
import sys
import time

import faster_qwen3_tts
import numpy as np
import torch

FEW_FRAMES = 2  # the short run, whose time is taken off the long one's
CHUNKS = (1, 12)  # frames of a packet: the fewest, and the package's default
REPEATS = 3
FRAME_SECONDS = 0.08
METHODS = dict(
    base="generate_voice_clone",
    custom_voice="generate_custom_voice",
    voice_design="generate_voice_design",
)


class NoCodec:
    """Stands where the codec is, so that speaking stops at the codes."""

    def decode(self, encoded):
        self.frames = encoded["audio_codes"].shape[1]
        return [np.zeros(1, np.float32)], 24000


def timed(function, *args):
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*args)
    torch.cuda.synchronize()
    return time.perf_counter() - start, result


def load(job: dict):
    """The checkpoint on the first GPU."""
    dtype = getattr(torch, job["dtype"])
    return faster_qwen3_tts.FasterQwen3TTS.from_pretrained(
        job["model"], device="cuda", dtype=dtype
    )


def request(tts, job: dict, frames: int) -> tuple[str, dict]:
    """(method, arguments) that make exactly so many frames."""
    arguments = dict(job["request"])
    if arguments.pop("x_vector_only_mode", False):
        arguments["xvec_only"] = True
    count = dict(max_new_tokens=frames, min_new_tokens=frames)
    return METHODS[tts.model.model.tts_model_type], arguments | count


def make_codes(tts, job: dict, frames: int) -> None:
    """The public method without the codec."""
    bundle = tts.model.model
    codec, bundle.speech_tokenizer = bundle.speech_tokenizer, NoCodec()
    try:
        method, arguments = request(tts, job, frames)
        getattr(tts, method)(**arguments)
        made = bundle.speech_tokenizer.frames
    finally:
        bundle.speech_tokenizer = codec
    if made != frames:
        raise ValueError(f"got {made} frames, expected {frames}")


def listen(tts, job: dict, chunk: int) -> tuple[list[float], float]:
    """(arrivals of the packets in seconds after the request, seconds of sound)."""
    method, arguments = request(tts, job, job["stream_frames"])
    start, at, samples = time.perf_counter(), [], 0
    stream = getattr(tts, f"{method}_streaming")(**arguments, chunk_size=chunk)
    for wave, rate, _ in stream:
        at.append(time.perf_counter() - start)
        samples += len(wave) / rate
    return at, samples


def time_stream(tts, job: dict, chunk: int) -> dict:
    """One stream: medians of three after an unmeasured one."""
    heard = [listen(tts, job, chunk) for _ in range(REPEATS + 1)][1:]
    first = [at[0] for at, _ in heard]
    total = statistics.median(at[-1] for at, _ in heard)
    spoken = job["stream_frames"] * FRAME_SECONDS
    return dict(
        concurrency=1,
        packets=str(chunk),
        frames=job["stream_frames"],
        seconds_first_byte=[statistics.median(first), max(first)],
        seconds_first_audible=None,
        seconds_per_frame_step=None,
        audio_seconds_per_second=spoken / total,
        rtf_stream=total / spoken,
        peak_memory_gib=torch.cuda.max_memory_allocated() / 2**30,
    )


def measure(job: dict) -> dict:
    """Frame time by the difference of two runs; streams of one listener."""
    load_seconds, tts = timed(load, job)
    first, _ = timed(make_codes, tts, job, FEW_FRAMES)
    few = min(timed(make_codes, tts, job, FEW_FRAMES)[0] for _ in range(3))
    many, _ = timed(make_codes, tts, job, job["frames"])
    frame = (many - few) / (job["frames"] - FEW_FRAMES)
    streams = [time_stream(tts, job, chunk) for chunk in CHUNKS]
    return dict(
        seconds_load=load_seconds,
        seconds_compile=first - few,
        seconds_prefill=few - FEW_FRAMES * frame,
        seconds_per_frame=frame,
        peak_memory_gib=torch.cuda.max_memory_allocated() / 2**30,
        streams=streams,
    )


def check(job: dict) -> dict:
    """That it could run here: the imports have worked."""
    if not torch.cuda.is_available():
        raise RuntimeError("it needs a CUDA device, and torch sees none")
    return {}


TASKS = dict(measure=measure, check=check)


def main() -> None:
    job = json.loads(sys.argv[1])
    report = TASKS[job["task"]](job)
    versions = dict(python=sys.version.split()[0], torch=torch.__version__)
    name = "faster-qwen3-tts"
    versions[name] = importlib.metadata.version(name)
    print(json.dumps(report | dict(versions=versions, device="cuda:0")))


if __name__ == "__main__":
    main()
