"""Teacher-forced cross-entropies of codebooks 0..15, aligned as generation is aligned.

The hidden state at position p-1 scores codebook 0 of the frame at p, and is what the
code predictor reads for codebooks 1..15 of that frame; predictor head i-1 scores
codebook i. The official fine-tuning script differs in three places (its labels are
shifted once too often, its predictor reads the hidden state of the frame's own
position, its text is not projected); those are faults, see QwenLM/Qwen3-TTS issues 179
and 371.
"""

import jax
import jax.numpy as jnp
from flax import struct

from qwen3tts_jax import generate
from qwen3tts_jax.nn import attention

PREDICTOR_WEIGHT = 0.3  # of the mean over codebooks 1..15, as in the official script


@struct.dataclass
class Losses:
    """Means over the frames of a batch, in nats.

    Attributes:
        cross_entropy: float32 [Q], one per codebook.
        first_with_eos: float32 [], codebook 0 over the frames and the end token after
            them.
        total: float32 [], first_with_eos + 0.3 * mean of codebooks 1..15.
    """

    cross_entropy: jax.Array
    first_with_eos: jax.Array
    total: jax.Array


def teacher_forced(
    lm: generate.LanguageModel, batch: dict, codes: jax.Array, frames: jax.Array
) -> Losses:
    """Losses of given frames after given prompts.

    Args:
        batch: fields of `prompt.Batch`; `trailing` must have at least T columns
            (collate
            with trailing >= T), since each frame adds one.
        codes: int32 [B, T, Q], padded on the right with any codes.
        frames: int32 [B], how many of each row's frames count; at least 1.
    """
    rows, length, _ = codes.shape
    hidden = _hidden(lm, batch, codes)  # [B, T + 1, D], before each frame and the end
    counts = jnp.arange(length + 1)[None] - frames[:, None]
    is_frame, is_end = (counts < 0).astype(jnp.float32), counts == 0
    eos = lm.talker.config.codec_eos_id
    first = jnp.pad(codes[..., 0], ((0, 0), (0, 1)))
    first = cross_entropy(lm.talker.logits(hidden), jnp.where(is_end, eos, first))
    rest = _predictor_loss(lm, hidden[:, :-1], codes)  # [B, T, Q - 1]
    total = jnp.sum(is_frame)
    rest = jnp.einsum("BTQ,BT->Q", rest, is_frame[:, :-1]) / total
    alone = jnp.sum(first * is_frame) / total
    with_eos = jnp.sum(first * (is_frame + is_end)) / (total + rows)
    return Losses(
        cross_entropy=jnp.concatenate([alone[None], rest]),
        first_with_eos=with_eos,
        total=with_eos + PREDICTOR_WEIGHT * jnp.mean(rest),
    )


def _hidden(lm, batch: dict, codes: jax.Array) -> jax.Array:
    """Hidden states before each of T frames and before what follows them."""
    length = codes.shape[1]
    text = lm.talker.embed_text(batch["trailing"][:, :length])
    if text.shape[1] != length:
        raise ValueError(
            f"got {text.shape[1]} trailing ids for {length} frames; collate with "
            f"trailing={length}"
        )
    x = jnp.concatenate([lm.embed_prompt(batch), lm.embed_frame(codes) + text], axis=1)
    size = x.shape[1]
    positions, mask = left_padded(batch["pads"], size)
    hidden, _ = lm.talker(x, positions, mask)
    return hidden[:, -(length + 1) :]


def left_padded(pads: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """(rotary positions int32 [B, T], mask bool [B, T, T]) of left-padded sequences.

    pads: int [B].  Positions count from the first real one; what stands at padding is
    never read.
    """
    steps = jnp.arange(length)[None]
    positions = jnp.maximum(steps - pads[:, None], 0)
    real = steps >= pads[:, None]  # [B, T]
    return positions, attention.causal_mask(length) & real[:, None]


def _predictor_loss(lm, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """Float32 [B, T, Q-1]: cross-entropies of codebooks 1..15."""
    rows, length, groups = codes.shape
    flat = codes.reshape(rows * length, groups)
    first = lm.talker.embed_codec(flat[:, 0])
    hidden = hidden.reshape(rows * length, -1)
    logits = lm.predictor(hidden, first, flat[:, 1:])
    return cross_entropy(logits, flat[:, 1:]).reshape(rows, length, groups - 1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] in float32: [...] of [..., V] and int [...]."""
    scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
