"""The forms in which codes and voices are handed to the 25Hz tokenizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

FIELDS = ("audio_codes", "xvectors", "ref_mels")
SINGLE = (1, 1, 2)  # axes of what belongs to one utterance


def fields(encoded: Any) -> tuple[Sequence, ...]:
    """audio_codes, xvectors and ref_mels, each of several utterances."""
    if hasattr(encoded, FIELDS[0]):
        values = [getattr(encoded, name, None) for name in FIELDS]
    elif isinstance(encoded, dict):
        values = [encoded.get(name) for name in FIELDS]
    elif isinstance(encoded, list) and all(isinstance(e, dict) for e in encoded):
        values = [
            [e[name] for e in encoded] if all(name in e for e in encoded) else None
            for name in FIELDS
        ]
    else:
        values = [encoded, None, None]
    missing = [name for name, value in zip(FIELDS, values) if value is None]
    if missing:
        raise ValueError(
            f"got no {' and no '.join(missing)}, expected {', '.join(FIELDS)}: 25Hz "
            "codes do not say who speaks; give what encode returned"
        )
    # one utterance, or several as one padded array
    ndims = [getattr(value, "ndim", None) for value in values]
    alone = ndims[0] is not None and ndims[1:] == [*SINGLE[1:]]
    return tuple(
        [value] if alone or ndim == axes else value
        for value, ndim, axes in zip(values, ndims, SINGLE)
    )


def checked(codes, size: int) -> np.ndarray:
    """One utterance's codes, int32 [T], without the padding of -1 behind them.

    codes: int [T] or [T, 1]; size: of the codebook.
    Raises: ValueError for another shape or dtype, no code, or one out of range.
    """
    codes = np.asarray(codes)
    if codes.ndim == 2 and codes.shape[1] == 1:
        codes = codes[:, 0]
    if codes.ndim != 1:
        raise ValueError(f"got codes of shape {codes.shape}, expected [T]")
    codes = codes[: int((codes > -1).sum())]
    if not len(codes):
        raise ValueError("got 0 codes, expected at least 1")
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"got codes of dtype {codes.dtype}, expected integers")
    if codes.min() < 0 or codes.max() >= size:
        raise ValueError(
            f"got codes from {codes.min()} to {codes.max()}, expected 0 to {size - 1}"
        )
    return codes.astype(np.int32)
