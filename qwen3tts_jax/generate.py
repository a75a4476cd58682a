"""Generation: prefill, then one device program for as many frames as there is room.

One frame = 15 code-predictor steps, one talker step, and the choice of the next frame's
codebook 0.  The host only enlarges the cache when it is full and reports progress.
Source: Qwen3TTSForConditionalGeneration.generate and Talker.forward.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3tts_jax import code_predictor, placement, prompt, sampling, talker
from qwen3tts_jax import config as configs
from qwen3tts_jax.nn import attention

# Shapes are padded to these, so that requests of other lengths compile nothing new.
PROMPT_BUCKETS = (
    32,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
)
TRAILING_BUCKETS = (32, 128, 512, 2048, 8192)
CACHE_BUCKETS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

GUARD_MIN_FRAMES = 192
GUARD_FRAMES_PER_TOKEN = 12  # a text token is rarely spoken for more than 3 frames

EOS, MAX_FRAMES, GUARD = "eos", "max_frames", "guard"


@struct.dataclass
class LanguageModel:
    """The two parts that make codes."""

    talker: talker.Talker
    predictor: code_predictor.CodePredictor

    def embed_frame(self, codes: jax.Array) -> jax.Array:
        """Sum of a frame's 16 embeddings: float [..., D] of int [..., Q]."""
        first = self.talker.embed_codec(codes[..., 0])
        return first + self.predictor.embed(codes[..., 1:])

    def embed_prompt(self, batch: dict) -> jax.Array:
        """Float [B, P, D]: both tracks of a collated prompt added, zero at padding.

        batch: the fields of `prompt.Batch`.
        """
        text, codes = batch["text"], batch["codes"]
        x = self.talker.embed_text(jnp.maximum(text, 0))
        x = jnp.where(text[..., None] >= 0, x, 0)
        first = self.talker.embed_codec(jnp.maximum(codes[..., 0], 0))
        x = x + jnp.where(codes[..., :1] >= 0, first, 0)
        rest = self.predictor.embed(jnp.maximum(codes[..., 1:], 0))
        x = x + jnp.where(codes[..., 1:2] >= 0, rest, 0)
        here = jnp.arange(text.shape[1])[None] == batch["speaker_at"][:, None]
        speaker = batch["speaker"].astype(x.dtype)[:, None]  # [B, 1, D]
        return x + jnp.where(here[..., None], speaker, 0)


@struct.dataclass
class GenerationState:
    """Everything that changes while frames are made.

    Attributes:
        step: int32 [], frames made.
        first: int32 [B], codebook 0 of the frame to make next.
        hidden: float [B, D], the talker's hidden state before that frame.
        codes: int32 [B, S, Q], frames so far.
        seen: bool [B, V], codebook-0 ids chosen so far.
        frames: int32 [B], frames each row has (fixed once it is done).
        limit: int32 [B], frames each row may have.
        ended: bool [B], the row chose its end token; done: ended, or at its limit.
        caches: the talker's KVCaches, [B, S, K, H] each.
        pads: int32 [B], left-padding slots in the caches.
        trailing: float [B, R, D], text embeddings still to be added, one per frame.
        tts_pad: float [1, D], added when they are used up.
        keys: PRNG keys [B].
    """

    step: jax.Array
    first: jax.Array
    hidden: jax.Array
    codes: jax.Array
    seen: jax.Array
    frames: jax.Array
    limit: jax.Array
    ended: jax.Array
    done: jax.Array
    caches: tuple
    pads: jax.Array
    trailing: jax.Array
    tts_pad: jax.Array
    keys: jax.Array


