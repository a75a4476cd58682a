"""Spectrograms side by side (matplotlib, extra eval; loaded late)."""

import pathlib

import numpy as np
from matplotlib import figure

from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.audio import mel as log_mels

LOW, HIGH = np.log(log_mels.MEL_FLOOR), 2.0  # of the colours, natural log of the mel


def spectrograms(
    path: pathlib.Path, waves: dict[str, np.ndarray], *, title: str = ""
) -> None:
    """A PNG file with a log-mel of each of name -> float32 [W] at 24 kHz."""
    picture = figure.Figure(figsize=(10, 2.2 * len(waves)), layout="constrained")
    axes = picture.subplots(len(waves), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, wave) in zip(axes, waves.items()):
        mel = np.asarray(log_mels.log_mel(wave[None], np.int32([len(wave)])))[0]
        seconds = len(mel) * log_mels.HOP / audio_io.SAMPLE_RATE
        axis.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            vmin=LOW,
            vmax=HIGH,
            cmap="magma",
            extent=(0, seconds, 0, log_mels.MEL_BINS),
        )
        axis.set_ylabel("mel")
        axis.set_title(name, fontsize="small")
    axes[-1].set_xlabel("seconds")
    picture.suptitle(title, fontsize="medium")
    picture.savefig(path, dpi=100)
