"""A codec of small widths, made-up crops, and a recipe to train it with."""

import dataclasses

import jax
import numpy as np

from qwen3tts_jax.config import tiny, tokenizer_12hz
from qwen3tts_jax.nn import quantizer
from qwen3tts_jax.training import optimizer
from qwen3tts_jax.training.codec import discriminators
from qwen3tts_jax.training.codec import generator as codec
from qwen3tts_jax.training.codec import losses as codec_losses
from qwen3tts_jax.training.codec import train_step as codec_state

HOP = 1920
TEACHER = 6
CODES = 16


def config() -> tokenizer_12hz.Tokenizer12HzConfig:
    """Tiny, with few codes: a batch here has few frames."""
    values = tiny.tokenizer_config()
    for part in ("encoder_config", "decoder_config"):
        values[part]["codebook_size"] = CODES
        values[part]["num_hidden_layers"] = 1
    values["encoder_config"]["num_filters"] = 4
    values["decoder_config"]["decoder_dim"] = 32
    return tokenizer_12hz.Tokenizer12HzConfig.from_hf(values)


def config_in_pieces() -> tokenizer_12hz.Tokenizer12HzConfig:
    """The same with a decoder that passes through 50 Hz and ends in a filter bank."""
    values = tiny.tokenizer_config()
    for part in ("encoder_config", "decoder_config"):
        values[part]["codebook_size"] = CODES
        values[part]["num_hidden_layers"] = 1
    values["encoder_config"]["num_filters"] = 4
    values["decoder_config"] |= dict(
        decoder_dim=16, upsampling_ratios=[2, 2, 2, 15], upsample_rates=[16]
    )
    return tokenizer_12hz.Tokenizer12HzConfig.from_hf(values)


JUDGES = discriminators.Config(
    periods=(3,), period_channels=(2, 2), stft_ffts=(64,), stft_channels=2
)
SCALES = codec_losses.MelScales(windows=(64, 512), bins=(8, 32))
WEIGHTS = dict(mel=15.0, adversarial=1.0, feature=2.0, commitment=0.25, semantic=1.0)
WEIGHTS |= dict(size=0.0, log_mel=0.0, distillation=0.0)


def recipe(
    *, weights=None, optim=None, mesh=None, whole=None, **settings
) -> codec_state.Recipe:
    """Settings of `generator.Settings` by name; weights that differ from WEIGHTS."""
    usual = dict(
        discriminators=JUDGES,
        scales=SCALES,
        teacher_dim=TEACHER,
        learning=quantizer.Learning(0.9, 0.1),
    )
    adam = dict(steps=50, peak=2e-3, b1=0.8, b2=0.99, clip=1e3, weight_decay=0.0)
    return codec_state.Recipe(
        config=whole or config(),
        optimizer=optimizer.Optimizer(**adam | (optim or {})),
        discriminator_optimizer=optimizer.Optimizer(**adam),
        settings=codec.Settings(
            weights=tuple((WEIGHTS | (weights or {})).items()), **usual | settings
        ),
        mesh=mesh,
    )


def batch(rows: int = 2, frames: int = 4, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Tones that swell and fade, with a teacher that hears their pitch."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames * HOP) / 24_000
    pitch = rng.uniform(100, 400, (rows, 1))
    wave = np.sin(2 * np.pi * pitch * time) * np.sin(7 * pitch / 100 * time) ** 2
    teacher = np.cos(pitch[:, :, None] / 50 * np.arange(1, TEACHER + 1))
    return dict(
        wave=(0.3 * wave).astype(np.float32),
        teacher=np.repeat(teacher, frames, axis=1).astype(np.float16),
        frames=np.full(rows, frames, np.int32),
    )


def start(made: codec_state.Recipe, seed: int = 0) -> codec_state.CodecState:
    """The first state, its leaves drawn by numpy, which needs no compiling."""
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith((".scale", ".cluster_usage")):
            return np.ones(shape, np.float32)
        if path.endswith((".bias", ".initialized", ".alpha", ".beta", ".gamma")):
            return np.zeros(shape, np.float32)
        fan_in = max(int(np.prod(shape[:-1])), 1)
        return rng.standard_normal(shape, np.float32) / np.float32(fan_in) ** 0.5

    params = {p: draw(p, leaf.shape) for p, leaf in made.abstract_params().items()}
    return jax.jit(made.init)(params, jax.random.key(seed))


def without(batch: dict, *names: str) -> dict:
    return {name: value for name, value in batch.items() if name not in names}


def replaced(made: codec_state.Recipe, **settings) -> codec_state.Recipe:
    return dataclasses.replace(
        made, settings=dataclasses.replace(made.settings, **settings)
    )