def prefill(
    lm, batch, limit, keys, params, tts_pad_id, *, size: int
) -> GenerationState:
    """Read the prompts and choose codebook 0 of the first frame.

    Args:
        lm: LanguageModel.
        batch: fields of `prompt.Batch` as arrays.
        limit: int32 [B], frames each row may have; keys: PRNG keys [B].
        params: sampling.Sampling.
        size: slots of the caches; static.
    """
    c = lm.talker.config
    x = lm.embed_prompt(batch)
    rows, length, _ = x.shape
    positions, mask = prompt_positions(batch["pads"], length, size)
    caches = lm.talker.transformer.init_cache(rows, size, x.dtype)
    hidden, caches = lm.talker(x, positions, mask, caches)
    state = GenerationState(
        step=jnp.int32(0),
        first=jnp.zeros(rows, jnp.int32),
        hidden=hidden[:, -1],
        codes=jnp.zeros((rows, size, c.code_groups), jnp.int32),
        seen=jnp.zeros((rows, c.vocab_size), bool),
        frames=jnp.zeros(rows, jnp.int32),
        limit=limit,
        ended=jnp.zeros(rows, bool),
        done=jnp.zeros(rows, bool),
        caches=caches,
        pads=batch["pads"],
        trailing=lm.talker.embed_text(batch["trailing"]),
        tts_pad=lm.talker.embed_text(tts_pad_id),
        keys=keys,
    )
    return _choose_first(lm, state, params)


def prompt_positions(pads: jax.Array, length: int, size: int):
    """(rotary positions [B, T], mask [B, T, S]) of left-padded prompts.

    Positions count from the first real token; what stands at padding is never read.
    """
    positions = jnp.maximum(jnp.arange(length)[None] - pads[:, None], 0)
    return positions, attention.cache_mask(jnp.int32(0), pads, length, size)


def make_frame(
    lm, state: GenerationState, params: sampling.Sampling
) -> GenerationState:
    """One 80 ms frame of every row; rows that are done keep what they have."""
    first = lm.talker.embed_codec(state.first)
    keys = _keys(state)

    def choose(scores, i):
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i + 1)
        return sampling.choose(scores, params.predictor, row_keys)

    rest = lm.predictor.generate(state.hidden, first, choose)
    frame = jnp.concatenate([state.first[:, None], rest], axis=1)  # [B, Q]
    codes = jax.lax.dynamic_update_slice(
        state.codes, frame[:, None], (0, state.step, 0)
    )
    x = first + lm.predictor.embed(rest) + _text_of_frame(state)
    slot = state.caches[0].index
    size = state.caches[0].keys.shape[1]
    mask = attention.cache_mask(slot, state.pads, 1, size)
    positions = (slot - state.pads)[:, None]
    hidden, caches = lm.talker(x[:, None], positions, mask, state.caches)
    frames = state.frames + ~state.done
    state = state.replace(
        step=state.step + 1,
        hidden=hidden[:, 0],
        codes=codes,
        frames=frames,
        done=state.done | (frames >= state.limit),
        caches=caches,
    )
    return _choose_first(lm, state, params)


def _text_of_frame(state: GenerationState) -> jax.Array:
    """Float [B, D]: the trailing text of this frame, or tts_pad after its end."""
    last = state.trailing.shape[1] - 1
    row = state.trailing[:, jnp.minimum(state.step, last)]
    return jnp.where(state.step <= last, row, state.tts_pad)


def _choose_first(lm, state: GenerationState, params) -> GenerationState:
    """Choose codebook 0 of the next frame, or find that a row has ended."""
    c = lm.talker.config
    scores = sampling.talker_scores(
        lm.talker.logits(state.hidden),
        seen=state.seen,
        step=state.step,
        sampling=params,
        eos=c.codec_eos_id,
    )
    keys = jax.vmap(jax.random.fold_in, (0, None))(_keys(state), 0)
    first = sampling.choose(scores, params.talker, keys)
    ended = state.ended | (~state.done & (first == c.codec_eos_id))
    done = state.done | ended
    first = jnp.where(done, c.codec_pad_id, first)
    rows = jnp.arange(len(first))
    return state.replace(
        first=first,
        seen=state.seen.at[rows, first].set(True),
        ended=ended,
        done=done,
    )


def _keys(state: GenerationState) -> jax.Array:
    """The keys of the frame at `step`, one per row."""
    return jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)


