"""SpeakerEncoder: ECAPA-TDNN, log-mel -> one vector that stands for a voice.

Source: arXiv 2005.07143; Qwen3TTSSpeakerEncoder.  Convolutions pad by reflection at the
row's own end, and statistics count the row's own frames, so that a padded row gives
what the same row gives alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax import runtime
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.audio import mel as log_mels
from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import conv

VARIANCE_FLOOR = 1e-12
MEL_BUCKETS = tuple(log_mels.HOP * 2**n for n in range(5, 16))  # samples


class TDNN(nnx.Module):
    """relu(conv(x)), dilated, "same" length with reflection.  x: float [B, T, C]."""

    def __init__(self, in_dim: int, out_dim: int, *, kernel_size=1, dilation=1, rngs):
        # a causal convolution is a "same" one on input that starts half a kernel early
        self.conv = conv.CausalConv1d(
            in_dim, out_dim, kernel_size=kernel_size, dilation=dilation, rngs=rngs
        )
        self.pad = (kernel_size - 1) * dilation // 2

    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        if self.pad:
            x = _reflect(x, length, self.pad)
            y, _ = self.conv.step(x[:, 2 * self.pad :], x[:, : 2 * self.pad])
        else:
            y = self.conv(x)
        return jax.nn.relu(y)


class SERes2NetBlock(nnx.Module):
    """TDNN, Res2Net, TDNN, squeeze-excitation; residual."""

    def __init__(self, config, dim: int, *, kernel_size: int, dilation: int, rngs):
        width = dim // config.res2net_scale
        self.tdnn1 = TDNN(dim, dim, rngs=rngs)
        self.res2net = nnx.List(
            [
                TDNN(
                    width, width, kernel_size=kernel_size, dilation=dilation, rngs=rngs
                )
                for _ in range(config.res2net_scale - 1)
            ]
        )
        self.tdnn2 = TDNN(dim, dim, rngs=rngs)
        self.squeeze = conv.CausalConv1d(
            dim, config.se_channels, kernel_size=1, rngs=rngs
        )
        self.excite = conv.CausalConv1d(
            config.se_channels, dim, kernel_size=1, rngs=rngs
        )

    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        y = self.tdnn1(x, length)
        parts = jnp.split(y, len(self.res2net) + 1, axis=-1)
        outputs = [parts[0]]
        for i, block in enumerate(self.res2net):
            part = parts[i + 1] if i == 0 else parts[i + 1] + outputs[-1]
            outputs.append(block(part, length))
        y = self.tdnn2(jnp.concatenate(outputs, axis=-1), length)
        weight = _valid(y, length)
        mean = _weighted_sum(y, weight / length[:, None, None])  # [B, 1, C]
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(mean))))
        return x + y * gate


class AttentivePooling(nnx.Module):
    """Mean and standard deviation over time, weighted by a learnt attention."""

    def __init__(self, dim: int, *, hidden: int, rngs: nnx.Rngs):
        self.tdnn = TDNN(3 * dim, hidden, rngs=rngs)
        self.attention = conv.CausalConv1d(hidden, dim, kernel_size=1, rngs=rngs)

    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        """x: float [B, T, C] -> float [B, 1, 2C]."""
        valid = _valid(x, length)
        mean, std = _statistics(x, valid / length[:, None, None])
        context = jnp.concatenate([mean, std], axis=-1)
        context = jnp.broadcast_to(context, (*x.shape[:2], context.shape[-1]))
        hidden = jnp.tanh(self.tdnn(jnp.concatenate([x, context], axis=-1), length))
        scores = self.attention(hidden).astype(jnp.float32)
        scores = jnp.where(valid > 0, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=1).astype(x.dtype)
        return jnp.concatenate(_statistics(x, weights), axis=-1)


class SpeakerEncoder(nnx.Module):
    """Log-mel to speaker embedding."""

    def __init__(self, config: tts.SpeakerEncoderConfig, *, rngs: nnx.Rngs):
        c = config
        self.first = TDNN(
            c.mel_bins,
            c.channels[0],
            kernel_size=c.kernel_sizes[0],
            dilation=c.dilations[0],
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [
                SERes2NetBlock(
                    c,
                    c.channels[i],
                    kernel_size=c.kernel_sizes[i],
                    dilation=c.dilations[i],
                    rngs=rngs,
                )
                for i in range(1, len(c.channels) - 1)
            ]
        )
        width = c.channels[-1]
        self.aggregate = TDNN(
            width,
            width,
            kernel_size=c.kernel_sizes[-1],
            dilation=c.dilations[-1],
            rngs=rngs,
        )
        self.pool = AttentivePooling(width, hidden=c.attention_channels, rngs=rngs)
        self.project = conv.CausalConv1d(2 * width, c.dim, kernel_size=1, rngs=rngs)
        self.config = config

    def __call__(self, mel: jax.Array, length: jax.Array) -> jax.Array:
        """Embed voices.

        Args:
            mel: float [B, T, M], log-mel at 24 kHz, hop 256 (`mel.log_mel`).
            length: int [B], frames of each row that count (at least 5: the widest
                reflection reaches over 4).
        Returns:
            float [B, D].
        """
        mel = jnp.where(_valid(mel, length) > 0, mel, 0)
        x = self.first(mel, length)
        outputs = []
        for block in self.blocks:
            x = block(x, length)
            outputs.append(x)
        x = self.aggregate(jnp.concatenate(outputs, axis=-1), length)
        return self.project(self.pool(x, length))[:, 0]


def embed_wave(encoder: SpeakerEncoder, wave: np.ndarray, rate: int) -> np.ndarray:
    """The x-vector, float [D], of a wave, float32 [W] at `rate` Hz.

    Raises: ValueError for less than 1280 samples at 24 kHz.
    """
    wave = audio_io.load((wave, rate), rate=encoder.config.sample_rate)
    if len(wave) < log_mels.MIN_REFERENCE_SAMPLES:
        raise ValueError(
            f"got a reference of {len(wave)} samples at 24 kHz, expected at least "
            f"{log_mels.MIN_REFERENCE_SAMPLES} (0.06 s); give some seconds of speech"
        )
    size = runtime.bucket(len(wave), MEL_BUCKETS)
    batch = np.pad(wave, (0, size - len(wave)))[None]
    with runtime.exact():
        vector = _embed_wave(encoder, batch, np.asarray([len(wave)], np.int32))
    return np.asarray(vector[0])


@jax.jit
def _embed_wave(encoder, wave: jax.Array, length: jax.Array) -> jax.Array:
    dtype = encoder.project.kernel[...].dtype
    mel = log_mels.log_mel(wave, length).astype(dtype)
    return encoder(mel, length // log_mels.HOP)


def _reflect(x: jax.Array, length: jax.Array, pad: int) -> jax.Array:
    """[B, T + 2 pad, C]: reflected without repeating the edge, at 0 and length - 1."""
    index = jnp.abs(jnp.arange(-pad, x.shape[1] + pad))[None]
    last = length[:, None] - 1
    index = jnp.where(index > last, 2 * last - index, index)
    index = jnp.clip(index, 0, x.shape[1] - 1)  # beyond the reflection nobody looks
    return jnp.take_along_axis(x, index[:, :, None], axis=1)


def _valid(x: jax.Array, length: jax.Array) -> jax.Array:
    """1 at the frames that count, else 0: [B, T, 1] in the dtype of x."""
    valid = jnp.arange(x.shape[1])[None] < length[:, None]
    return valid[:, :, None].astype(x.dtype)


def _weighted_sum(x: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(weights * x, axis=1, keepdims=True)


def _statistics(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted mean and standard deviation over time, each [B, 1, C]."""
    mean = _weighted_sum(x, weights)
    variance = _weighted_sum(jnp.square(x - mean), weights)
    return mean, jnp.sqrt(jnp.maximum(variance, VARIANCE_FLOOR))
