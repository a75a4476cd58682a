"""Qwen3-TTS-Tokenizer-25Hz, log-mel -> codes: Whisper's encoder with a VQ inside.

log-mel (100 Hz) -> two convolutions (50 Hz) and sinusoids -> transformer layers ->
stride-2 convolution (25 Hz) -> VQ: one code each 40 ms.  The layers after it lead the
codewords back to 50 Hz and on to what a language model hears, 25 vectors a second;
training the codes by speech recognition needs them, encoding does not.

All happens in windows of 2 s that know nothing of each other: positions restart in each
and attention stays inside.  This is what the official code computes with
flash-attention; its fallback for CPUs masks nothing, so that the end of a wave hears
its own padding.  Source: arXiv 2601.15621 (tokenizer); WhisperEncoderVQ.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax.config import tokenizer_25hz
from qwen3tts_jax.nn import attention, conv, layers, quantizer

KERNEL, STRIDE = 3, 2  # of the convolutions; the second one's: 100 Hz -> 50 Hz
FFN_RATIO = 4
NORM_EPS = 1e-5
SLOWEST = 10_000  # the longest sinusoid, in units of the shortest
POOL = 2  # steps averaged after the last layer: 50 Hz -> 25 Hz
BEGIN, END = 0, 1  # rows of the marks around what a language model hears


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); all see all that the mask lets."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs):
        bias = dict(bias=True, rngs=rngs)
        self.attention_norm = layers.LayerNorm(dim, eps=NORM_EPS)
        self.query = layers.Linear(dim, dim, **bias)
        self.key = layers.Linear(dim, dim, rngs=rngs)
        self.value = layers.Linear(dim, dim, **bias)
        self.out = layers.Linear(dim, dim, **bias)
        self.mlp_norm = layers.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = layers.GeluMLP(dim, FFN_RATIO * dim, **bias)
        self.heads = heads

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x: float [B, T, D], finite; mask: bool [B, T, S], S = T."""
        y = self.attention_norm(x)
        heads = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query = self.query(y).reshape(heads)  # [B, T, N, H]
        key = self.key(y).reshape(heads).transpose(0, 2, 3, 1)  # [B, N, H, S]
        value = self.value(y).reshape(heads).transpose(0, 2, 1, 3)  # [B, N, S, H]
        y = attention.attend(query, key, value, mask)
        x = x + self.out(y.reshape(x.shape))
        return x + self.mlp(self.mlp_norm(x))


class Quantizer(nnx.Module):
    """One codebook, and linear maps to its width and back where that is another.

    Attributes:
        codewords: float32 [1, V, D], what encodes and decodes.
        embedding_sum: float32 [1, V, D]; cluster_usage: float32 [1, V]; initialized:
            float32 [1, 1]: statistics of training, carried along.
    """

    def __init__(self, size: int, dim: int, *, outer_dim: int, rngs: nnx.Rngs):
        normal = jax.random.normal(rngs.params(), (1, size, dim))
        self.codewords = nnx.Param(normal)
        self.embedding_sum = nnx.Param(normal)
        self.cluster_usage = nnx.Param(jnp.ones((1, size)))
        self.initialized = nnx.Param(jnp.ones((1, 1)))
        self.projected = dim != outer_dim
        if self.projected:
            self.input_proj = layers.Linear(outer_dim, dim, bias=True, rngs=rngs)
            self.output_proj = layers.Linear(dim, outer_dim, bias=True, rngs=rngs)

    def project(self, x: jax.Array) -> jax.Array:
        """What is compared with codewords: float32 [B, T, D] of float [B, T, outer]."""
        return (self.input_proj(x) if self.projected else x).astype(jnp.float32)

    def encode(self, vectors: jax.Array) -> jax.Array:
        """Codes int32 [B, T] of what `project` gave."""
        return quantizer.nearest(vectors, self.codewords[...][0])

    def decode(self, codes: jax.Array) -> jax.Array:
        """Float32 [B, T, D] of codes: int [B, T]."""
        return self.codewords[...][0][codes]

    def unproject(self, vectors: jax.Array) -> jax.Array:
        """Float [B, T, outer] of vectors: float [B, T, D]."""
        return self.output_proj(vectors) if self.projected else vectors


