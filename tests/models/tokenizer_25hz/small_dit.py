"""A DiT small enough to be run many times, with blocks of two codes."""

import dataclasses
import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax.config import tiny, tokenizer_25hz
from qwen3tts_jax.models.tokenizer_25hz import dit as dits

TINY = tokenizer_25hz.Tokenizer25HzConfig.from_hf(tiny.tokenizer_25hz_config()).dit
CHUNK, REPEATS = 2, 3  # codes of a block, mel frames of a code
BLOCK = CHUNK * REPEATS
CONFIG = dataclasses.replace(
    TINY,
    dim=12,
    layers=3,
    look_back=(0, 2),
    look_ahead=(1,),
    heads=2,
    head_dim=4,
    code_dim=5,
    codes=9,
    repeats=REPEATS,
    mel_bins=6,
    block=BLOCK,
    xvector_dim=3,
    reference=dataclasses.replace(TINY.reference, mel_bins=6, dim=4),
)


@functools.cache
def make(**changes) -> dits.DiT:
    """With random weights, each of which matters.  changes: of CONFIG."""
    config = dataclasses.replace(CONFIG, **changes)
    return contract.random_part(lambda: dits.DiT(config, rngs=nnx.Rngs(0)))


def random(*shape, seed: int = 0) -> jax.Array:
    normal = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(normal)


def codes(rows: int, count: int) -> jax.Array:
    """int32 [rows, count], none of them 0, which stands for no code."""
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(1, CONFIG.codes, (rows, count), np.int32))


voice = contract.quick_jit(dits.DiT.voice)


def voices(dit: dits.DiT, rows: int) -> jax.Array:
    """float [rows, D], what `DiT.voice` gives."""
    return random(rows, dit.config.dim, seed=2)
