"""Cross-entropies of codebooks 0..15, aligned as generation is aligned: of one prompt a
row (`teacher_forced`, for parity), and of packed rows (`packed`, for training).

The hidden state at position p-1 scores codebook 0 of the frame at p, and is what the
code predictor reads for codebooks 1..15 of that frame; predictor head i-1 scores
codebook i. The official fine-tuning script differs in three places (its labels are
shifted once too often, its predictor reads the hidden state of the frame's own
position, its text is not projected); those are faults, see QwenLM/Qwen3-TTS issues 179
and 371.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct

from qwen3tts_jax import sharding
from qwen3tts_jax.generation import generate
from qwen3tts_jax.nn import attention
from qwen3tts_jax.training import fsdp
from qwen3tts_jax.training.lm import params

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
    logits = _predictor_logits(lm, hidden[:, :-1], codes)
    rest = cross_entropy(logits, codes[..., 1:])  # [B, T, Q - 1]
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


def _predictor_logits(lm, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """Float [B, T, Q-1, V]: scores of codebooks 1..15 of frames int [B, T, Q]."""
    rows, length, groups = codes.shape
    flat = codes.reshape(rows * length, groups)
    first = lm.talker.embed_codec(flat[:, 0])
    logits = lm.predictor(hidden.reshape(rows * length, -1), first, flat[:, 1:])
    return logits.reshape(rows, length, groups - 1, -1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] in float32: [...] of [..., V] and int [...]."""
    scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]


# ------------------------------------------------------------------ packed rows


@dataclasses.dataclass(frozen=True)
class Packing:
    """How packed rows are scored.

    Attributes:
        predictor_fraction: of a row's frames, drawn anew each step, whose codebooks
            1..15 are scored: 1 for all, 1/16 as in Sesame's CSM.
        predictor_weight: of the mean over codebooks 1..15.
        predictor_chunk: frames of a row whose scores are in memory at once.
        attention: one of `nn.packed_attention.IMPLEMENTATIONS`.
        remat: one of `nn.transformer.REMAT`: what the backward pass computes again.
    """

    predictor_fraction: float = 1.0
    predictor_weight: float = PREDICTOR_WEIGHT
    predictor_chunk: int = 512
    attention: str = "blocks"
    remat: str = "none"

    def __post_init__(self):
        if not 0 < self.predictor_fraction <= 1:
            raise ValueError(
                f"got predictor_fraction {self.predictor_fraction}, expected above 0 "
                "and at most 1; 1/16 is the least that is known to lose nothing"
            )

    def capacity(self, length: int) -> int:
        """How many frames of a row of `length` positions the predictor may get."""
        return math.ceil(self.predictor_fraction * length)


@struct.dataclass
class Counts:
    """What the means of a step divide by; over all its rows.

    Attributes:
        labels: float32 [], frames and ends; frames: float32 [].
        chosen: float32 [], frames that the predictor is trained on.
    """

    labels: jax.Array
    frames: jax.Array
    chosen: jax.Array


@struct.dataclass
class Sums:
    """Sums over the scored places.

    Attributes:
        first: float32 [], cross-entropy of codebook 0 over frames and ends.
        cross_entropy: float32 [Q], over frames (codebook 0) or chosen frames.
        correct: float32 [Q], how often the best code was the right one.
    """

    first: jax.Array
    cross_entropy: jax.Array
    correct: jax.Array


def counts(batch: dict, eos: int, packing: Packing) -> Counts:
    """Counts of packed rows [..., B, L], known before anything is computed."""
    frames = _is_frame(batch["labels"], eos)
    return Counts(
        labels=jnp.sum(batch["labels"] >= 0).astype(jnp.float32),
        frames=jnp.sum(frames).astype(jnp.float32),
        chosen=jnp.sum(_wanted(frames, packing)).astype(jnp.float32),
    )


def packed(
    parts: params.Parts,
    batch: dict,
    total: Counts,
    key: jax.Array,
    *,
    packing: Packing,
    gather: fsdp.Gather,
) -> tuple[jax.Array, Sums]:
    """The training loss of packed rows.

    Args:
        batch: arrays as `data.loading.packed_rows.pack` makes them.
        total: of all rows of the step, so that the losses of its parts add up.
        key: draws the frames of the predictor.
        gather: casts the parameters, and gathers them on its mesh.
    Returns:
        (float32 []: mean of codebook 0 over frames and ends + predictor_weight * mean
        of codebooks 1..15 over the chosen frames, Sums).
    """
    # the talker's layers are gathered one by one as they run
    talker = gather(parts.talker, but_layers=True)
    parts = gather(parts.replace(talker=None)).replace(talker=talker)
    lm, eos = parts.lm, talker.config.codec_eos_id
    hidden = _packed_hidden(parts, batch, packing, gather)
    labels = batch["labels"].astype(jnp.int32)
    logits = lm.talker.logits(hidden)
    scored, is_frame = labels >= 0, _is_frame(labels, eos)
    first = cross_entropy(logits, jnp.maximum(labels, 0))
    right = jnp.argmax(logits, axis=-1) == labels
    rest, rest_right = _packed_predictor(
        lm, hidden, batch, is_frame, key, packing, gather.mesh
    )
    sums = Sums(
        first=jnp.sum(first * scored),
        cross_entropy=jnp.concatenate([jnp.sum(first * is_frame)[None], rest]),
        correct=jnp.concatenate([_sum(right & is_frame)[None], rest_right]),
    )
    mean = jnp.mean(rest) / total.chosen
    return sums.first / total.labels + packing.predictor_weight * mean, sums


