"""What a wave keeps of its recording: STOI and wide-band PESQ (extra eval).

All take float32 [W] at 16 kHz, in time with each other.
"""

import warnings

import numpy as np
import pesq
import pystoi

RATE = 16_000  # Hz
PESQ_FLOOR = 1.0  # of a wave in which PESQ finds no speech where there is some
SILENT = (pesq.NoUtterancesError, pesq.BufferTooShortError)


def wideband_pesq(reference: np.ndarray, wave: np.ndarray) -> float | None:
    """From 1.0 to 4.64; None where the reference itself cannot be scored: too short,
    or no speech."""
    try:
        return float(pesq.pesq(RATE, reference, wave, "wb"))
    except SILENT:
        try:
            pesq.pesq(RATE, reference, reference, "wb")
        except SILENT:
            return None
        return PESQ_FLOOR


def stoi(reference: np.ndarray, wave: np.ndarray) -> float | None:
    """Up to 1; None where the reference has too little speech for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, wave, RATE))
        except RuntimeWarning:  # fewer than 30 frames that are not silent
            return None
