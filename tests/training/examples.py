"""Packed rows of made-up utterances, and a recipe to train on them."""

import jax
import numpy as np

from qwen3tts_jax import config as configs
from qwen3tts_jax import tiny
from qwen3tts_jax.training import losses, optimizer, packing
from qwen3tts_jax.training import parts as model_parts
from qwen3tts_jax.training import state as states

CONFIG = configs.Qwen3TTSConfig.from_hf(tiny.tts_config("base"))
ROLE = [151644, 77091, 198]  # <|im_start|> assistant \n
LENGTH = 128  # positions a row


def examples(count: int, *, seed: int = 0, frames=(8, 24)) -> list[packing.Example]:
    """Utterances with random texts, codes and x-vectors, in all layouts in turn."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        codes = rng.integers(0, 2048, (int(rng.integers(*frames)), 16))
        made.append(
            packing.example(
                CONFIG,
                codes.astype(np.uint16),
                role=ROLE,
                text=rng.integers(0, 150_000, 6).tolist(),
                language=("english", "auto")[i % 3 == 2],
                voice=rng.standard_normal(CONFIG.talker.transformer.dim, np.float32),
                non_streaming=i % 2 == 0,
            )
        )
    return made


def batch(rows: int, *, each: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """`rows` packed rows of `each` utterances."""
    all_ = examples(rows * each, seed=seed)
    cut = [all_[i * each : (i + 1) * each] for i in range(rows)]
    return packing.pack(CONFIG, cut, packing.Shape(LENGTH, voices=each))


def recipe(*, steps: int = 40, peak: float = 3e-3, **settings) -> states.Recipe:
    """Float32; settings of the recipe, of `optimizer` or of `packing` by name."""
    of_optimizer = settings.pop("optimizer", {})
    of_packing = settings.pop("packing", {})
    return states.Recipe(
        CONFIG,
        optimizer.Optimizer(steps=steps, peak=peak, **of_optimizer),
        losses.Packing(**of_packing),
        dtype="float32",
        **settings,
    )


def params(seed: int = 0) -> dict[str, jax.Array]:
    return states.flatten(model_parts.init(CONFIG, jax.random.key(seed)))
