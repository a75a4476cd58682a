"""Random choices that need no state: a key and a number in, the same bits out always.

Everything a data plan draws comes from here.  NumPy's own generators may change their
streams between versions, and then a run could not be resumed; these lines cannot.

Source: splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
Generators", 2014), with its published constants.
"""

import hashlib

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def key(*parts: int | str) -> int:
    """A key of 64 bits from names and numbers; their order counts."""
    value = 0
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
        value = _mix_int((value ^ part & _WORD) + _GOLDEN & _WORD)
    return value


def _mix_int(value: int) -> int:
    value = (value ^ value >> 30) * _FIRST & _WORD
    value = (value ^ value >> 27) * _SECOND & _WORD
    return value ^ value >> 31


def bits(key: int, numbers: np.ndarray) -> np.ndarray:
    """64 random bits for each number.  numbers: int [N].  Returns: uint64 [N]."""
    value = numbers.astype(np.uint64)
    value *= np.uint64(_GOLDEN)
    value += np.uint64(key)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        value ^= value >> np.uint64(shift)
        value *= np.uint64(factor)
    value ^= value >> np.uint64(31)
    return value


def fields(key: int, numbers: np.ndarray) -> np.ndarray:
    """Four independent draws of 16 bits for each number: uint16 [N, 4]."""
    return bits(key, numbers).astype("<u8", copy=False).view("<u2").reshape(-1, 4)


def permutation(key: int, count: int) -> np.ndarray:
    """The numbers below `count` in a random order: int64 [count].

    Each number is sorted by its random bits, the lowest of which are replaced by the
    number: no two are equal, so that every sorting algorithm gives this order.
    """
    numbers = np.arange(count, dtype=np.uint64)
    low = np.uint64((1 << max(count - 1, 1).bit_length()) - 1)
    return (np.sort(bits(key, numbers) & ~low | numbers) & low).astype(np.int64)
