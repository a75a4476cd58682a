"""Qwen3-TTS-Tokenizer-12Hz, wave -> codes: the Mimi encoder.

wave -> causal convolutions (960 samples a step, 25 Hz) -> causal transformer ->
stride-2 convolution (12.5 Hz) -> split RVQ: one semantic and the first 15 of 31
acoustic codebooks.  Source: arXiv 2601.15621 (tokenizer); Qwen3TTSTokenizerV2Encoder.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3tts_jax.config import tokenizer_12hz
from qwen3tts_jax.nn import attention, conv, quantizer, transformer

DOWNSAMPLE = 2  # 25 Hz -> 12.5 Hz


class ResidualUnit(nnx.Module):
    """x + conv1x1(elu(dilated conv(elu(x)))), narrower inside.  x: float [B, T, C]."""

    def __init__(self, dim: int, *, hidden: int, kernel_size: int, dilation: int, rngs):
        self.conv1 = conv.CausalConv1d(
            dim, hidden, kernel_size=kernel_size, dilation=dilation, rngs=rngs
        )
        self.conv2 = conv.CausalConv1d(hidden, dim, kernel_size=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv2(jax.nn.elu(self.conv1(jax.nn.elu(x))))


class DownsampleBlock(nnx.Module):
    """Residual units, then a strided convolution that doubles the channels."""

    def __init__(self, config, dim: int, *, ratio: int, rngs: nnx.Rngs):
        units = [
            ResidualUnit(
                dim,
                hidden=dim // config.compress,
                kernel_size=config.residual_kernel_size,
                dilation=config.dilation_growth**i,
                rngs=rngs,
            )
            for i in range(config.residual_layers)
        ]
        self.units = nnx.List(units)
        self.down = conv.CausalConv1d(
            dim, 2 * dim, kernel_size=2 * ratio, stride=ratio, rngs=rngs
        )

    def __call__(self, x: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: float [B, T, C], length: int [B] -> (float [B, T/ratio, 2C], int [B])."""
        for unit in self.units:
            x = unit(x)
        # the last window of a row may be partial: what is missing of it counts as zero
        x = self.down(jax.nn.elu(_zero_after(x, length)))
        return x, _ceil_div(length, self.down.stride)


class Encoder(nnx.Module):
    """Wave to codes."""

    def __init__(
        self, config: tokenizer_12hz.Tokenizer12HzEncoderConfig, *, rngs: nnx.Rngs
    ):
        c = config
        self.first = conv.CausalConv1d(
            1, c.filters, kernel_size=c.kernel_size, rngs=rngs
        )
        dims = [c.filters * 2**i for i in range(len(c.ratios) + 1)]
        self.blocks = nnx.List(
            [
                DownsampleBlock(c, dim, ratio=ratio, rngs=rngs)
                for dim, ratio in zip(dims, reversed(c.ratios))
            ]
        )
        width = c.transformer.dim
        self.last = conv.CausalConv1d(
            dims[-1], width, kernel_size=c.last_kernel_size, rngs=rngs
        )
        self.transformer = transformer.Transformer(c.transformer, rngs=rngs)
        self.down = conv.CausalConv1d(
            width,
            width,
            kernel_size=2 * DOWNSAMPLE,
            stride=DOWNSAMPLE,
            bias=False,
            rngs=rngs,
        )
        self.quantizer = quantizer.SplitResidualVQ(
            c.quantizers,
            semantic=c.semantic_quantizers,
            size=c.codebook_size,
            dim=c.codebook_dim,
            outer_dim=width,
            has_initialized=True,
            rngs=rngs,
        )
        self.config = config

    def embed(self, wave: jax.Array, length: jax.Array) -> jax.Array:
        """Float [B, T, D] at 12.5 Hz, before quantisation; arguments of `__call__`."""
        x = self.first(_zero_after(wave[:, :, None], length))
        for block in self.blocks:
            x, length = block(x, length)
        x = self.last(jax.nn.elu(x))
        steps = x.shape[1]
        x, _ = self.transformer(
            x, jnp.arange(steps)[None], attention.causal_mask(steps)
        )
        # padded by replication: the last step after the end, the first before the start
        index = jnp.minimum(jnp.arange(steps)[None], length[:, None] - 1)
        x = jnp.take_along_axis(x, jnp.maximum(index, 0)[:, :, None], axis=1)
        before = jnp.repeat(x[:, :1], self.down.history, axis=1)
        return self.down.step(x, before)[0]

    def __call__(
        self, wave: jax.Array, length: jax.Array, quantizers: int
    ) -> jax.Array:
        """Encode.

        Args:
            wave: float [B, W], 24 kHz, in [-1, 1]; W a multiple of 1920.
            length: int [B], samples of each row that count; the rest is ignored.
            quantizers: how many codebooks to compute (released: 16).
        Returns:
            int32 [B, W/1920, quantizers]; of row b the first ceil(length/1920) are
            valid.
        """
        return self.quantizer.encode(self.embed(wave, length), quantizers)


def _zero_after(x: jax.Array, length: jax.Array) -> jax.Array:
    """x: float [B, T, C] with every step from length (int [B]) on set to zero."""
    valid = jnp.arange(x.shape[1])[None] < length[:, None]
    return jnp.where(valid[:, :, None], x, 0)


def _ceil_div(a: jax.Array, b: int) -> jax.Array:
    return -(-a // b)
