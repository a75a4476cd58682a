"""The log-mel spectrogram of waves (jnp), as the speaker encoder reads it."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen3tts_jax.audio import io as audio_io

# The mel of the speaker encoder. Source: Qwen3-TTS, extract_speaker_embedding.
N_FFT = 1024  # samples, also the length of the window
HOP = 256  # samples
MEL_BINS = 128
MEL_LOW, MEL_HIGH = 0.0, 12_000.0  # Hz
MAGNITUDE_FLOOR = 1e-9  # under the square root
MEL_FLOOR = 1e-5  # under the logarithm
REFLECT = (N_FFT - HOP) // 2  # samples mirrored at each end: 384

# 5 mel frames: the convolution with kernel 3 and dilation 4 in the speaker encoder
# mirrors 4 frames at each end, and a mirror needs one more. The official code raises.
MIN_REFERENCE_SAMPLES = 5 * HOP


def mel_filterbank(
    *,
    bins: int = MEL_BINS,
    n_fft: int = N_FFT,
    rate: int = audio_io.SAMPLE_RATE,
    low: float = MEL_LOW,
    high: float = MEL_HIGH,
) -> np.ndarray:
    """Triangular filters on Slaney's mel scale, each of area 1 over the axis in Hz.

    Args:
        bins: number of filters M.
        n_fft: length of the Fourier transform, samples.
        rate: Hz.
        low, high: Hz, outer corners of the first and last filter.

    Returns:
        float32 [M, n_fft // 2 + 1].

    Source: Slaney, Auditory Toolbox, 1998; librosa.filters.mel by its defaults.
    """
    corners = _mel_to_hz(np.linspace(*_hz_to_mel(np.array([low, high])), bins + 2))
    frequency = np.linspace(0, rate / 2, n_fft // 2 + 1)
    left, centre, right = (corners[i : i + bins, None] for i in range(3))  # [M, 1]
    rising = (frequency - left) / (centre - left)
    falling = (right - frequency) / (right - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))  # [M, n_fft // 2 + 1]
    return (triangles * 2 / (right - left)).astype(np.float32)


def log_mel(wave: jax.Array, length: jax.Array) -> jax.Array:
    """Log-mel spectrogram for the speaker encoder; each row as if it were alone.

    A row is mirrored about its own first and last sample, so that what stands in its
    padding, NaN included, has no effect. Rows under MIN_REFERENCE_SAMPLES are too
    short for the speaker encoder; nothing is raised here, as it may run inside jit.

    Args:
        wave: float [B, W], 24 kHz, in [-1, 1], right-padded.
        length: int [B], true samples of each row, at most W.

    Returns:
        float32 [B, W // 256, 128]; zero from frame length // 256 on.

    Source: mel_spectrogram of the official modeling_qwen3_tts; HiFi-GAN, meldataset.
    """
    frames = wave.shape[1] // HOP
    wave = wave.astype(jnp.float32)
    hops = reflect(wave, length, edge=REFLECT, samples=frames * HOP)
    hops = hops.reshape(wave.shape[0], frames + N_FFT // HOP - 1, HOP)  # [B, T+3, HOP]
    parts = [hops[:, i : i + frames] for i in range(N_FFT // HOP)]
    framed = jnp.concatenate(parts, axis=-1) * hann(N_FFT)[None, None]
    spectrum = jnp.fft.rfft(framed)  # [B, T, N_FFT // 2 + 1]
    magnitude = jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + MAGNITUDE_FLOOR)
    # In full float32: accelerators would multiply in fewer bits by default.
    mel = jnp.matmul(
        magnitude, mel_filterbank().T, precision=jax.lax.Precision.HIGHEST
    )  # [B, T, M]
    real = jnp.arange(frames)[None] < length[:, None] // HOP  # [B, T]
    return jnp.where(real[..., None], jnp.log(jnp.maximum(mel, MEL_FLOOR)), 0.0)


def reflect(
    wave: jax.Array, length: jax.Array, *, edge: int, samples: int
) -> jax.Array:
    """Rows with `edge` mirrored samples before the first and after their last one.

    Args:
        wave: [B, W]; length: int [B], of each row.
        edge: how many to mirror, fewer than a row has.
        samples: of what is wanted, without the edges.

    Returns:
        [B, samples + 2 * edge]; further beyond a row's end stands anything of it.
    """
    position = jnp.arange(-edge, samples + edge)
    last = length[:, None] - 1  # [B, 1]
    position = jnp.abs(position)[None]
    position = jnp.where(position > last, 2 * last - position, position)
    # Far beyond the end, and in rows too short to mirror: the first sample will do.
    position = jnp.maximum(position, 0)
    return jnp.take_along_axis(wave, position, axis=1)


def hann(samples: int) -> np.ndarray:
    """Periodic Hann window, float32 [samples]."""
    phase = 2 * np.pi * np.arange(samples) / samples
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


# Slaney's scale: linear to 1000 Hz, then 27 mels for each factor of 6.4.
_HZ_PER_MEL, _BREAK_HZ, _MELS_PER_E = 200 / 3, 1000.0, 27 / math.log(6.4)
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    above = np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ)
    return np.minimum(hz, _BREAK_HZ) / _HZ_PER_MEL + above * _MELS_PER_E


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = np.maximum(mel - _BREAK_MEL, 0) / _MELS_PER_E
    return np.minimum(mel, _BREAK_MEL) * _HZ_PER_MEL * np.exp(above)
