"""Pictures of sound, to look at while a codec learns."""

from pathlib import Path

import numpy as np
from PIL import Image

from qwen3tts_jax.audio import mel

RANGE = 9.0  # of log-mel values shown, nats below the loudest
SCALE = 2  # pixels for each mel bin and frame
GAP = 4  # pixels between two pictures
COLOURS = np.array(  # from silence to loud
    [[0, 0, 20], [60, 10, 110], [180, 40, 90], [250, 140, 30], [255, 250, 200]]
)


def spectrograms(path: Path, waves: list[np.ndarray]) -> None:
    """Write the log-mels of waves, one under the other, as a PNG.

    waves: float32 [W] each, 24 kHz.  The colours mean the same in all of them.
    """
    length = max(len(wave) for wave in waves)
    rows = np.stack([np.pad(wave, (0, length - len(wave))) for wave in waves])
    mels = np.asarray(mel.log_mel(rows, np.full(len(rows), length, np.int32)))
    level = np.clip(1 + (mels - mels.max()) / RANGE, 0, 1)  # [B, T, M]
    pictures = [_coloured(x.T[::-1]) for x in level]  # low frequencies at the bottom
    gap = np.full((GAP, pictures[0].shape[1], 3), 255, np.uint8)
    stacked = np.concatenate([x for one in pictures for x in (one, gap)][:-1])
    Image.fromarray(stacked).save(path)


def _coloured(level: np.ndarray) -> np.ndarray:
    """Values in [0, 1], float [M, T] -> uint8 [M * SCALE, T * SCALE, 3]."""
    places = np.linspace(0, 1, len(COLOURS))
    rgb = np.stack([np.interp(level, places, c) for c in COLOURS.T], axis=-1)
    return rgb.round().astype(np.uint8).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
