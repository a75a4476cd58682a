"""DNSMOS P.835 and P.808 scores, by the package speechmos (extra eval), MIT."""

import numpy as np
from speechmos import dnsmos

RATE = 16_000  # Hz


def score(wave: np.ndarray) -> dict[str, float]:
    """Scores from 1 to 5 of float32 [W] at 16 kHz.  A short wave is repeated to 9 s.

    OVRL hears noise and no missing highs, P808 hears both.
    """
    found = dnsmos.run(np.clip(wave, -1, 1), RATE)
    return dict(ovrl=float(found["ovrl_mos"]), p808=float(found["p808_mos"]))
