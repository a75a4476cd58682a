"""Packed rows of made-up utterances, and a recipe to train on them."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from data.loading import packed_rows
from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.training import optimizer
from qwen3tts_jax.training.lm import losses, train_step
from qwen3tts_jax.training.lm import params as model_parts

WHOLE = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("base"))
CODES = 64  # of codebooks 1..15, instead of 2048: scoring them is most of the work
CONFIG = dataclasses.replace(
    WHOLE,
    speaker_encoder=None,  # voices are x-vectors
    code_predictor=dataclasses.replace(WHOLE.code_predictor, vocab_size=CODES),
)
ROLE = [151644, 77091, 198]  # <|im_start|> assistant \n
LENGTH = 96  # positions a row


def compiler(level: int) -> dict[str, int | bool]:
    """XLA options for programs that run few times (0) or some dozens of times (1):
    compiling them is what takes the time, a sixth or a third of it with these."""
    options = {"xla_backend_optimization_level": level}
    if jax.__version_info__ < (0, 11):  # later ones have no such option
        options["xla_cpu_use_fusion_emitters"] = False
    return options


QUICK = compiler(0)


def on_simulated_devices(program: str, count: int) -> dict[str, dict]:
    """mesh -> what a program beside this file prints of it, a line of JSON each."""
    flags = {"xla_force_host_platform_device_count": count} | QUICK
    env = os.environ | {
        "XLA_FLAGS": " ".join(f"--{k}={str(v).lower()}" for k, v in flags.items()),
        # threads: with fewer than devices, two collectives can wait for each other
        "NPROC": "32",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    path = pathlib.Path(__file__).with_name(program)
    done = subprocess.run(
        [sys.executable, path], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = map(json.loads, done.stdout.splitlines())
    return {line["mesh"]: line for line in lines}


def examples(count: int, *, seed: int = 0, frames=(5, 13)) -> list[packed_rows.Example]:
    """Utterances with random texts, codes and x-vectors, in all layouts in turn."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        size = int(rng.integers(*frames))
        first, rest = (
            rng.integers(0, 2048, (size, 1)),
            rng.integers(0, CODES, (size, 15)),
        )
        made.append(
            packed_rows.example(
                CONFIG,
                np.concatenate([first, rest], axis=1).astype(np.uint16),
                role=ROLE,
                text=rng.integers(0, 150_000, 6).tolist(),
                language=("english", "auto")[i % 3 == 2],
                voice=rng.standard_normal(CONFIG.talker.transformer.dim, np.float32),
                non_streaming=i % 2 == 0,
            )
        )
    return made


def pack(rows: list[list[packed_rows.Example]], *, voices: int = 3) -> dict:
    """Rows of utterances as arrays."""
    return packed_rows.pack(CONFIG, rows, packed_rows.Shape(LENGTH, voices=voices))


def batch(rows: int, *, each: int = 3, **settings) -> dict[str, np.ndarray]:
    """`rows` packed rows of `each` utterances; settings of `examples`."""
    all_ = examples(rows * each, **settings)
    cut = [all_[i * each : (i + 1) * each] for i in range(rows)]
    return pack(cut, voices=each)


def recipe(
    config: tts.Qwen3TTSConfig = CONFIG,
    *,
    steps: int = 40,
    peak: float = 3e-3,
    **settings,
) -> train_step.Recipe:
    """Float32; settings of the recipe, of `optimizer` or of `packed_rows` by name."""
    of_optimizer = settings.pop("optimizer", {})
    of_packing = settings.pop("packing", {})
    return train_step.Recipe(
        config,
        optimizer.Optimizer(steps=steps, peak=peak, **of_optimizer),
        losses.Packing(**of_packing),
        **dict(dtype="float32") | settings,
    )


def params(config: tts.Qwen3TTSConfig = CONFIG) -> dict[str, jax.Array]:
    """path -> random float32 array; drawn by numpy, which needs no compiling."""
    draw = np.random.default_rng(0)
    return {
        path: jnp.ones(x.shape)
        if path.endswith(".scale")
        else jnp.asarray(0.02 * draw.standard_normal(x.shape, np.float32))
        for path, x in train_step.flatten(model_parts.abstract(config)).items()
    }