class Encoder(nnx.Module):
    """Log-mel to codes, and on to what a language model hears.

    In every method mel is float [B, T4, M] from `features.log_mel`, whose dtype is
    computed in, and length is int [B], the mel frames of each row that count, a
    multiple of 4 (else what is left over makes no code); the rest is not heard, NaN
    included.  T = T4 // 4 steps of 40 ms; of row b the first length // 4 count.
    """

    def __init__(
        self, config: tokenizer_25hz.Tokenizer25HzEncoderConfig, *, rngs: nnx.Rngs
    ):
        c, dim = config, config.dim
        self.conv1 = _conv(c.mel_bins, dim, KERNEL, 1, rngs)
        self.conv2 = _conv(dim, dim, KERNEL, STRIDE, rngs)
        self.positions = nnx.Param(sinusoids(c.max_positions, dim))
        blocks = [Block(dim, c.heads, rngs=rngs) for _ in range(c.layers)]
        self.blocks = nnx.List(blocks)
        self.down = _conv(dim, dim, c.vq_stride, c.vq_stride, rngs)
        size = dict(outer_dim=dim, rngs=rngs)
        self.quantizer = Quantizer(c.codebook_size, c.codebook_dim, **size)
        if c.vq_positions:
            self.project_positions = layers.Linear(dim, dim, bias=True, rngs=rngs)
        self.up = conv.CausalConvTranspose1d(
            dim, dim, kernel_size=c.vq_stride, stride=c.vq_stride, rngs=rngs
        )
        self.norm = layers.LayerNorm(dim, eps=NORM_EPS)
        self.project = layers.Linear(dim, c.output_dim, bias=True, rngs=rngs)
        self.marks = layers.Embed(2, c.output_dim, rngs=rngs)
        self.config = config

    def embed(self, mel: jax.Array, length: jax.Array) -> jax.Array:
        """Float32 [B, T, D], what is compared with codewords."""
        c = self.config
        x = self._positioned(mel, length)
        mask = self._mask(length, len(x))
        for block in self.blocks[: c.vq_layers]:
            x = block(x, mask)
        x = _joined(self.down(x), len(mel), mel.shape[1] // (STRIDE * c.vq_stride))
        return self.quantizer.project(x)

    def codes(self, mel: jax.Array, length: jax.Array) -> jax.Array:
        """Encode: int32 [B, T]; codes that do not count are 0."""
        codes = self.quantizer.encode(self.embed(mel, length))
        return jnp.where(self._counts(length, codes.shape[1]), codes, 0)

    def continued(self, vectors: jax.Array, length: jax.Array) -> jax.Array:
        """What the layers after the quantiser make of codewords.

        vectors: float [B, T, D], from `Quantizer.decode`, or in training `embed` with
            the codewords' values (straight-through).
        Result: float [B, T, O]; steps that do not count are 0.
        """
        c, steps = self.config, vectors.shape[1]
        counts = self._counts(length, steps)[..., None]
        x = self.quantizer.unproject(jnp.where(counts, vectors, 0))
        x = _windows(x, c.window // c.vq_stride)
        if c.vq_positions:
            positions = self.positions[...][None, : x.shape[1]].astype(x.dtype)
            x = self.project_positions(x + positions)
        x = self.up(x)  # [B * windows, window, D]
        mask = self._mask(length, len(x))
        for block in self.blocks[c.vq_layers :]:
            x = block(x, mask)
        x = x.reshape(len(x), -1, POOL, c.dim).mean(axis=2)
        x = self.project(self.norm(_joined(x, len(vectors), steps)))
        return jnp.where(counts, x, 0)

    def hidden(self, mel: jax.Array, length: jax.Array) -> jax.Array:
        """Float [B, T, O], what a language model hears of the codes."""
        codes = self.quantizer.encode(self.embed(mel, length))
        vectors = self.quantizer.decode(codes).astype(mel.dtype)
        return self.continued(vectors, length)

    def __call__(self, mel: jax.Array, length: jax.Array) -> jax.Array:
        """`hidden` between two marks, as it stands in a prompt: float [B, T + 2, O].

        Of row b the first length // 4 + 2 steps count, the others are 0.
        """
        x = self.hidden(mel, length)
        begin, end = self.marks(jnp.array([BEGIN, END])).astype(x.dtype)
        last = length[:, None] // (STRIDE * self.config.vq_stride) + 1
        step = jnp.arange(x.shape[1] + 2)[None]  # [1, T + 2]
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        x = jnp.where((step == 0)[..., None], begin[None, None], x)
        return jnp.where((step == last)[..., None], end[None, None], x)

    def _positioned(self, mel: jax.Array, length: jax.Array) -> jax.Array:
        """What enters the first layer: float [B * windows, window, D]."""
        window = STRIDE * self.config.window
        heard = jnp.arange(mel.shape[1])[None] < length[:, None]
        x = _windows(jnp.where(heard[..., None], mel, 0), window)
        x = jax.nn.gelu(_same(self.conv1, x), approximate=False)
        # Silence is not what the first convolution makes of silence: at the end of a
        # row, as at that of a window, the second one finds zeros.
        heard = _windows(heard[..., None], window)
        x = jax.nn.gelu(_same(self.conv2, jnp.where(heard, x, 0)), approximate=False)
        return x + self.positions[...][None, : x.shape[1]].astype(x.dtype)

    def _mask(self, length: jax.Array, windows: int) -> jax.Array:
        """Bool [B * windows, window, window]: keys before the end of their row."""
        window = self.config.window
        steps = jnp.arange(windows // len(length) * window)[None]
        heard = steps < -(-length[:, None] // STRIDE)
        heard = heard.reshape(windows, 1, window)  # [B * windows, 1, S]
        return jnp.broadcast_to(heard, (windows, window, window))

    def _counts(self, length: jax.Array, steps: int) -> jax.Array:
        """Bool [B, T]: steps of 40 ms before the end of their row."""
        count = length // (STRIDE * self.config.vq_stride)
        return jnp.arange(steps)[None] < count[:, None]


def sinusoids(length: int, dim: int) -> jax.Array:
    """Float32 [T, D]: sines, then cosines, of D / 2 rates from 1 down to 1e-4."""
    rate = np.exp(-math.log(SLOWEST) / (dim // 2 - 1) * np.arange(dim // 2))
    angle = np.arange(length)[:, None] * rate[None]
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], 1), jnp.float32)


def _conv(in_dim: int, out_dim: int, kernel_size: int, stride: int, rngs: nnx.Rngs):
    size = dict(kernel_size=kernel_size, stride=stride)
    return conv.CausalConv1d(in_dim, out_dim, **size, rngs=rngs)


def _same(part: conv.CausalConv1d, x: jax.Array) -> jax.Array:
    """The convolution with one zero on each side: float [B, ceil(T / stride), C]."""
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return part.step(x[:, part.history :], x[:, : part.history])[0]


def _windows(x: jax.Array, size: int) -> jax.Array:
    """[B, T, C] -> [B * ceil(T / size), size, C], the last ones filled with zeros."""
    batch, length, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % size), (0, 0)))
    return x.reshape(-1, size, channels)


def _joined(x: jax.Array, batch: int, steps: int) -> jax.Array:
    """[B * windows, size, C] -> [B, steps, C]: what `_windows` took apart."""
    return x.reshape(batch, -1, x.shape[2])[:, :steps]
