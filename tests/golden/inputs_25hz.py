"""Inputs of the golden files of the 25 Hz tokenizer, made again wherever needed.

As in `inputs.py`: numpy only, seeded, and each golden file notes `fingerprints()`.
"""

import inputs
import numpy as np

RATE = 16_000  # Hz, of what is encoded
SAMPLES_PER_CODE = 640  # of what is encoded
DECODED_PER_CODE = 960  # samples of 24 kHz that a code makes
FRAMES_PER_CODE = 4  # mel frames

# In samples: whole codes, one sample more, one sample in all; into the second window of
# 2 s, which they do not fill; into a third.
ENCODED = (4480, 4481, 1, 33_123, 80_123)
FEATURED = (0, 1, 2)  # whose log-mels are kept
CONTINUED = (0, 3)  # which of them are led through the layers after the quantiser too
REFERENCE = 1  # which of them is a voice's

# Codes; in mel frames neither fills its last block, be that of 24 or of 32.
DECODED = (31, 17)
TIME = 0.3  # of the flow, at which velocities are kept
REFERENCE_FRAMES = 75
BINS = 80
STAGED, VOCODED = 12, 50  # mel frames: stage by stage, and the wave alone

# Steps, guidance, sway: the official ones, and others.
SOLVERS = {"official": (10, 0.5, -1.0), "other": (4, 1.5, None)}

_ENCODE, _DECODE, _NOISE, _MEL = 100, 110, 120, 130  # where each input's seed lies


def waves(seed: int) -> list[np.ndarray]:
    """What is encoded, float32 [W] each."""
    return [
        inputs.voice(samples, seed + _ENCODE + i, RATE)
        for i, samples in enumerate(ENCODED)
    ]


def codes(seed: int, size: int) -> np.ndarray:
    """Random codes below `size`, int32 [2, 31]; -1 after the end of the second row."""
    rng = np.random.default_rng(seed + _DECODE)
    rows = rng.integers(size, size=(len(DECODED), max(DECODED)), dtype=np.int32)
    for row, count in zip(rows, DECODED):
        row[count:] = -1
    return rows


def full_codes(seed: int, size: int) -> np.ndarray:
    """The same with a code in each place: where the others have none, 0."""
    return np.maximum(codes(seed, size), 0)


def xvectors(seed: int, dim: int) -> np.ndarray:
    """Two voices, float32 [2, dim], each of length 1."""
    rows = np.random.default_rng(seed + _DECODE + 1).standard_normal((2, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def reference_mels(seed: int) -> np.ndarray:
    """Of the two voices, float32 [2, 75, BINS]: levels of log-mels, no speech."""
    rng = np.random.default_rng(seed + _DECODE + 2)
    rows = rng.standard_normal((2, REFERENCE_FRAMES, BINS)) * 2 - 5
    return rows.astype(np.float32)


def noise(seed: int) -> np.ndarray:
    """What the flow begins with, float32 [2, 124, BINS]."""
    rng = np.random.default_rng(seed + _NOISE)
    shape = (len(DECODED), max(DECODED) * FRAMES_PER_CODE, BINS)
    return rng.standard_normal(shape).astype(np.float32)


def mel(seed: int, frames: int) -> np.ndarray:
    """A log-mel for BigVGAN, float32 [1, frames, BINS]; some of it is clipped."""
    rng = np.random.default_rng(seed + _MEL + frames)
    return (rng.standard_normal((1, frames, BINS)) * 2.5 - 5).astype(np.float32)


def fingerprints(seed: int) -> dict[str, list[float]]:
    """{input: [mean, standard deviation, last element]}, to compare within 1e-6."""
    made = {f"encode/{i}": wave for i, wave in enumerate(waves(seed))}
    made |= {f"mel/{n}": mel(seed, n) for n in (STAGED, VOCODED)}
    made |= dict(codes=codes(seed, 512), xvectors=xvectors(seed, 20))
    made |= dict(reference_mels=reference_mels(seed), noise=noise(seed))
    return inputs.summaries(made)
