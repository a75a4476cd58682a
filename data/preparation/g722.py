"""G.722 recordings (telephone systems): headerless, 64 kbit/s, 16 kHz (extra data)."""

from pathlib import Path

import G722
import numpy as np

RATE = 16_000  # Hz
BITS_PER_SECOND = 64_000
SUFFIX = ".g722"


def seconds(path: Path) -> float:
    """Length of a file, from its size."""
    return path.stat().st_size * 8 / BITS_PER_SECOND


def read(path: Path) -> tuple[np.ndarray, int]:
    """int16 [W] and its rate.  A decoder carries state: each file has its own."""
    decoder = G722.G722(RATE, BITS_PER_SECOND)
    return np.array(decoder.decode(path.read_bytes()), np.int16), RATE
