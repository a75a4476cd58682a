"""Losses of codec training: float32, pure, differentiable, silence included.

Distances are means over the batch; a batch whose rows are spread over devices in one
program is one batch.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3tts_jax.audio import io as audio
from qwen3tts_jax.audio import mel as log_mels

HOPS = 4  # of a window: every transform here moves on by a quarter of its window
# Up to here a product with the matrix of the transform beats the fast transform on a
# CPU; measured with the gradient: 2.3-4 against 4-6 ms a window size below, and 4-84
# against 2-4 ms above.
LONGEST_MATRIX = 128  # samples
HANN_POWER = 3 / 8  # mean square of a Hann window
MEL_FLOOR = 1e-5  # under the logarithm; DAC's clamp_eps
POWER_FLOOR = 1e-14  # under the root: keeps its gradient finite, far below MEL_FLOOR
TINY = 1e-12  # of the balancer: no division by zero
NO_DIRECTION = 1e-6  # below this norm a vector has no direction to compare
KINDS = ("hinge", "lsgan")
POOL, POOL_STRIDE = 8, 4  # 50 Hz -> 12.5 Hz


# --------------------------------------------------------------------- spectra


def stft(wave: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Fourier transform under a periodic Hann window, hop window / 4, no padding.

    wave: float [B, W], W >= window.  Returns the real and the imaginary part, float32
    [B, T, window // 2 + 1], T = 1 + (W - window) // (window // 4).
    """
    hop = window // HOPS
    if window % HOPS or wave.shape[1] < window:
        raise ValueError(
            f"got {wave.shape[1]} samples and a window of {window}, expected at least "
            "a window of samples, and a window divisible by 4; give longer crops"
        )
    count = wave.shape[1] // hop
    hops = wave[:, : count * hop].astype(jnp.float32).reshape(len(wave), count, hop)
    frames = count - HOPS + 1
    parts = [hops[:, i : i + frames] for i in range(HOPS)]
    framed = jnp.concatenate(parts, axis=-1)  # [B, T, window]
    if window > LONGEST_MATRIX:
        spectrum = jnp.fft.rfft(framed * _hann(window)[None, None])
        return spectrum.real, spectrum.imag
    # in full float32: accelerators would multiply in fewer bits by default
    both = jnp.matmul(framed, _dft(window), precision=jax.lax.Precision.HIGHEST)
    real, imaginary = jnp.split(both, 2, axis=-1)
    return real, imaginary


def _hann(window: int) -> np.ndarray:
    phase = 2 * np.pi * np.arange(window) / window
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


