"""Qwen3-TTS-Tokenizer-12Hz, codes -> wave: a causal transformer and causal ConvNet.

codes -> split RVQ sum -> convolution -> transformer with a window of 72 frames ->
two ConvNeXt upsamplers (x4) -> four SnakeBeta decoder blocks (x480) -> wave.  One frame
in, 1920 samples out, no look-ahead.  Source: arXiv 2601.15621;
Qwen3TTSTokenizerV2Decoder.

`decode` is `step` from the zero state, so streaming equals the whole.  The official
`chunked_decode` restarts every 300 frames with 25 frames of context, less than the
transformer's receptive field (8 layers x 71 frames): it equals this decoder up to
sample 576,000 and departs from it (and from the official decoder run whole) after that.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax.config import tokenizer_12hz
from qwen3tts_jax.nn import activations, attention, conv, layers, quantizer, transformer

DILATIONS = (1, 3, 9)  # of the three residual units of a decoder block
PRE_KERNEL, WAVE_KERNEL, UNIT_KERNEL = 3, 7, 7


class ResidualUnit(nnx.Module):
    """x + conv1x1(snake(dilated conv(snake(x))))."""

    def __init__(self, dim: int, *, dilation: int, rngs: nnx.Rngs):
        self.snake1 = activations.SnakeBeta(dim)
        self.conv1 = conv.CausalConv1d(
            dim, dim, kernel_size=UNIT_KERNEL, dilation=dilation, rngs=rngs
        )
        self.snake2 = activations.SnakeBeta(dim)
        self.conv2 = conv.CausalConv1d(dim, dim, kernel_size=1, rngs=rngs)

    def init_state(self, batch: int, dtype=jnp.float32):
        return self.conv1.init_state(batch, dtype)

    def step(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, state = self.conv1.step(self.snake1(x), state)
        return x + self.conv2(self.snake2(y)), state


class DecoderBlock(nnx.Module):
    """Snake, transposed convolution (x rate, channels halved), three residual units."""

    def __init__(self, dim: int, *, rate: int, rngs: nnx.Rngs):
        self.snake = activations.SnakeBeta(dim)
        self.up = conv.CausalConvTranspose1d(
            dim, dim // 2, kernel_size=2 * rate, stride=rate, rngs=rngs
        )
        units = [ResidualUnit(dim // 2, dilation=d, rngs=rngs) for d in DILATIONS]
        self.units = nnx.List(units)

    def init_state(self, batch: int, dtype=jnp.float32):
        units = tuple(unit.init_state(batch, dtype) for unit in self.units)
        return self.up.init_state(batch, dtype), units

    def step(self, x: jax.Array, state) -> tuple[jax.Array, Any]:
        up_state, unit_states = state
        x, up_state = self.up.step(self.snake(x), up_state)
        x, unit_states = _run(self.units, x, unit_states)
        return x, (up_state, unit_states)


class UpsampleBlock(nnx.Module):
    """Transposed convolution without overlap, then a ConvNeXt block."""

    def __init__(self, dim: int, *, ratio: int, rngs: nnx.Rngs):
        self.up = conv.CausalConvTranspose1d(
            dim, dim, kernel_size=ratio, stride=ratio, rngs=rngs
        )
        self.convnext = conv.ConvNeXtBlock(dim, rngs=rngs)

    def init_state(self, batch: int, dtype=jnp.float32):
        return self.convnext.init_state(batch, dtype)

    def step(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.convnext.step(self.up(x), state)


@struct.dataclass
class DecoderState:
    """All that a decoder remembers between chunks of frames.

    Attributes:
        position: int32 [B], frames decoded so far.
        pre_conv: float [B, 2, codebook_dim].
        caches: one WindowCache per transformer layer.
        upsample, blocks: states of those stages.
        wave_conv: float [B, 6, C].
    """

    position: jax.Array
    pre_conv: jax.Array
    caches: Any
    upsample: Any
    blocks: Any
    wave_conv: jax.Array


class Decoder(nnx.Module):
    """Codes to wave, whole or frame by frame."""

    def __init__(
        self, config: tokenizer_12hz.Tokenizer12HzDecoderConfig, *, rngs: nnx.Rngs
    ):
        c = config
        self.quantizer = quantizer.SplitResidualVQ(
            c.quantizers,
            semantic=1,
            size=c.codebook_size,
            dim=c.codebook_dim // 2,
            outer_dim=c.codebook_dim,
            rngs=rngs,
        )
        self.pre_conv = conv.CausalConv1d(
            c.codebook_dim, c.latent_dim, kernel_size=PRE_KERNEL, rngs=rngs
        )
        width = c.transformer.dim
        self.input_proj = layers.Linear(c.latent_dim, width, bias=True, rngs=rngs)
        self.transformer = transformer.Transformer(c.transformer, rngs=rngs)
        self.output_proj = layers.Linear(width, c.latent_dim, bias=True, rngs=rngs)
        self.upsample = nnx.List(
            [
                UpsampleBlock(c.latent_dim, ratio=r, rngs=rngs)
                for r in c.upsampling_ratios
            ]
        )
        dims = [c.decoder_dim // 2**i for i in range(len(c.upsample_rates) + 1)]
        self.first_conv = conv.CausalConv1d(
            c.latent_dim, dims[0], kernel_size=WAVE_KERNEL, rngs=rngs
        )
        self.blocks = nnx.List(
            [
                DecoderBlock(dim, rate=rate, rngs=rngs)
                for dim, rate in zip(dims, c.upsample_rates)
            ]
        )
        self.snake = activations.SnakeBeta(dims[-1])
        self.wave_conv = conv.CausalConv1d(
            dims[-1], 1, kernel_size=WAVE_KERNEL, rngs=rngs
        )
        self.config = config

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.config.upsample_rates + self.config.upsampling_ratios)

    @property
    def dtype(self):
        """Of everything between the codebooks and the wave."""
        return self.pre_conv.kernel[...].dtype

    def init_state(self, batch: int, dtype=jnp.float32) -> DecoderState:
        """The state before the first frame."""
        c = self.config.transformer
        return DecoderState(
            position=jnp.zeros(batch, jnp.int32),
            pre_conv=self.pre_conv.init_state(batch, dtype),
            caches=tuple(
                attention.WindowCache.zeros(c, batch, dtype) for _ in range(c.layers)
            ),
            upsample=tuple(u.init_state(batch, dtype) for u in self.upsample),
            blocks=(
                self.first_conv.init_state(batch, dtype),
                *(b.init_state(batch, dtype) for b in self.blocks),
            ),
            wave_conv=self.wave_conv.init_state(batch, dtype),
        )

    def step(self, codes: jax.Array, state: DecoderState):
        """Decode the next frames.

        Args:
            codes: int [B, T, Q].
            state: from `init_state` or the last `step`.
        Returns:
            (wave: float32 [B, T*1920], 24 kHz, in [-1, 1]; state).
        """
        x = self.quantizer.decode(codes).astype(state.pre_conv.dtype)
        x, pre_conv, caches = self.contextualize(x, state)
        wave, upsample, blocks, wave_conv = self.synthesize(x, state)
        return jnp.clip(wave, -1.0, 1.0), DecoderState(
            state.position + codes.shape[1],
            pre_conv,
            caches,
            upsample,
            blocks,
            wave_conv,
        )

    def stream(self, codes: jax.Array, count: jax.Array, state: DecoderState):
        """`step` for rows of which some may rest.

        Args:
            codes: int [B, T, Q]; count: int32 [B], frames that each row has: T, fewer
                where it ends with them, or 0 where it rests.
        Returns:
            (wave: as of `step`; samples: int32 [B], how many of each row count, the
            first ones; state).
        """
        wave, after = self.step(codes, state)

        def moved(after, before):
            shape = (-1,) + (1,) * (after.ndim - 1)
            return jnp.where((count > 0).reshape(shape), after, before)

        samples = count * self.samples_per_frame
        return wave, samples, jax.tree.map(moved, after, state)

    def contextualize(self, x: jax.Array, state: DecoderState) -> tuple:
        """The part at the rate of frames: convolution and transformer.

        Args:
            x: float [B, T, D_codebook], what the quantiser gives.
        Returns:
            (float [B, T, D_latent], pre_conv and caches of the next state).
        """
        x, pre_conv = self.pre_conv.step(x, state.pre_conv)
        x, caches = self._transform(x, state)
        return x, pre_conv, caches

    def upsample_through(
        self,
        x: jax.Array,
        state: DecoderState,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple:
        """Some of the upsampling blocks; x: float [B, T, D_latent].

        Returns: (float [B, T * their ratios, D_latent], their next states).
        """
        return _run(self.upsample[start:stop], x, state.upsample[start:stop])

    def synthesize(self, x: jax.Array, state: DecoderState, *, start: int = 0) -> tuple:
        """The rest: up to the rate of samples.

        Args:
            x: float [B, T, D_latent].
            start: the upsampling block to begin with, for x at that block's rate.
        Returns:
            (wave: float32 [B, T*1920], not clipped; upsample, blocks and wave_conv of
            the next state).
        """
        x, upsample = self.upsample_through(x, state, start=start)
        x, blocks = _run((self.first_conv, *self.blocks), x, state.blocks)
        wave, wave_conv = self.wave_conv.step(self.snake(x), state.wave_conv)
        return wave[:, :, 0].astype(jnp.float32), upsample, blocks, wave_conv

    def _transform(self, x: jax.Array, state: DecoderState):
        frames = x.shape[1]
        positions = state.position[:, None] + jnp.arange(frames)[None]
        mask = attention.window_mask(
            state.position, frames, self.config.transformer.window
        )
        x, caches = self.transformer(self.input_proj(x), positions, mask, state.caches)
        return self.output_proj(x), caches

    def decode(self, codes: jax.Array) -> jax.Array:
        """Float32 [B, T*1920] of codes: int [B, T, Q]; `step` from the zero state."""
        return self.step(codes, self.init_state(len(codes), self.dtype))[0]

    __call__ = decode


def _run(parts, x: jax.Array, states: tuple) -> tuple[jax.Array, tuple]:
    """Step x through parts one after the other; (x, their new states)."""
    after = []
    for part, state in zip(parts, states):
        x, state = part.step(x, state)
        after.append(state)
    return x, tuple(after)
