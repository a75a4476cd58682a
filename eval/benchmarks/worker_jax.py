"""Our side of `speed.py`, in a process of its own: a job in, a line of JSON out.

python -m eval.benchmarks.worker_jax '{"task": "measure", ...}'
"""

import dataclasses
import json
import platform
import resource
import sys
import time

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax import struct

from eval.benchmarks import codec as codec_speed
from eval.benchmarks import packets as packet_speed
from eval.benchmarks import quantization_error
from eval.benchmarks import streams as stream_speed
from qwen3tts_jax import model, runtime
from qwen3tts_jax.generation import generate, sampling

FEW_FRAMES = 2  # the short run, whose time is taken off the long one's
READ_BYTES = dict(cpu=2**30, other=2**32)  # much more than any cache holds
NO_TOKEN = -1  # as the id of the end token: the model then has none


@struct.dataclass
class SilentPredictor:
    """Stands where the code predictor is, so that a frame costs the rest alone."""

    groups: int = struct.field(pytree_node=False)

    def generate(self, hidden, first, choose):
        return jnp.zeros((len(hidden), self.groups), jnp.int32)

    def embed(self, codes):
        return jnp.float32(0)


def load(job: dict) -> model.Qwen3TTSModel:
    """The checkpoint, without an end token, so that only a count ends its frames."""
    bundle = model.Qwen3TTSModel.from_pretrained(
        job["model"], dtype=job["dtype"], weights=job["weights"]
    )
    talker = bundle.language_model.talker
    talker.config = dataclasses.replace(talker.config, codec_eos_id=NO_TOKEN)
    return bundle


def frame_maker(bundle: model.Qwen3TTSModel, job: dict):
    """(count, language model) -> codes [count, Q] of the job's request."""
    utterance = stream_speed.utterance(bundle, job)

    def make(count: int, lm: generate.LanguageModel) -> np.ndarray:
        # N tokens make at most N - 1 frames, as officially
        user = dict(job["options"], max_new_tokens=count + 1)
        options = sampling.Options.merge(user, bundle.generate_defaults)
        with runtime.exact():
            [made] = generate.generate(
                lm, bundle.config, [utterance.prompt], options, seed=0, guard=False
            )
        if len(made.codes) != count:
            raise ValueError(f"got {len(made.codes)} frames, expected {count}")
        return made.codes

    return make


def time_frames(make, lm, frames: int) -> tuple[dict, np.ndarray]:
    """Seconds to compile, before the first frame and per frame; the codes."""
    first, _ = codec_speed.timed(make, frames, lm)
    few = min(codec_speed.timed(make, FEW_FRAMES, lm)[0] for _ in range(3))
    many, codes = codec_speed.timed(make, frames, lm)
    frame = (many - few) / (frames - FEW_FRAMES)
    seconds = dict(
        seconds_compile=first - many,
        seconds_prefill=few - FEW_FRAMES * frame,
        seconds_per_frame=frame,
    )
    return seconds, codes


@jax.jit
def predict_frames(lm: generate.LanguageModel, params: sampling.Sampling, frames):
    """Codebooks 1..15 of one frame after another, as in `generate.make_frame`.

    Returns the last embedding [1, D], on which each frame depends.
    """
    key = jax.random.key(0)

    def frame(n, x):
        def choose(scores, i):
            keys = jax.random.fold_in(jax.random.fold_in(key, n), i)[None]
            return sampling.choose(scores, params.predictor, keys)

        codes = lm.predictor.generate(x, x, choose)  # [1, 15]
        return lm.talker.embed_codec(codes[:, -1])

    first = lm.talker.embed_codec(jnp.zeros(1, jnp.int32))
    return jax.lax.fori_loop(0, frames, frame, first)


def time_predictor(lm: generate.LanguageModel, options: dict, frames: int) -> float:
    """Seconds per frame that the code predictor takes alone."""
    params = sampling.Options.merge(options, {}).sampling()
    with runtime.exact():
        predict_frames(lm, params, 1).block_until_ready()
        return codec_speed.timed(predict_frames, lm, params, frames)[0] / frames


