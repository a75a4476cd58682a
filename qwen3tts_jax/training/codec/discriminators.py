"""Discriminators of waves: multi-period (HiFi-GAN), multi-scale STFT (EnCodec), and a
cheap kind that takes a spectrum's frequencies for channels.

Every convolution is over [B, height, length, C] and strides along the length alone.
The stride is folded into the channels, so that XLA sees a convolution of stride 1: its
gradient is 2 to 10 times as fast on a CPU as that of a strided one, and its result the
same.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3tts_jax.nn import layers
from qwen3tts_jax.training.codec import losses


@dataclasses.dataclass(frozen=True)
class Config:
    """Kinds and widths; the defaults are HiFi-GAN's and EnCodec's.

    Attributes:
        periods: one discriminator each; () for none.
        period_channels: of its layers; all but the last stride.
        period_kernel, period_stride: along time.
        period_slope: of the leaky relu.
        stft_ffts: windows in samples, one discriminator each; () for none.
        stft_channels: of all layers.
        stft_kernel: (frames, frequencies).
        stft_strides: along frequency: of the first layer, and of one layer for each of
            the dilations.  (2, 2, 2, 2) halves the work.
        stft_dilations: along time.
        stft_slope: of the leaky relu.
        spectra: windows in samples of the cheap kind, one discriminator each.
        spectrum_channels, spectrum_kernel: of its layers; along time.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    period_kernel: int = 5
    period_stride: int = 3
    period_slope: float = 0.1
    stft_ffts: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    stft_channels: int = 32
    stft_kernel: tuple[int, int] = (3, 9)
    stft_strides: tuple[int, ...] = (1, 2, 2, 2)
    stft_dilations: tuple[int, ...] = (1, 2, 4)
    stft_slope: float = 0.2
    spectra: tuple[int, ...] = ()
    spectrum_channels: int = 128
    spectrum_kernel: int = 5

    def __post_init__(self):
        if not (self.periods or self.stft_ffts or self.spectra):
            raise ValueError(
                "got no periods, no stft_ffts and no spectra; give at least one"
            )
        if len(self.stft_strides) != len(self.stft_dilations) + 1:
            raise ValueError(
                f"got {len(self.stft_strides)} stft_strides for "
                f"{len(self.stft_dilations)} stft_dilations, expected one more; the "
                "first layer strides, but is not dilated"
            )
        sizes = (self.period_kernel, *self.stft_kernel, self.spectrum_kernel)
        if not all(size % 2 for size in sizes):
            raise ValueError(
                f"got kernels {sizes}, expected odd sizes: both sides are padded alike"
            )