def _dft(window: int) -> np.ndarray:
    """Float32 [window, 2 * (window // 2 + 1)]: windowed cosines, then minus sines."""
    turns = np.outer(np.arange(window), np.arange(window // 2 + 1)) / window
    waves = np.exp(-2j * np.pi * turns) * _hann(window)[:, None]
    return np.concatenate([waves.real, waves.imag], axis=1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class MelScales:
    """The spectrograms of `mel_distance`.

    Attributes:
        windows: samples, each divisible by 4; the hop is a quarter.
        bins: mel bins of each, over 0 to rate / 2.
        rate: Hz.
        silence_db: white noise of this level, dBFS, and what is below it, counts as
            silence; None for DAC's clamp alone.  That clamp lies far below the rounding
            of 16 bits, so that a short training would spend itself on noise floors and
            on the empty bands of narrow recordings: noise 40 dB below speech costs 1.4
            with it, 0.2 with -65.
    """

    windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    bins: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)
    rate: int = audio.SAMPLE_RATE
    silence_db: float | None = None

    def __post_init__(self):
        if len(self.windows) != len(self.bins) or not self.windows:
            raise ValueError(
                f"got {len(self.windows)} windows and {len(self.bins)} numbers of "
                "bins, expected as many of one as of the other; give a pair per scale"
            )

    def floor(self, window: int) -> float:
        """The mel magnitude that counts as silence."""
        if self.silence_db is None:
            return MEL_FLOOR
        magnitude = 10 ** (self.silence_db / 20) * math.sqrt(HANN_POWER * window)
        # a filter's weights add up to one over the distance of frequencies, in 1/Hz
        return max(magnitude * window / self.rate, MEL_FLOOR)


def mel_distance(real: jax.Array, fake: jax.Array, scales: MelScales) -> jax.Array:
    """Sum over scales of the mean |log10 mel difference|, float32 [].

    The sum, not the mean, so that DAC's weight of 15 keeps its meaning.  Frames are
    centred: half a window is mirrored at each end, and the wave must be longer than
    that.  real, fake: float [B, W].

    Source: DAC (arXiv 2306.06546), MelSpectrogramLoss with pow 1 and mag_weight 0.
    """
    return sum(
        jnp.mean(jnp.abs(log_mel(real, *scale) - log_mel(fake, *scale)))
        for scale in (
            (window, bins, scales.rate, scales.floor(window))
            for window, bins in zip(scales.windows, scales.bins)
        )
    )


def log_mel(
    wave: jax.Array, window: int, bins: int, rate: int, floor: float = MEL_FLOOR
) -> jax.Array:
    """log10 of the mel magnitudes, at least `floor` each: [B, 1 + W // hop, bins].

    No gradient comes from below that floor: from silence, and from a filter too narrow
    to hold a frequency.
    """
    half = window // 2
    if wave.shape[1] <= half:
        raise ValueError(
            f"got {wave.shape[1]} samples, expected more than {half} to mirror for a "
            f"window of {window}; give longer crops or smaller windows"
        )
    padded = jnp.pad(wave, ((0, 0), (half, half)), mode="reflect")
    real, imaginary = stft(padded, window)
    magnitude = jnp.sqrt(real * real + imaginary * imaginary + POWER_FLOOR)
    filters = log_mels.mel_filterbank(bins=bins, n_fft=window, rate=rate, high=rate / 2)
    mel = jnp.matmul(magnitude, filters.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(mel, floor)) * (1 / math.log(10))


# ----------------------------------------------------------------- adversarial


def discriminator_loss(
    real_scores: Sequence[jax.Array], fake_scores: Sequence[jax.Array], kind: str
) -> jax.Array:
    """What discriminators minimise, averaged over them; float32 [].

    hinge: mean max(0, 1 - real) + mean max(0, 1 + fake); lsgan: mean (1 - real)^2 +
    mean fake^2.  Scores: one float array of any shape a discriminator.
    """
    _check_kind(kind)

    def one(real, fake):
        if kind == "hinge":
            return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
        return jnp.mean((1 - real) ** 2) + jnp.mean(fake**2)

    pairs = zip(real_scores, fake_scores, strict=True)
    return _mean([one(real, fake) for real, fake in pairs])


def generator_loss(fake_scores: Sequence[jax.Array], kind: str) -> jax.Array:
    """What the generator minimises, averaged over discriminators; float32 [].

    hinge: mean of -fake; lsgan: mean of (1 - fake)^2.
    """
    _check_kind(kind)
    if kind == "hinge":
        return _mean([-jnp.mean(fake) for fake in fake_scores])
    return _mean([jnp.mean((1 - fake) ** 2) for fake in fake_scores])


def feature_matching(
    real_features: Sequence[Sequence[jax.Array]],
    fake_features: Sequence[Sequence[jax.Array]],
) -> jax.Array:
    """Mean over layers, then discriminators, of mean |real - fake| / mean |real|.

    Features: a list of layers a discriminator.  No gradient reaches the real side.
    Source: EnCodec (arXiv 2210.13438), equation 2.
    """

    def layer(real, fake):
        real = jax.lax.stop_gradient(real)
        return jnp.mean(jnp.abs(real - fake)) / (jnp.mean(jnp.abs(real)) + TINY)

    both = zip(real_features, fake_features, strict=True)
    return _mean(
        [_mean([layer(r, f) for r, f in zip(*pair, strict=True)]) for pair in both]
    )


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"got kind {kind!r}, expected one of {', '.join(KINDS)}")


def _mean(values: list[jax.Array]) -> jax.Array:
    return sum(values) / len(values)


# ---------------------------------------------------------------- distillation


def distillation(
    predicted: jax.Array, teacher: jax.Array, valid: jax.Array
) -> jax.Array:
    """Mean of 1 - cosine over valid frames, float32 []; 0 where none is valid.

    predicted, teacher: float [B, T, D]; valid: bool [B, T].  No gradient reaches the
    teacher.
    """
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    cosine = jnp.sum(_unit(predicted.astype(jnp.float32)) * _unit(teacher), axis=-1)
    total = jnp.sum(jnp.where(valid, 1 - cosine, 0.0))
    return total / jnp.maximum(jnp.sum(valid), 1)


def _unit(x: jax.Array) -> jax.Array:
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, NO_DIRECTION**2))


