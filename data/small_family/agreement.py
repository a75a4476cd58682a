"""Whether a clip says its text: many clips are heard at once, errors told apart.

Whisper always looks at 30 s, so that clips are joined with pauses to nearly that much;
what it hears is aligned to all their texts together, and each clip gets the errors that
fall to its own part.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

WINDOW = 28.0  # seconds, somewhat less than Whisper's
PAUSE = 0.7  # seconds between clips
# A clip with more errors than this for each unit of its text does not say it.  French
# is the language that Whisper base hears worst.
MOST = dict(en=0.12, es=0.12, it=0.12, pt=0.12, fr=0.2, zh=0.2, ja=0.2)


def packs(lengths: Iterable[tuple[str, float]]) -> Iterator[list[str]]:
    """Ids in runs that fit a window together, in their order.

    Args:
        lengths: (id, seconds); a clip longer than the window stands alone.
    """
    pack, total = [], 0.0
    for name, seconds in lengths:
        if pack and total + PAUSE + seconds > WINDOW:
            yield pack
            pack, total = [], 0.0
        total += seconds + PAUSE * bool(pack)
        pack.append(name)
    if pack:
        yield pack


def join(waves: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """float32 [W]: waves with pauses between them."""
    pause = np.zeros(round(PAUSE * rate), np.float32)
    parts = [part for wave in waves for part in (wave, pause)]
    return np.concatenate(parts[:-1])


def error_rates(said: Sequence[Sequence], heard: Sequence) -> list[float]:
    """Errors for each unit of every text.

    Args:
        said: a sequence of units for each clip; none is empty.
        heard: units heard in all of them together.
    """
    joined = [unit for units in said for unit in units]
    errors = _errors(joined, heard)
    ends = np.cumsum([len(units) for units in said])
    parts = np.split(errors, ends[:-1])
    return [float(part.sum() / len(part)) for part in parts]


def _errors(said: Sequence, heard: Sequence) -> np.ndarray:
    """int [N]: errors at each unit said, by an alignment with the fewest.

    A unit put in counts at the unit before it, or at the first.
    """
    costs = _costs(said, heard)
    errors = np.zeros(len(said), np.int64)
    i, j = len(said), len(heard)
    while i or j:
        differs = i and j and said[i - 1] != heard[j - 1]
        if i and j and costs[i, j] == costs[i - 1, j - 1] + differs:
            i, j = i - 1, j - 1
            errors[i] += differs
        elif i and costs[i, j] == costs[i - 1, j] + 1:
            i -= 1
            errors[i] += 1
        else:
            j -= 1
            errors[max(i - 1, 0)] += 1
    return errors


def _costs(said: Sequence, heard: Sequence) -> np.ndarray:
    """int [N + 1, M + 1]: fewest edits from the first n units to the first m."""
    numbers: dict = {}
    b = np.array([numbers.setdefault(unit, len(numbers)) for unit in heard], np.int64)
    places = np.arange(len(b) + 1)
    rows = [places]
    for i, unit in enumerate(said, 1):
        row = rows[-1]
        step = np.minimum(row[1:] + 1, row[:-1] + (b != numbers.get(unit, -1)))
        row = np.concatenate([[i], step])
        # an insertion costs one more than the place before: a running minimum
        rows.append(np.minimum.accumulate(row - places) + places)
    return np.stack(rows)


def judge(
    said: Sequence[Sequence],
    together: Callable[[], Sequence],
    alone: Callable[[int], Sequence],
    most: float,
) -> list[float]:
    """Error rates of a pack's clips; those above `most` are heard again, alone.

    Args:
        together, alone: units heard in the whole pack, and in one clip of it.
    """
    rates = error_rates(said, together())
    for place, rate in enumerate(rates):
        if rate > most and len(said) > 1:
            rates[place] = min(rate, *error_rates([said[place]], alone(place)))
    return rates
