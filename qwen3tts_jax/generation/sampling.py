"""From scores to a token: penalties, masks, temperature, top-k, top-p, the draw.

Pure functions over scores [B, V] in float32, in the order of the official processors:
repetition penalty, minimum length, suppressed ids, then temperature, top-k, top-p.
Everything that a request may vary is an array, so that nothing is compiled anew.
"""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

NEVER = -jnp.inf
MIN_NEW_TOKENS = 2  # the end token is banned at the first two steps
SUPPRESSED_TAIL = 1024  # the last ids of the talker's vocabulary are not codes


@struct.dataclass
class Choice:
    """How one head chooses; every field an array [B], or [1] for all rows.

    Attributes:
        do_sample: bool; False takes the best score.
        temperature: float32 > 0.
        top_k: int32, 0 for no limit.
        top_p: float32 in (0, 1], 1 for no limit.
    """

    do_sample: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


@struct.dataclass
class Sampling:
    """Choices of both heads and the penalty on the talker's own history.

    Attributes:
        talker, predictor: Choice of codebook 0 and of codebooks 1..15.
        repetition_penalty: float32 [B] or [1], > 0, 1 for none.
    """

    talker: Choice
    predictor: Choice
    repetition_penalty: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
    """Generation options under their official names, with the official fallbacks."""

    do_sample: bool = True
    top_k: int = 50
    top_p: float = 1.0
    temperature: float = 0.9
    repetition_penalty: float = 1.05
    subtalker_dosample: bool = True
    subtalker_top_k: int = 50
    subtalker_top_p: float = 1.0
    subtalker_temperature: float = 0.9
    max_new_tokens: int = 2048

    @classmethod
    def merge(cls, user: dict, defaults: dict) -> "Options":
        """User's value, else the checkpoint's generation_config.json, else official's.

        Raises: TypeError for a name that is no option; ValueError for a value outside
        its range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(user) - set(names))
        if unknown:
            raise TypeError(
                f"got unknown option {', '.join(unknown)}, expected {', '.join(names)}"
            )
        given = {name: value for name, value in user.items() if value is not None}
        known = {name: defaults[name] for name in names if name in defaults}
        options = cls(**(known | given))
        options.check()
        return options

    def check(self) -> None:
        """Raises: ValueError naming the first option of a wrong kind or range."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds = {float: numbers.Real, int: numbers.Integral}.get(field.type, bool)
            wrong = isinstance(value, bool) != (field.type is bool)
            if wrong or not isinstance(value, kinds) or not math.isfinite(value):
                raise ValueError(
                    f"got {field.name}={value!r}, expected a finite "
                    f"{field.type.__name__}"
                )
        ranges = {
            "top_k": (self.top_k >= 0, "0 (no limit) or more"),
            "top_p": (0 < self.top_p <= 1, "a number in (0, 1]"),
            "temperature": (
                self.temperature > 0,
                "more than 0; greedy: do_sample=False",
            ),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0"),
            "subtalker_top_k": (self.subtalker_top_k >= 0, "0 (no limit) or more"),
            "subtalker_top_p": (0 < self.subtalker_top_p <= 1, "a number in (0, 1]"),
            "subtalker_temperature": (self.subtalker_temperature > 0, "more than 0"),
            "max_new_tokens": (self.max_new_tokens >= 2, "2 or more (frames + 1)"),
        }
        for name, (good, expected) in ranges.items():
            if not good:
                value = getattr(self, name)
                raise ValueError(f"got {name}={value!r}, expected {expected}")

    def sampling(self) -> Sampling:
        """The options as arrays of one row."""
        return Sampling(
            talker=_choice(self.do_sample, self.temperature, self.top_k, self.top_p),
            predictor=_choice(
                self.subtalker_dosample,
                self.subtalker_temperature,
                self.subtalker_top_k,
                self.subtalker_top_p,
            ),
            repetition_penalty=np.float32([self.repetition_penalty]),
        )


def _choice(do_sample, temperature, top_k, top_p) -> Choice:
    return Choice(
        np.bool_([do_sample]),
        np.float32([temperature]),
        np.int32([top_k]),
        np.float32([top_p]),
    )


def penalize_repetition(scores: jax.Array, seen: jax.Array, penalty) -> jax.Array:
    """Divide positive and multiply negative scores of seen ids.

    seen: bool [B, V]; penalty: float32 [B] or [1].
    """
    penalty = penalty[:, None]
    penalized = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(seen, penalized, scores)


def suppress(scores: jax.Array, step: jax.Array, eos: int) -> jax.Array:
    """Ban what is not a code, and the end token at the first two steps.

    scores: float32 [B, V]; step: int32 [B] or [1], tokens chosen before; eos: the end
        id.
    """
    ids = jnp.arange(scores.shape[-1])[None]
    banned = (ids >= scores.shape[-1] - SUPPRESSED_TAIL) & (ids != eos)
    banned = banned | ((ids == eos) & (step < MIN_NEW_TOKENS)[:, None])
    return jnp.where(banned, NEVER, scores)


def talker_scores(logits, *, seen, step, sampling: Sampling, eos: int) -> jax.Array:
    """Scores of codebook 0 before its Choice: penalty, then bans.  float32 [B, V]."""
    scores = logits.astype(jnp.float32)
    scores = penalize_repetition(scores, seen, sampling.repetition_penalty)
    return suppress(scores, step, eos)


def warp(scores: jax.Array, choice: Choice) -> jax.Array:
    """Temperature, top-k, top-p: scores with -inf where nothing may be drawn.

    scores: float [B, V]; result float32 [B, V].  Ids that tie with the k-th best are
    kept by top-k; of those that tie at the edge of top-p, the first ones go.
    """
    scores = scores.astype(jnp.float32) / choice.temperature[:, None]
    rows, size = scores.shape
    ascending = jnp.sort(scores, axis=-1)
    k = jnp.where(choice.top_k == 0, size, jnp.clip(choice.top_k, 1, size))
    kth = jnp.broadcast_to(size - k, rows)[:, None]  # [B, 1]
    floor = jnp.take_along_axis(ascending, kth, axis=-1)
    ascending = jnp.where(ascending < floor, NEVER, ascending)
    # top-p cuts, from the bottom, what sums to 1 - p or less, but never the best
    top_p = choice.top_p[:, None]
    below = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p
    cut = jnp.where(top_p < 1, jnp.sum(below, axis=-1, keepdims=True), 0)
    cut = jnp.minimum(cut, size - 1)  # [B, 1]
    edge = jnp.take_along_axis(ascending, cut, axis=-1)
    tied = scores == edge
    tied_cut = cut - jnp.sum(ascending < edge, axis=-1, keepdims=True)
    gone = (scores < floor) | (scores < edge)
    gone = gone | (tied & (jnp.cumsum(tied, axis=-1) <= tied_cut))
    return jnp.where(gone, NEVER, scores)


def choose(scores: jax.Array, choice: Choice, keys: jax.Array) -> jax.Array:
    """int32 [B]: drawn from softmax(warp(scores)), or the best.

    scores: float [B, V]; keys: typed PRNG keys [B], one per row, so that a row draws
        what it would draw alone.
    """
    drawn = jax.vmap(jax.random.categorical)(keys, warp(scores, choice))
    best = jnp.argmax(scores, axis=-1)
    return jnp.where(choice.do_sample, drawn, best).astype(jnp.int32)
