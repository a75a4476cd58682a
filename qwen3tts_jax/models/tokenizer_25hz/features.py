"""What the 25 Hz tokenizer hears of a 16 kHz wave: three spectrograms and a level.

The encoder gets `log_mel`, in batches (jnp).  The x-vector model gets `fbank`, the DiT
`reference_mel`, both of the wave that `normalize` has brought to -6 dBFS, one wave at a
time (numpy): its length is its own, and nothing is compiled for it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.audio import mel as log_mels

RATE = audio_io.ANALYSIS_RATE_25HZ
HOP = 160  # samples: 100 frames a second in each of the three

# Whisper's log-mel.  Source: openai/whisper, log_mel_spectrogram.
N_FFT = 400  # samples, also the length of the window
MEL_BINS = 128
EDGE = N_FFT // 2  # samples mirrored at each end
POWER_FLOOR, RANGE = 1e-10, 8.0  # before log10; powers of ten below the loudest
FRAMES_PER_CODE = 4
SAMPLES_PER_CODE = HOP * FRAMES_PER_CODE  # 640: a wave is filled up to whole codes

# The level.  Source: SoX 14.4.2, `norm -6`.
PEAK = 10 ** (-6 / 20)  # of full scale
FULL_SCALE = 2.0**31  # SoX computes in 32-bit integers
OUT_STEP = 128  # ... and rounds to 24 bits what leaves as float32

# Kaldi's filter bank.  Source: torchaudio.compliance.kaldi.fbank by its defaults.
FBANK_BINS = 80
FBANK_WINDOW, FBANK_N_FFT = 400, 512  # samples
PREEMPHASIS = 0.97
FBANK_LOW, FBANK_HIGH = 20.0, 8000.0  # Hz
FBANK_FLOOR = float(np.finfo(np.float32).eps)  # of energies, before the logarithm
KALDI_MELS, KALDI_BREAK = 1127.0, 700.0  # mel = 1127 ln(1 + Hz / 700)

# The reference mel.  Source: MelSpectrogramFeatures of the official speech_vq.
REFERENCE_BINS = 80
REFERENCE_N_FFT, REFERENCE_WINDOW = 1024, 640  # samples
REFERENCE_HIGH = 8000.0  # Hz

# 5 frames of the reference mel: the DiT's speaker encoder mirrors 4 at each end.
MIN_REFERENCE_SAMPLES = 5 * HOP


def code_count(samples):
    """Codes of a wave: int of int, or of an array of them."""
    return -(-samples // SAMPLES_PER_CODE)


def log_mel(
    wave: jax.Array, length: jax.Array | None = None, *, bins: int = MEL_BINS
) -> jax.Array:
    """Whisper's log-mel spectrogram; each row as if it were alone.

    A row is filled up with silence to whole codes and mirrored about both ends; its
    loudest value, 8 powers of ten below which all is cut, is that of the whole row.

    Args:
        wave: float [B, W], 16 kHz, in [-1, 1].
        length: int [B], samples of each row that count, W a multiple of 640; None: all
            of them, W a multiple of 160.
        bins: M.

    Returns:
        float32 [B, W // 160, M], about -1 to 1; of row b the first 4 ceil(length / 640)
        frames count, the others are zero.

    Source: get_mel_audio of the official whisper_encoder.
    """
    wave, frames = wave.astype(jnp.float32), wave.shape[1] // HOP
    if length is None:
        wave = jnp.pad(wave, ((0, 0), (EDGE, EDGE)), mode="reflect")
        return _scaled(_log10_mel(wave, frames, bins))
    wave = jnp.where(jnp.arange(wave.shape[1])[None] < length[:, None], wave, 0.0)
    count = code_count(length)  # [B]
    ends = dict(edge=EDGE, samples=frames * HOP)
    wave = log_mels.reflect(wave, count * SAMPLES_PER_CODE, **ends)
    real = jnp.arange(frames)[None] < count[:, None] * FRAMES_PER_CODE  # [B, T]
    real = real[:, :, None]
    mel = jnp.where(real, _log10_mel(wave, frames, bins), -jnp.inf)
    return jnp.where(real, _scaled(mel), 0.0)


def _log10_mel(wave: jax.Array, frames: int, bins: int) -> jax.Array:
    """Float32 [B, T, M] of float32 [B, 160 T + 400], log10 of powers."""
    # windows of five half hops, every second one: no gather
    halves = wave.reshape(len(wave), -1, HOP // 2)  # [B, 2T + 5, 80]
    cut = [halves[:, i : i + 2 * frames : 2] for i in range(2 * N_FFT // HOP)]
    framed = jnp.concatenate(cut, axis=-1) * log_mels.hann(N_FFT)[None, None]
    spectrum = jnp.fft.rfft(framed)
    power = spectrum.real**2 + spectrum.imag**2  # [B, T, N_FFT // 2 + 1]
    # In full float32: accelerators would multiply in fewer bits by default.
    filters = _filters(N_FFT, bins)
    mel = jnp.matmul(power, filters.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.log10(jnp.maximum(mel, POWER_FLOOR))


def _scaled(mel: jax.Array) -> jax.Array:
    loudest = jnp.max(mel, axis=(1, 2), keepdims=True)
    return (jnp.maximum(mel, loudest - RANGE) + 4.0) / 4.0


def _filters(n_fft: int, bins: int, high: float = RATE / 2) -> np.ndarray:
    return log_mels.mel_filterbank(
        bins=bins, n_fft=n_fft, rate=RATE, low=0.0, high=high
    )


def normalize(wave: np.ndarray) -> np.ndarray:
    """The wave with its peak at -6 dBFS, as SoX makes it, to the last bit.

    wave: float [W]; what is beyond [-1, 1] is clipped before; silence stays silence.
    Result: float32 [W].
    """
    highest = FULL_SCALE - 1
    samples = np.clip(np.asarray(wave, np.float64) * FULL_SCALE, -FULL_SCALE, highest)
    samples = np.trunc(samples)
    up, down = samples.max(initial=1.0), -samples.min(initial=-1.0)
    samples = samples * (min(highest / up, FULL_SCALE / down) * PEAK)
    samples = np.trunc(samples + np.copysign(0.5, samples))  # to the nearest
    samples = np.floor(samples / OUT_STEP + 0.5) * OUT_STEP
    return (samples / FULL_SCALE).astype(np.float32)


def fbank(wave: np.ndarray) -> np.ndarray:
    """Kaldi's log energies in 80 mel bands, without dither, frames inside the wave.

    wave: float [W], 16 kHz, in [-1, 1], W >= 400.
    Result: float32 [(W - 400) // 160 + 1, 80].
    Raises: ValueError for a shorter wave.
    """
    if len(wave) < FBANK_WINDOW:
        raise ValueError(
            f"got {len(wave)} samples at 16 kHz, expected at least {FBANK_WINDOW}; "
            "give some seconds of speech"
        )
    framed = _frames(np.asarray(wave, np.float64), FBANK_WINDOW)
    framed = framed - framed.mean(axis=1, keepdims=True)
    before = np.concatenate([framed[:, :1], framed[:, :-1]], axis=1)
    framed = (framed - PREEMPHASIS * before) * _povey()
    power = np.square(np.abs(np.fft.rfft(framed, FBANK_N_FFT)))  # [T, 257]
    energy = power[:, :-1] @ _kaldi_filters().T  # [T, M]: nothing at 8 kHz itself
    return np.log(np.maximum(energy, FBANK_FLOOR)).astype(np.float32)


def reference_mel(wave: np.ndarray) -> np.ndarray:
    """The log-mel spectrogram of a voice that the DiT is conditioned on.

    wave: float [W], 16 kHz, in [-1, 1], W >= 800.
    Result: float32 [W // 160, 80].
    Raises: ValueError for a shorter wave.
    """
    if len(wave) < MIN_REFERENCE_SAMPLES:
        raise ValueError(
            f"got a reference of {len(wave)} samples at 16 kHz, expected at least "
            f"{MIN_REFERENCE_SAMPLES} (0.05 s); give some seconds of speech"
        )
    edge = (REFERENCE_N_FFT - HOP) // 2
    wave = np.pad(np.asarray(wave, np.float64), (edge, edge), mode="reflect")
    around = (REFERENCE_N_FFT - REFERENCE_WINDOW) // 2
    window = np.pad(log_mels.hann(REFERENCE_WINDOW), (around, around))
    spectrum = np.fft.rfft(_frames(wave, REFERENCE_N_FFT) * window)
    magnitude = np.sqrt(np.square(np.abs(spectrum)) + log_mels.MAGNITUDE_FLOOR)
    mel = magnitude @ _filters(REFERENCE_N_FFT, REFERENCE_BINS, REFERENCE_HIGH).T
    return np.log(np.maximum(mel, log_mels.MEL_FLOOR)).astype(np.float32)


def _frames(wave: np.ndarray, size: int) -> np.ndarray:
    """[T, size]: windows that lie inside the wave, one each 10 ms."""
    return np.lib.stride_tricks.sliding_window_view(wave, size)[::HOP]


def _povey() -> np.ndarray:
    """Kaldi's own window: a Hann window, closed at both ends, to the power 0.85."""
    phase = 2 * np.pi * np.arange(FBANK_WINDOW) / (FBANK_WINDOW - 1)
    return (0.5 - 0.5 * np.cos(phase)) ** 0.85


def _kaldi_filters() -> np.ndarray:
    """Triangles of height 1, evenly spaced in mels: [M, 256]."""

    def to_mel(hz):
        return KALDI_MELS * np.log1p(np.asarray(hz) / KALDI_BREAK)

    corners = np.linspace(to_mel(FBANK_LOW), to_mel(FBANK_HIGH), FBANK_BINS + 2)
    left, centre, right = (corners[i : i + FBANK_BINS, None] for i in range(3))
    mel = to_mel(np.arange(FBANK_N_FFT // 2) * RATE / FBANK_N_FFT)[None]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))