def pool_teacher(hidden: jax.Array) -> jax.Array:
    """50 Hz -> 12.5 Hz: float [B, T, D] -> float32 [B, ceil(T / 4), D].

    Frame t is the mean over 4t-2 .. 4t+5: its own four, and two more at each side.  At
    the ends the mean is over those that exist.  Source: Mimi (arXiv 2410.00037),
    average pooling with kernel 8 and stride 4.
    """
    length = hidden.shape[1]
    frames = -(-length // POOL_STRIDE)
    before = (POOL - POOL_STRIDE) // 2
    after = frames * POOL_STRIDE + before - length
    half = POOL // 2

    def pool(x):  # [B, T, D]
        x = jnp.pad(x, ((0, 0), (before, after), (0, 0)))
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % half), (0, 0)))
        x = x.reshape(len(x), -1, half, x.shape[2]).sum(axis=2)  # of four frames
        return x[:, :frames] + x[:, 1 : frames + 1]

    hidden = hidden.astype(jnp.float32)
    return pool(hidden) / pool(jnp.ones((1, length, 1)))


# -------------------------------------------------------------------- balancer


@struct.dataclass
class Norms:
    """Averages of gradient norms, from zero.

    Attributes:
        sums: loss -> float32 [], decayed sum of its norms.
        weight: float32 [], the same sum of ones: sums / weight has no bias.
    """

    sums: dict[str, jax.Array]
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Balancer:
    """Weights the gradients of losses at the wave, whatever the size of the losses.

    Each gradient is divided by the moving average of its norm and scaled to its share
    weight / sum of weights of `total_norm`.

    Attributes:
        weights: (loss, weight above 0) each.
        total_norm: of the result, if the gradients had one direction.
        decay: of the averages, a step.
        per_item: whether a norm is the mean over rows of their norms, so that the
            result does not depend on how many rows there are; else that of the batch.

    Source: EnCodec (arXiv 2210.13438), section 3.4, and AudioCraft's defaults.
    """

    weights: tuple[tuple[str, float], ...]
    total_norm: float = 1.0
    decay: float = 0.999
    per_item: bool = True

    def __post_init__(self):
        values = [weight for _, weight in self.weights]
        if not values or min(values) <= 0:
            raise ValueError(
                f"got weights {self.weights}, expected at least one, all above 0; "
                "leave out a loss that shall not count"
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"got decay {self.decay}, expected 0 or more and below 1")

    def init(self) -> Norms:
        """Norms before the first step."""
        sums = {name: jnp.float32(0) for name, _ in self.weights}
        return Norms(sums=sums, weight=jnp.float32(0))

    def balance(
        self, norms: Norms, gradients: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, Norms]:
        """(one gradient at the wave float32 [B, W], the norms after it).

        gradients: of each loss with respect to the wave, float [B, W], all rows.
        """
        weights = dict(self.weights)
        if set(gradients) != set(weights):
            raise ValueError(
                f"got gradients of {sorted(gradients)}, expected those of "
                f"{sorted(weights)}; give a gradient for each weight"
            )
        total = sum(weights.values())
        weight = self.decay * norms.weight + 1
        sums, combined = {}, 0.0
        for name, gradient in gradients.items():
            sums[name] = self.decay * norms.sums[name] + self._norm(gradient)
            share = self.total_norm * weights[name] / total
            combined = combined + gradient * (share / (sums[name] / weight + TINY))
        return combined, Norms(sums=sums, weight=weight)

    def _norm(self, gradient: jax.Array) -> jax.Array:
        square = jnp.square(gradient.astype(jnp.float32))
        if self.per_item:
            return jnp.mean(jnp.sqrt(jnp.sum(square, axis=1)))
        return jnp.sqrt(jnp.sum(square))
