"""Griffin-Lim: a wave whose mel spectrogram is a given one; the baseline without a
model.

Source: Griffin and Lim, 1984; the accelerated form of Perraudin et al., 2013.
"""

import numpy as np

from qwen3tts_jax.audio import mel as log_mels

BINS, N_FFT, HOP = 80, 1024, 256  # mels, samples, samples, at 24 kHz
ITERATIONS = 60
INVERSE_STEPS = 50  # of the multiplicative update from mels to frequencies
MOMENTUM = 0.99  # Perraudin et al.
TINY = 1e-8

WINDOW = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)  # Hann
FILTERS = log_mels.mel_filterbank(bins=BINS, n_fft=N_FFT).astype(np.float64)


def reconstruct(wave: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Float32 [W] that keeps only the 80-bin magnitude mel of float32 [W], 24 kHz.

    seed: of the first phases.
    """
    mel = np.abs(stft(wave)) @ FILTERS.T
    magnitude = from_mel(mel)
    phase = np.exp(2j * np.pi * np.random.default_rng(seed).random(magnitude.shape))
    previous = np.zeros_like(phase)
    for _ in range(ITERATIONS):
        rebuilt = stft(istft(magnitude * phase, len(wave)))
        phase = rebuilt + MOMENTUM * (rebuilt - previous)
        phase /= np.maximum(np.abs(phase), TINY)
        previous = rebuilt
    return istft(magnitude * phase, len(wave)).astype(np.float32)


def from_mel(mel: np.ndarray) -> np.ndarray:
    """Magnitudes [T, F], none below 0, whose mels come near to [T, M].

    Multiplicative updates: Lee and Seung, 2001, with the filters fixed.
    """
    target, gram = mel @ FILTERS, FILTERS.T @ FILTERS
    magnitude = np.maximum(target, TINY)
    for _ in range(INVERSE_STEPS):
        magnitude = magnitude * target / np.maximum(magnitude @ gram, TINY)
    return magnitude


def stft(wave: np.ndarray) -> np.ndarray:
    """Complex [T, F] of [W]; frames are centred, the ends mirrored."""
    total = -(-len(wave) // HOP) * HOP
    mode = "reflect" if len(wave) > N_FFT // 2 else "constant"
    padded = np.pad(wave, (N_FFT // 2, N_FFT // 2 + total - len(wave)), mode=mode)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    return np.fft.rfft(frames * WINDOW)


def istft(spectrum: np.ndarray, samples: int) -> np.ndarray:
    """Float64 [samples]: the wave whose `stft` is nearest to complex [T, F]."""
    frames = np.fft.irfft(spectrum, N_FFT) * WINDOW
    parts = N_FFT // HOP
    total, weight = (np.zeros((len(frames) + parts - 1, HOP)) for _ in range(2))
    square = (WINDOW**2).reshape(parts, HOP)
    for i, part in enumerate(np.split(frames, parts, axis=1)):
        total[i : i + len(frames)] += part
        weight[i : i + len(frames)] += square[i]
    wave = (total / np.maximum(weight, TINY)).ravel()
    return wave[N_FFT // 2 : N_FFT // 2 + samples]
