"""One utterance of an engine, as the host sees it."""

import collections
import dataclasses
from typing import Any

import numpy as np

from qwen3tts_jax.generation import generate, prompt, sampling

MAX_UNREAD = 64  # chunks; a stream whose reader has fallen so far behind rests


@dataclasses.dataclass(eq=False)
class Stream:
    """One utterance on its way, as the host sees it.

    Attributes:
        prompt, choices, seed, codec: what it starts from; codec: see `Voice`.
        most: frames it may have, asked: that were asked for; guarded: it may have
            fewer, by the length of its text.
        text: ids for the frames, in order; complete: no more will come.
        frame_rate: Hz.
        planned: frames dispatched; codes: those that have come back, [Q] each.
        chunks: float32 waves nobody has read yet; samples: handed over in all chunks.
        waiting: it has no slot; abandoned: nobody can read it any more.
        suspect: a group with it has failed, and none has worked since.
        stop_reason, error: why it is over.
    """

    prompt: prompt.Prompt
    choices: sampling.Sampling
    seed: int
    codec: Any
    most: int
    asked: int
    guarded: bool
    text: list[int]
    complete: bool
    text_tokens: int
    frame_rate: float
    planned: int = 0
    groups: int = 0
    codes: list = dataclasses.field(default_factory=list)
    chunks: collections.deque = dataclasses.field(default_factory=collections.deque)
    samples: int = 0
    stop_reason: str | None = None
    error: Exception | None = None
    waiting: bool = True
    abandoned: bool = False
    suspect: bool = False

    @property
    def over(self) -> bool:
        return self.stop_reason is not None or self.error is not None

    @property
    def limit(self) -> int:
        """Frames it may have; the guard waits until the length of the text is known."""
        if not (self.guarded and self.complete):
            return self.most
        guard = generate.guard_frames(self.text_tokens, self.frame_rate)
        return min(self.most, guard)

    def ready(self) -> int:
        """Frames it could make now."""
        if self.over or len(self.chunks) >= MAX_UNREAD:
            return 0
        rest = self.limit - self.planned
        return rest if self.complete else min(rest, len(self.text) - self.planned)

    @property
    def starved(self) -> bool:
        """It has no text for a frame, and no frame on its way."""
        return self.ready() == 0 and self.planned == len(self.codes)

    def ends(self, count: int, ended: bool) -> bool:
        """Whether it is over with `count` frames more, after which it has `ended`."""
        return ended or len(self.codes) + count >= self.limit

    def hand_over(self, wave: np.ndarray) -> None:
        """Sound for its reader."""
        if len(wave):
            self.chunks.append(wave)
            self.samples += len(wave)

    def take_text(self, count: int, pad: int) -> np.ndarray:
        """Text ids of the next frames, int32 [count]."""
        ids = self.text[self.planned : self.planned + count]
        return np.asarray(ids + [pad] * (count - len(ids)), np.int32)