def parameter_bytes(module) -> int:
    """Bytes of a module's parameters, or of its shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(module))


def bytes_per_frame(lm: generate.LanguageModel) -> dict[str, int]:
    """Bytes of weights that talker and, at 12.5 Hz, predictor read for one frame."""
    talker, predictor = lm.talker, lm.predictor
    read = dict(talker=parameter_bytes((talker.transformer, talker.codec_head)))
    if predictor is None:
        return read
    passes = predictor.config.code_groups - 1  # the first reads once for two positions
    again = parameter_bytes((predictor.transformer, predictor.projection))
    return read | dict(predictor=passes * again + parameter_bytes(predictor.heads))


def read_rate() -> float:
    """Bytes per second at which products read a large matrix; best of five.

    Not a plain sum: on CPU XLA runs that on one thread, and it is slower.
    """
    size = READ_BYTES.get(jax.devices()[0].platform, READ_BYTES["other"])
    matrix = jnp.ones((size // 4 // 4096, 4096), jnp.float32)
    vector = jnp.ones(len(matrix))
    product = jax.jit(lambda x, y: x @ y)
    with runtime.exact():
        product(vector, matrix).block_until_ready()
        return size / min(
            codec_speed.timed(product, vector, matrix)[0] for _ in range(5)
        )


def peak_memory() -> float:
    """GiB: of the device where it counts them, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(job: dict) -> dict:
    """Everything but the start; memory before whatever a speaker would not do."""
    load_seconds, bundle = codec_speed.timed(load, job)
    lm, frames, codec = bundle.language_model, job["frames"], bundle.speech_tokenizer
    make = frame_maker(bundle, job)
    seconds, codes = time_frames(make, lm, frames)
    codec.decode([codes], states=[stream_speed.utterance(bundle, job).codec])
    peak = peak_memory()
    return dict(
        **seconds,
        seconds_load=load_seconds,
        **time_parts(make, lm, job),
        **codec_speed.measure(codec, job),
        peak_memory_gib=peak,
        codec_dtype=str(codec_speed.dtype(codec)),
        codes=codes.tolist(),
        bytes_per_frame=bytes_per_frame(lm),
        read_bytes_per_second=read_rate(),
    )


def time_parts(make, lm: generate.LanguageModel, job: dict) -> dict:
    """Seconds per frame of code predictor and talker; at 25 Hz the talker is all."""
    if lm.predictor is None:
        return {}
    frames = job["frames"]
    silent = SilentPredictor(lm.predictor.config.code_groups - 1)
    talker, _ = time_frames(make, lm.replace(predictor=silent), frames)
    return dict(
        seconds_per_frame_predictor=time_predictor(lm, job["options"], frames),
        seconds_per_frame_talker=talker["seconds_per_frame"],
    )


def start(job: dict) -> dict:
    """When the first frame was there, in seconds since 1970."""
    bundle = load(job)
    frame_maker(bundle, job)(1, bundle.language_model)
    return dict(first_frame_at=time.time())


def stream(job: dict) -> dict:
    """`streams.concurrent` in a process of its own, so that its memory shows."""
    streams = stream_speed.concurrent(load(job), job)
    return dict(streams=[streams | dict(peak_memory_gib=peak_memory())])


def packets(job: dict) -> dict:
    """See `packets.packets`."""
    return dict(packets=[packet_speed.packets(load(job), job)])


def latency(job: dict) -> dict:
    """See `packets.timeline`: of each of the job's sides."""
    bundle = load(job)
    sides = {
        name: packet_speed.timeline(bundle, job, side)
        for name, side in job["sides"].items()
    }
    return dict(sides=sides)


def experiments(job: dict) -> dict:
    """See `streams.first_packets`."""
    return dict(first_packets=stream_speed.first_packets(load(job), job))


def agreement(job: dict) -> dict:
    """See `quantization_error.compare`."""
    bundle = load(job | dict(weights=None))
    make, lm = frame_maker(bundle, job), bundle.language_model
    item = stream_speed.utterance(bundle, job).prompt
    others = quantization_error.compare(
        bundle.config, item, make, lm, lm.quantized(job["weights"]), job["frames"]
    )
    return dict(agreement=others)


def profile(job: dict) -> dict:
    """See `streams.trace`."""
    stream_speed.trace(load(job), job)
    return {}


TASKS = dict(
    measure=measure,
    start=start,
    stream=stream,
    packets=packets,
    experiments=experiments,
    latency=latency,
    agreement=agreement,
    profile=profile,
)


def work(job: dict) -> dict:
    """One task in this process: what the line of JSON says."""
    report = TASKS[job["task"]](job)
    versions = dict(python=platform.python_version(), jax=jax.__version__)
    versions |= dict(jaxlib=jaxlib.__version__, flax=flax.__version__)
    return report | dict(device=jax.devices()[0].platform, versions=versions)


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
