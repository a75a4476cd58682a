"""A raw clip: one recording, not yet opened, and what is known about it."""

import dataclasses
import os

import numpy as np


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
        id: unique in its source.
        audio: path of a file, or (samples, rate): int16 or float [W], Hz.
        text: what is said.
        language: lower case, "english"; "" where unknown.
        speaker: unique in the corpus for each voice; "" where unknown.
        source: where it comes from, "asterisk/en".
        instruct: a description of how it is said, or "".
        problem: why the source itself says that it cannot be used (a name in
            `cleaning.REASONS`), or "".
    """

    id: str
    audio: str | os.PathLike | tuple[np.ndarray, int]
    text: str
    language: str = ""
    speaker: str = ""
    source: str = ""
    instruct: str = ""
    problem: str = ""