class Conv(nnx.Module):
    """Convolution over [B, height, length, in], zero-padded by half a kernel."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_size: tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_dim, out_dim)
        std = gain / math.sqrt(math.prod(kernel_size) * in_dim)
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_dim))
        self.stride, self.dilation = stride, dilation

    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, height, length, in] -> [B, height, ceil(length / stride), out]."""
        kernel = self.kernel[...].astype(x.dtype)
        height, length = kernel.shape[:2]
        along = (length // 2, length // 2)
        if self.stride > 1:
            x, kernel = _fold(x, kernel, self.stride)
            along = (0, 0)
        across = height // 2 * self.dilation
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((across, across), along),
            rhs_dilation=(self.dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + layers.per_channel(self.bias, y)


def _fold(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """Input and kernel of the convolution of stride 1 over groups of `stride`."""
    batch, rows, length, channels = x.shape
    height, size, _, out = kernel.shape
    taps = -(-size // stride)
    groups = -(-length // stride) + taps - 1
    before = size // 2
    after = groups * stride - length - before  # may be negative: what no output reads
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, ((0, 0, 0), (0, 0, 0), (before, after, 0), (0, 0, 0)))
    x = x.reshape(batch, rows, groups, stride * channels)
    kernel = jnp.pad(kernel, ((0, 0), (0, taps * stride - size), (0, 0), (0, 0)))
    return x, kernel.reshape(height, taps, stride * channels, out)


class Stack(nnx.Module):
    """Convolutions with leaky relus between them; the last gives the score."""

    def __init__(self, convs: list[Conv], *, slope: float):
        self.convs = nnx.List(convs)
        self.slope = slope

    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """float [B, H, L, C] -> (scores [B, H, L'], features [B, H, ., .] each)."""
        *hidden, last = self.convs
        features = []
        for conv in hidden:
            x = jax.nn.leaky_relu(conv(x), self.slope)
            features.append(x)
        return last(x)[..., 0], features


def _gain(slope: float) -> float:
    """Of a kernel after a leaky relu, so that the variance stays (arXiv 1502.01852)."""
    return math.sqrt(2 / (1 + slope**2))


class PeriodDiscriminator(nnx.Module):
    """Looks at every `period`-th sample; the period's phases share their weights.

    A wave that the period does not divide is mirrored at its end.
    Source: HiFi-GAN (arXiv 2010.05646), DiscriminatorP.
    """

    def __init__(self, config: Config, *, period: int, rngs: nnx.Rngs):
        c = config
        dims = (1, *c.period_channels)
        strides = [c.period_stride] * (len(dims) - 2) + [1]
        gain = _gain(c.period_slope)
        convs = [
            Conv(
                *(dims[i], dims[i + 1]),
                kernel_size=(1, c.period_kernel),
                stride=stride,
                gain=gain if i else 1.0,
                rngs=rngs,
            )
            for i, stride in enumerate(strides)
        ]
        convs.append(Conv(dims[-1], 1, kernel_size=(1, 3), rngs=rngs))
        self.stack = Stack(convs, slope=c.period_slope)
        self.period = period

    def __call__(self, wave: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """wave: float [B, W].  Scores and features over [B, period, time]."""
        missing = -wave.shape[1] % self.period
        wave = jnp.pad(wave, ((0, 0), (0, missing)), mode="reflect")
        x = wave.reshape(len(wave), -1, self.period)  # [B, time, period]
        return self.stack(jnp.swapaxes(x, 1, 2)[..., None])


class STFTDiscriminator(nnx.Module):
    """Looks at real and imaginary part of a spectrum; hop window / 4, no padding.

    Source: EnCodec (arXiv 2210.13438), DiscriminatorSTFT.
    """

    def __init__(self, config: Config, *, window: int, rngs: nnx.Rngs):
        c, dim = config, config.stft_channels
        gain = _gain(c.stft_slope)
        convs = [
            Conv(
                *(dim if i else 2, dim),
                kernel_size=c.stft_kernel,
                stride=stride,
                dilation=dilation,
                gain=gain if i else 1.0,
                rngs=rngs,
            )
            for i, (stride, dilation) in enumerate(
                zip(c.stft_strides, (1, *c.stft_dilations))
            )
        ]
        square = (c.stft_kernel[0],) * 2
        convs.append(Conv(dim, dim, kernel_size=square, gain=gain, rngs=rngs))
        convs.append(Conv(dim, 1, kernel_size=square, rngs=rngs))
        self.stack = Stack(convs, slope=c.stft_slope)
        self.window = window

    def __call__(self, wave: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """wave: float [B, W], W >= window.  Over [B, frames, frequencies]."""
        parts = losses.stft(wave, self.window)
        # by the root of the window's energy, as torchaudio's `normalized`
        scale = 1 / math.sqrt(3 / 8 * self.window)
        return self.stack(jnp.stack(parts, axis=-1) * scale)


class SpectrumDiscriminator(nnx.Module):
    """Looks at all frequencies of a compressed spectrum at once, along time alone.

    A twentieth of the work of the convolutions over time and frequency: channels, not
    positions, are many.
    """

    def __init__(self, config: Config, *, window: int, rngs: nnx.Rngs):
        c, dim = config, config.spectrum_channels
        gain = _gain(c.stft_slope)
        inputs = 2 * (window // 2 + 1)
        convs = [Conv(inputs, dim, kernel_size=(1, 1), rngs=rngs)]
        convs += [
            Conv(
                *(dim, dim),
                kernel_size=(c.spectrum_kernel, 1),
                dilation=dilation,
                gain=gain,
                rngs=rngs,
            )
            for dilation in c.stft_dilations
        ]
        convs.append(Conv(dim, 1, kernel_size=(1, 1), rngs=rngs))
        self.stack = Stack(convs, slope=c.stft_slope)
        self.window = window

    def __call__(self, wave: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """wave: float [B, W], W >= window.  Over [B, frames, 1]."""
        scale = 1 / math.sqrt(3 / 8 * self.window)
        real, imaginary = (scale * x for x in losses.stft(wave, self.window))
        # magnitudes to the power of 0.3: what is soft counts too
        power = real * real + imaginary * imaginary
        smaller = (power + SPECTRUM_FLOOR) ** -SPECTRUM_COMPRESSION
        x = jnp.concatenate([real * smaller, imaginary * smaller], axis=-1)
        return self.stack(x[:, :, None])  # [B, T, 1, C]


SPECTRUM_FLOOR, SPECTRUM_COMPRESSION = 1e-4, 0.35


class Discriminators(nnx.Module):
    """All discriminators of a configuration."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        c = config
        self.parts = nnx.List(
            [PeriodDiscriminator(c, period=p, rngs=rngs) for p in c.periods]
            + [STFTDiscriminator(c, window=w, rngs=rngs) for w in c.stft_ffts]
            + [SpectrumDiscriminator(c, window=w, rngs=rngs) for w in c.spectra]
        )

    def __call__(
        self, wave: jax.Array
    ) -> tuple[list[jax.Array], list[list[jax.Array]]]:
        """wave: float [B, W], at least the longest window.

        Returns (scores, features), of each discriminator: scores [B, ., .], and the
        features of every hidden layer [B, ., ., C].
        """
        judged = [part(wave.astype(jnp.float32)) for part in self.parts]
        return [scores for scores, _ in judged], [features for _, features in judged]
