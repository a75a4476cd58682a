"""The encoder of Whisper, read from a CTranslate2 directory.

It was trained to transcribe and translate 99 languages, on windows of 30 s whose end is
silence.  Its positions are fixed sinusoids from 0: it runs on shorter waves too, and it
hears when something is said; `targets` has measured what both do to its states.
Source: arXiv 2212.04356; openai/whisper.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax.checkpoints import key_tables, weights
from qwen3tts_jax.models.tokenizer_25hz import encoder, features
from qwen3tts_jax.nn import conv, layers
from qwen3tts_jax.teachers import blocks, ctranslate2

FILE = "model.bin"
RATE = 16_000  # Hz
STEP = 2 * features.HOP  # samples: one state each 20 ms
NORM_EPS = 1e-5
TAIL = 16_000  # samples of silence wanted after a clip
SPEC = "WhisperSpec"
PLAIN = "plain"  # the last state without the learnt scale and shift of its norm


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes; `positions` is the longest input, 1500 steps for 30 s."""

    dim: int
    heads: int
    ffn: int
    layers: int
    positions: int = 1500
    mel_bins: int = 80

    @property
    def default_layer(self) -> str:
        """The last one, as far as it does not depend on the time (see `targets`)."""
        return PLAIN

    def check(self, layer: int | str) -> None:
        """Raises ValueError unless `hidden` knows this layer."""
        blocks.check_layer(layer, self.layers, PLAIN)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).  x: float [B, T, D]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        dim, bias = config.dim, dict(bias=True, rngs=rngs)
        self.attention_norm = layers.LayerNorm(dim, eps=NORM_EPS)
        self.query_key_value = layers.Linear(dim, 3 * dim, **bias)
        self.out = layers.Linear(dim, dim, **bias)
        self.mlp_norm = layers.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = layers.GeluMLP(dim, config.ffn, **bias)
        self.heads = config.heads

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, dim = x.shape
        joined = self.query_key_value(self.attention_norm(x))
        joined = joined.reshape(batch, length, 3, self.heads, dim // self.heads)
        x = x + self.out(blocks.attend(*jnp.moveaxis(joined, 2, 0)))
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nnx.Module):
    """Two convolutions, sinusoids, blocks, a last norm."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        dim, kernel = config.dim, dict(kernel_size=3, rngs=rngs)
        self.conv1 = conv.CausalConv1d(config.mel_bins, dim, **kernel)
        self.conv2 = conv.CausalConv1d(dim, dim, stride=2, **kernel)
        self.positions = nnx.Param(encoder.sinusoids(config.positions, dim))
        stack = [Block(config, rngs=rngs) for _ in range(config.layers)]
        self.blocks = nnx.List(stack)
        self.norm = layers.LayerNorm(dim, eps=NORM_EPS)
        self.config = config

    def __call__(self, mel: jax.Array, layer: int | str) -> jax.Array:
        """Float [B, T/2, D], state `layer` of layers + 1; the last one is normalised.

        mel: float [B, T, M], 100 frames a second, T even and at most 2 * positions.
        layer: as in `hidden`.
        """
        if layer == PLAIN:
            return blocks.choose(self._states(mel, _normalize), len(self.blocks))
        return blocks.choose(self._states(mel, self.norm), layer)

    def _states(self, mel: jax.Array, norm) -> Iterator[jax.Array]:
        x = mel
        for part in (self.conv1, self.conv2):
            x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            x = jax.nn.gelu(blocks.convolve(part, x), approximate=False)
        x = x + self.positions[...][None, : x.shape[1]]
        yield x
        for i, block in enumerate(self.blocks):
            x = block(x)
            yield norm(x) if i + 1 == len(self.blocks) else x


def _normalize(x: jax.Array) -> jax.Array:
    """Each step to mean 0 and variance 1, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + NORM_EPS)