def advance(lm, state: GenerationState, params, until: jax.Array) -> GenerationState:
    """Make frames until `until` of them exist or every row is done."""
    return jax.lax.while_loop(
        lambda s: (s.step < until) & ~jnp.all(s.done),
        lambda s: make_frame(lm, s, params),
        state,
    )


def grow(state: GenerationState, *, size: int) -> GenerationState:
    """The same state with room for `size` cache slots."""
    codes = ((0, 0), (0, size - state.codes.shape[1]), (0, 0))
    return state.replace(
        codes=jnp.pad(state.codes, codes),
        caches=tuple(cache.grow(size) for cache in state.caches),
    )


_prefill = jax.jit(prefill, static_argnames="size")
_advance = jax.jit(advance, donate_argnames="state")
_grow = jax.jit(grow, static_argnames="size")


@dataclasses.dataclass(frozen=True)
class Generated:
    """One utterance.  codes: int32 [T, Q]; stop_reason: eos|max_frames|guard."""

    codes: np.ndarray
    stop_reason: str


def generate(
    lm: LanguageModel,
    config: configs.Qwen3TTSConfig,
    prompts: list[prompt.Prompt],
    options: sampling.Options,
    *,
    seed: int,
    guard: bool,
    report_every: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Codes for a batch of prompts.

    Args:
        options: max_new_tokens N allows N - 1 frames, as in the official package.
        seed: row b draws with fold_in(key(seed), b).
        guard: also stop a row after max(192, 12 frames per text token).
        report_every, on_progress: call back with the frames made, every so many.
    """
    rows = len(prompts)
    length = placement.bucket(max(len(p.text) for p in prompts), PROMPT_BUCKETS)
    room = config.talker.max_positions - length
    limit = _limits(prompts, options, guard, room)
    size = placement.bucket(length + min(limit.max(), GUARD_MIN_FRAMES), CACHE_BUCKETS)
    batch = prompt.collate(
        config,
        prompts,
        length=length,
        trailing=placement.bucket(
            max(len(p.trailing) for p in prompts), TRAILING_BUCKETS
        ),
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), jnp.arange(rows)
    )
    params = options.sampling()
    pad_id = jnp.asarray([config.tts_pad_id])
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    state = _prefill(lm, fields, limit, keys, params, pad_id, size=size)
    made = 0
    while not bool(jnp.all(state.done)):
        if length + made == size:
            size = placement.bucket(size + 1, CACHE_BUCKETS)
            state = _grow(state, size=size)
        until = min(size - length, made + report_every if report_every else size)
        state = _advance(lm, state, params, jnp.int32(until))
        made = int(state.step)
        if on_progress:
            on_progress(made)
    return _results(state, limit, options.max_new_tokens - 1)


def _limits(prompts, options, guard: bool, room: int) -> np.ndarray:
    """int32 [B]: how many frames each row may have."""
    most = options.max_new_tokens - 1
    if room < 1 or (most > room and not guard):
        raise ValueError(
            f"got a prompt and {most} frames that need more than the model's positions "
            f"({room} are left after the prompt); shorten the text or max_new_tokens"
        )
    if not guard:
        return np.full(len(prompts), most, np.int32)
    tokens = np.asarray([p.text_tokens for p in prompts])
    guards = np.maximum(GUARD_MIN_FRAMES, GUARD_FRAMES_PER_TOKEN * tokens)
    return np.minimum(guards, min(most, room)).astype(np.int32)


def _results(state, limit: np.ndarray, most: int) -> list[Generated]:
    frames, ended = np.asarray(state.frames), np.asarray(state.ended)
    codes = np.asarray(state.codes)  # cut here: on the device each length compiles
    reasons = [
        EOS if end else (MAX_FRAMES if at >= most else GUARD)
        for end, at in zip(ended, limit)
    ]
    return [Generated(c[:n], r) for c, n, r in zip(codes, frames, reasons)]