def means(sums: Sums, total: Counts, packing: Packing) -> dict[str, jax.Array]:
    """What is logged: loss, and per codebook cross-entropy and accuracy."""
    rest = jnp.full(len(sums.correct) - 1, total.chosen)
    count = jnp.concatenate([total.frames[None], rest])
    cross_entropy, first = sums.cross_entropy / count, sums.first / total.labels
    ends = jnp.maximum(total.labels - total.frames, 1)
    return dict(
        loss=first + packing.predictor_weight * jnp.mean(cross_entropy[1:]),
        loss_first=first,
        loss_end=(sums.first - sums.cross_entropy[0]) / ends,
        cross_entropy=cross_entropy,
        accuracy=sums.correct / count,
    )


def _packed_hidden(parts, batch: dict, packing: Packing, gather) -> jax.Array:
    """Float [B, L, D]: what the talker says at every position."""
    lm = parts.lm
    text, codes = batch["text"], batch["codes"].astype(jnp.int32)
    x = lm.embed_tracks(text, codes)
    speaker_at = batch["speaker_at"].astype(jnp.int32)[..., None]  # [B, L, 1]
    voices = _voices(parts, batch).astype(x.dtype)  # [B, S, D]
    voice = jnp.take_along_axis(voices, jnp.maximum(speaker_at, 0), axis=1)
    x = x + jnp.where(speaker_at >= 0, voice, 0)
    segments = attention.Segments(batch["segment"], packing.attention, gather.mesh)
    hidden, _ = lm.talker.transformer(
        x, batch["position"], segments, remat=packing.remat, gather=gather
    )
    return hidden


def _voices(parts, batch: dict) -> jax.Array:
    """Float [B, S, D]: the voices of each row, read or computed from their mels."""
    if "x_vector" in batch:
        return batch["x_vector"]
    mel = batch["mel"].astype(parts.lm.dtype)
    rows, size = mel.shape[:2]
    flat = parts.speaker_encoder(
        mel.reshape(rows * size, *mel.shape[2:]), batch["mel_length"].reshape(-1)
    )
    return flat.reshape(rows, size, -1)


def _packed_predictor(lm, hidden, batch, is_frame, key, packing: Packing, mesh):
    """(cross-entropies, right ones) of codebooks 1..15 summed over chosen frames."""
    index, chosen = _choose(is_frame, key, packing)  # [B, C]
    codes = jnp.roll(batch["codes"], -1, axis=1).astype(jnp.int32)  # of the next frame
    values = tuple(
        jnp.take_along_axis(x, index[..., None], axis=1) for x in (hidden, codes)
    )
    chunks = tuple(_cut(x, packing.predictor_chunk, mesh) for x in (*values, chosen))

    @jax.checkpoint
    def score(sums, chunk):
        hidden, codes, chosen = chunk
        codes = jnp.maximum(codes, 0)
        logits = _predictor_logits(lm, hidden, codes)  # [B, c, Q - 1, V]
        labels, weight = codes[..., 1:], chosen[..., None].astype(jnp.float32)
        right = (jnp.argmax(logits, axis=-1) == labels) * weight
        losses = cross_entropy(logits, labels) * weight
        return tuple(
            total + jnp.sum(x, axis=(0, 1)) for total, x in zip(sums, (losses, right))
        ), None

    zeros = jnp.zeros(codes.shape[-1] - 1, jnp.float32)
    return jax.lax.scan(score, (zeros, zeros), chunks)[0]


def _cut(x: jax.Array, size: int, mesh) -> jax.Array:
    """[B, C, ...] -> [n, B, c, ...] with c at most about `size`, zeros at the end.

    Frames that come from all over a row are spread over the devices that share it.
    """
    rows, length = x.shape[:2]
    devices = 1 if mesh is None else mesh.shape[sharding.POSITIONS]
    count = -(-length // size)
    size = -(-length // (count * devices)) * devices
    more = (0, count * size - length)
    x = jnp.pad(x, ((0, 0), more) + ((0, 0),) * (x.ndim - 2))
    if mesh is not None:
        x = jax.lax.with_sharding_constraint(x, sharding.of_batch(mesh, x.ndim))
    # every chunk has frames of each device
    return jnp.moveaxis(x.reshape(rows, size, count, *x.shape[2:]), 2, 0)


def _choose(is_frame: jax.Array, key, packing: Packing) -> tuple[jax.Array, jax.Array]:
    """(positions int32 [B, C], which of them count bool [B, C])."""
    rows, length = is_frame.shape
    if packing.predictor_fraction == 1:
        return jnp.broadcast_to(jnp.arange(length)[None], (rows, length)), is_frame
    priority = jnp.where(is_frame, jax.random.uniform(key, is_frame.shape), -1)
    _, index = jax.lax.top_k(priority, packing.capacity(length))
    wanted = _wanted(is_frame, packing)[:, None]
    return index, jnp.arange(index.shape[1])[None] < wanted


def _wanted(is_frame: jax.Array, packing: Packing) -> jax.Array:
    """int32 [...]: how many of a row's frames [..., L] the predictor gets."""
    frames = jnp.sum(is_frame, axis=-1)
    share = jnp.round(packing.predictor_fraction * frames).astype(jnp.int32)
    return jnp.where(frames > 0, jnp.maximum(share, 1), 0)


def _is_frame(labels: jax.Array, eos: int) -> jax.Array:
    return (labels >= 0) & (labels != eos)


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x.astype(jnp.float32))