def hidden(
    module: Encoder,
    wave: jax.Array,
    length: jax.Array,
    *,
    layer: int | str | None = None,
) -> jax.Array:
    """States of a batch; state t stands for the 20 ms about sample 320 t.

    Args:
        wave: float [B, W], 16 kHz, in [-1, 1]; W a multiple of 320, at most 480,000.
        length: int [B], samples of each row; behind them is silence, which the encoder
            hears, as it did in training.
        layer: 0 to layers (0: what enters the first one; the last is normalised),
            "average" of these, or "plain": the last one without the learnt scale and
            shift of its norm.  None: that.
    Returns:
        float32 [B, W // 320, D].
    Raises: ValueError for another W or layer.
    """
    c = module.config
    samples, longest = wave.shape[1], c.positions * STEP
    if samples % STEP or not STEP <= samples <= longest:
        raise ValueError(
            f"got {samples} samples, expected a multiple of {STEP}, at most {longest}; "
            "pad with silence, cut what is longer"
        )
    layer = c.default_layer if layer is None else layer
    c.check(layer)
    wave = jnp.where(jnp.arange(samples)[None] < length[:, None], wave, 0.0)
    return module(features.log_mel(wave, bins=c.mel_bins), layer)


def load(directory: pathlib.Path) -> tuple[Config, Encoder]:
    """The encoder of a CTranslate2 directory, float32.

    Raises:
        FileNotFoundError: it has no model.bin.
        ValueError: that is no Whisper model, is quantised, or is not whole.
    """
    path = pathlib.Path(directory) / FILE
    model = ctranslate2.read(path)
    if model.spec != SPEC:
        raise ValueError(f"{path}: got a {model.spec}, expected a {SPEC}")
    prefix = "encoder/"
    arrays = {k: v for k, v in model.variables.items() if k.startswith(prefix)}
    if quantised := sorted(key for key in arrays if key.endswith("_scale")):
        raise ValueError(
            f"{path}: got quantised weights ({quantised[0]} and {len(quantised) - 1} "
            "more); convert the model with --quantization float16"
        )
    config = _sizes(arrays, path)
    arrays = {k: v for k, v in arrays.items() if v.ndim}  # scalars say how to compute
    module = blocks.fill(weights.abstract(Encoder, config), _rules(), arrays, path)
    return config, module


def _sizes(arrays: dict[str, np.ndarray], path: pathlib.Path) -> Config:
    shapes = {key: value.shape for key, value in arrays.items()}
    numbers = [re.match(r"encoder/layer_(\d+)/", key) for key in arrays]
    try:
        dim, mel_bins, _ = shapes["encoder/conv1/weight"]
        return Config(
            dim=dim,
            heads=int(arrays["encoder/num_heads"]),
            ffn=shapes["encoder/layer_0/ffn/linear_0/weight"][0],
            layers=1 + max(int(match[1]) for match in numbers if match),
            positions=shapes["encoder/position_encodings/encodings"][0],
            mel_bins=mel_bins,
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: the sizes of its encoder lack {error}") from error


def _rules() -> list[key_tables.Rule]:
    rules = [key_tables.Rule("positions", "encoder/position_encodings/encodings")]
    for name in ("conv1", "conv2"):
        weight, bias = (f"encoder/{name}/{part}" for part in ("weight", "bias"))
        rules.append(key_tables.Rule(f"{name}.kernel", weight, key_tables.CONV))
        rules.append(key_tables.Rule(f"{name}.bias", bias))
    norms = dict(names=("gamma", "beta"), join="/")
    ours, theirs = "blocks.*", "encoder/layer_*"
    attention, mlp = f"{theirs}/self_attention", f"{theirs}/ffn"
    rules += blocks.norm(f"{ours}.attention_norm", f"{attention}/layer_norm", **norms)
    rules += blocks.norm(f"{ours}.mlp_norm", f"{mlp}/layer_norm", **norms)
    for name, key in (
        ("query_key_value", f"{attention}/linear_0"),
        ("out", f"{attention}/linear_1"),
        ("mlp.up", f"{mlp}/linear_0"),
        ("mlp.down", f"{mlp}/linear_1"),
    ):
        rules += blocks.linear(f"{ours}.{name}", key, join="/")
    return rules + blocks.norm("norm", "encoder/layer_norm", **norms)
