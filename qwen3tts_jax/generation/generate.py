"""Generation: a prompt is read in chunks, then one device program makes many frames.

One frame = 15 code-predictor steps (none at 25 Hz, where a frame is codebook 0 alone),
one talker step, and the choice of the next frame's codebook 0.  Every row of a state
stands at its own step, so that streams can join and leave (serving/engine.py); a whole
utterance is the same with all text known.
Source: Qwen3TTSForConditionalGeneration.generate and Talker.forward.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3tts_jax import runtime
from qwen3tts_jax.config import tts
from qwen3tts_jax.generation import prompt, sampling
from qwen3tts_jax.models import language_model
from qwen3tts_jax.nn import attention

# Shapes are padded to these, so that requests of other lengths compile nothing new.
PROMPT_CHUNKS = (32, 128)
CACHE_BUCKETS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
GROUP = 32  # frames of a whole utterance between two looks at whether it has ended

GUARD_MIN_FRAMES, GUARD_RATE = 192, 12.5  # Hz; at another rate as many seconds
GUARD_FRAMES_PER_TOKEN = 12  # a text token is rarely spoken for more than 3 frames

EOS, MAX_FRAMES, GUARD = "eos", "max_frames", "guard"

LanguageModel = language_model.LanguageModel


@struct.dataclass
class GenerationState:
    """Everything that changes while frames are made; a row for each utterance.

    Attributes:
        step: int32 [B], frames made; position: int32 [B], filled slots of the caches.
        first: int32 [B], codebook 0 of the frame to make next.
        hidden: float [B, D], the talker's hidden state before that frame.
        seen: bool [B, V], codebook-0 ids chosen so far.
        ended: bool [B], the row chose its end token.
        caches: the talker's KVCaches.
        keys: PRNG keys [B]; sampling: how each row chooses.
    """

    step: jax.Array
    position: jax.Array
    first: jax.Array
    hidden: jax.Array
    seen: jax.Array
    ended: jax.Array
    caches: tuple
    keys: jax.Array
    sampling: sampling.Sampling

    @property
    def size(self) -> int:
        """Slots of the caches."""
        return self.caches[0].values.shape[2]

    def running(self, limit: jax.Array) -> jax.Array:
        """Bool [B]: which rows have frames to make; limit: int32 [B]."""
        return ~self.ended & (self.step < limit)


@struct.dataclass
class Frames:
    """What `advance` has made.

    Attributes:
        codes: int32 [B, N, Q], of which the first `count` of each row are frames.
        count: int32 [B]; ended: bool [B], the row's end token came after them.
    """

    codes: jax.Array
    count: jax.Array
    ended: jax.Array


def init_state(lm: LanguageModel, *, rows: int, size: int) -> GenerationState:
    """Rows that have read nothing yet, with caches of `size` slots.

    Their keys and choices are placeholders of the right shape.
    """
    c = lm.talker.config
    caches = lm.talker.transformer.init_cache(rows, size, lm.dtype)
    choices = sampling.Options().sampling()
    position = jnp.zeros(rows, jnp.int32)
    return GenerationState(
        step=jnp.zeros(rows, jnp.int32),
        position=position,
        first=jnp.zeros(rows, jnp.int32),
        hidden=jnp.zeros((rows, c.transformer.dim), lm.dtype),
        seen=jnp.zeros((rows, c.vocab_size), bool),
        ended=jnp.zeros(rows, bool),
        caches=_at(caches, position),
        keys=jax.random.split(jax.random.key(0), rows),
        sampling=jax.tree.map(lambda x: jnp.broadcast_to(x, rows), choices),
    )


def read_chunk(lm: LanguageModel, state: GenerationState, chunk: dict):
    """One row's prompt read on; the state is as after its last position.

    chunk: see `prompt.chunk`.  Its padding lands in slots that are not seen before the
    next positions have overwritten them.
    """
    x = lm.embed_prompt(chunk)
    positions = state.position[:, None] + jnp.arange(x.shape[1])[None]
    mask = attention.cache_mask(positions, state.size)
    hidden, caches = lm.talker(x, positions, mask, state.caches)
    last = chunk["length"][:, None, None] - 1
    position = state.position + chunk["length"]
    return state.replace(
        position=position,
        hidden=jnp.take_along_axis(hidden, last, axis=1)[:, 0],
        caches=_at(caches, position),
    )


def _at(caches: tuple, position: jax.Array) -> tuple:
    return tuple(cache.replace(index=position) for cache in caches)


def insert(state: GenerationState, row: GenerationState, slot: jax.Array):
    """The state with another state's only row in place of row `slot`: int32 []."""
    return jax.tree.map(
        lambda rows, one: jax.lax.dynamic_update_slice_in_dim(rows, one, slot, 0),
        state,
        row,
    )


def make_frame(lm, state: GenerationState, text, active, limit):
    """One frame: 80 ms, or 40 ms at 25 Hz.

    Args:
        text: float [B, D], what the text track adds to this frame.
        active: bool [B]; the other rows stay as they are.
        limit: int32 [B], frames each row may have.
    Returns:
        (state, int32 [B, Q]).
    """
    frame = _complete(lm, state)
    x = lm.embed_frame(frame) + text
    positions = state.position[:, None]
    mask = attention.cache_mask(positions, state.size)
    hidden, caches = lm.talker(x[:, None], positions, mask, state.caches)
    position = state.position + active
    state = state.replace(
        step=state.step + active,
        position=position,
        hidden=jnp.where(active[:, None], hidden[:, 0], state.hidden),
        caches=_at(caches, position),
    )
    return choose_first(lm, state, active & (state.step < limit)), frame


def _complete(lm, state: GenerationState) -> jax.Array:
    """The frame that begins with `first`: int32 [B, Q]."""
    if lm.predictor is None:
        return state.first[:, None]
    first, keys = lm.talker.embed_codec(state.first), _keys(state)

    def choose(scores, i):
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i + 1)
        return sampling.choose(scores, state.sampling.predictor, row_keys)

    rest = lm.predictor.generate(state.hidden, first, choose)
    return jnp.concatenate([state.first[:, None], rest], axis=1)


def choose_first(lm, state: GenerationState, active: jax.Array) -> GenerationState:
    """Choose codebook 0 of the active rows' next frames, or find that they end."""
    c = lm.talker.config
    scores = sampling.talker_scores(
        lm.talker.logits(state.hidden),
        seen=state.seen,
        step=state.step,
        sampling=state.sampling,
        eos=c.codec_eos_id,
    )
    keys = jax.vmap(jax.random.fold_in, (0, None))(_keys(state), 0)
    first = sampling.choose(scores, state.sampling.talker, keys)
    return state.replace(
        first=jnp.where(active, first, state.first),
        seen=state.seen.at[jnp.arange(len(first)), first].max(active),
        ended=state.ended | (active & (first == c.codec_eos_id)),
    )


def _keys(state: GenerationState) -> jax.Array:
    """The keys of the frame at `step`, one per row."""
    return jax.vmap(jax.random.fold_in)(state.keys, state.step)


def advance(lm, state: GenerationState, text, count, active, limit):
    """Make frames until `count` of them exist or no active row goes on.

    Args:
        text: int32 [B, N], ids of the text track, one for each frame to make.
        count: int32 [], at most N.
        active: bool [B]; limit: int32 [B]: see `make_frame`.
    Returns:
        (state, Frames).
    """
    rows, most = text.shape
    embedded = lm.talker.embed_text(text)  # [B, N, D]
    codes = jnp.zeros((rows, most, lm.talker.config.code_groups), jnp.int32)

    def goes_on(carry):
        i, state, _ = carry
        return (i < count) & jnp.any(active & state.running(limit))

    def go_on(carry):
        i, now, codes = carry
        x = jax.lax.dynamic_index_in_dim(embedded, i, 1, keepdims=False)
        now, frame = make_frame(lm, now, x, active & now.running(limit), limit)
        codes = jax.lax.dynamic_update_index_in_dim(codes, frame, i, 1)
        return i + 1, now, codes

    carry = (jnp.int32(0), state, codes)
    _, after, codes = jax.lax.while_loop(goes_on, go_on, carry)
    return after, Frames(codes, after.step - state.step, after.ended)


def grow(state: GenerationState, *, size: int) -> GenerationState:
    """The same state with room for `size` cache slots."""
    return state.replace(caches=tuple(c.grow(size) for c in state.caches))


# The same as programs; those that take a state use it up.
jit_init = jax.jit(init_state, static_argnames=("rows", "size"))
jit_read = jax.jit(read_chunk, donate_argnames="state")
jit_choose_first = jax.jit(choose_first, donate_argnames="state")
jit_insert = jax.jit(insert, donate_argnames="state")
jit_advance = jax.jit(advance, donate_argnames="state")
jit_grow = jax.jit(grow, static_argnames="size")


# --------------------------------------------------------------- a prompt, an utterance


def spans(length: int) -> Iterator[tuple[int, int]]:
    """(start, size) of the chunks in which a prompt of `length` positions is read."""
    small, large = PROMPT_CHUNKS
    start = 0
    while start < length:
        size = large if length - start > 2 * small else small
        yield start, size
        start += size


def slots(length: int, frames: int) -> int:
    """Cache slots, a bucket, for a prompt and so many frames.

    One more than they fill: a row that rests writes to the slot of its next frame.
    """
    padded = sum(list(spans(length))[-1])
    return runtime.bucket(max(padded, length + frames + 1), CACHE_BUCKETS)


def row_key(seed: int, row: int = 0) -> jax.Array:
    """PRNG keys [1]: those of row `row` of a batch that is made with `seed`."""
    return jax.random.fold_in(jax.random.key(seed), np.uint32(row))[None]


def read_prompt(
    lm: LanguageModel,
    config: tts.Qwen3TTSConfig,
    item: prompt.Prompt,
    choices: sampling.Sampling,
    key: jax.Array,
    *,
    size: int,
    made: np.ndarray | None = None,
) -> GenerationState:
    """The state of one row that has read its prompt and chosen its next codebook 0.

    Args:
        choices: of one row; key: see `row_key`; size: see `slots`.
        made: int32 [T, Q], the frames that the prompt ends with where it is the
            beginning of an utterance that was interrupted (see `prompt.resume`).
    """
    state = jit_init(lm, rows=1, size=size).replace(keys=key, sampling=choices)
    if made is not None:
        seen = np.zeros(state.seen.shape, bool)
        seen[0, made[:, 0]] = True
        state = state.replace(step=np.int32([len(made)]), seen=seen)
    for start, width in spans(len(item.text)):
        chunk = prompt.chunk(config, item, start=start, size=width)
        state = jit_read(lm, state, chunk)
    return jit_choose_first(lm, state, np.ones(1, bool))


@dataclasses.dataclass(frozen=True)
class Generated:
    """One utterance.  codes: int32 [T, Q]; stop_reason: eos|max_frames|guard."""

    codes: np.ndarray
    stop_reason: str


def generate(
    lm: LanguageModel,
    config: tts.Qwen3TTSConfig,
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
        guard: also stop a row after max(15.4 s, 0.96 s per text token).
        report_every, on_progress: call back with the frames made, every so many, at
            most GROUP.
    """
    longest = max(len(p.text) for p in prompts)
    most = most_frames(config, longest, options, guard)
    rate = config.frame_rate
    guards = [guard_frames(p.text_tokens, rate) if guard else most for p in prompts]
    limit = np.minimum(guards, most).astype(np.int32)
    state = _read_all(lm, config, prompts, options.sampling(), seed, limit)
    active, made, parts = np.ones(len(prompts), bool), 0, []
    count, text = report_every or GROUP, np.empty((len(prompts), GROUP), np.int32)
    while (running := active & (limit > made)).any():
        if longest + made + count >= state.size:
            state = jit_grow(state, size=slots(longest, made + count))
        for row, item in zip(text, prompts):
            row[:] = config.tts_pad_id
            rest = item.trailing[made : made + GROUP]
            row[: len(rest)] = rest
        state, frames = jit_advance(lm, state, text, np.int32(count), running, limit)
        frames = jax.device_get(frames)
        parts.append(frames)
        active = running & ~frames.ended
        made += int(frames.count.max())
        if on_progress:
            on_progress(made)
    return _results(parts, limit, options.max_new_tokens - 1)


def _read_all(lm, config, prompts, choices, seed, limit) -> GenerationState:
    """The state of all rows before their first frame."""
    size = slots(max(len(p.text) for p in prompts), min(limit.max(), GUARD_MIN_FRAMES))
    rows = (
        read_prompt(lm, config, item, choices, row_key(seed, row), size=size)
        for row, item in enumerate(prompts)
    )
    if len(prompts) == 1:
        return next(rows)
    state = jit_init(lm, rows=len(prompts), size=size)
    for slot, row in enumerate(rows):
        state = jit_insert(state, row, np.int32(slot))
    return state


def most_frames(
    config: tts.Qwen3TTSConfig, length: int, options: sampling.Options, guard: bool
) -> int:
    """Frames that may follow a prompt of `length`: as many as are asked for.

    With a guard the model's positions may allow fewer.  Raises: ValueError if they
    allow none, or, without a guard, fewer.
    """
    most = options.max_new_tokens - 1
    # a slot more than the frames fill, see `slots`
    room = config.talker.max_positions - length - 1
    if room < 1 or (most > room and not guard):
        raise ValueError(
            f"got a prompt and {most} frames that need more than the model's positions "
            f"({room} are left after the prompt); shorten the text or max_new_tokens"
        )
    return min(most, room)


def guard_frames(tokens: int, frame_rate: float = GUARD_RATE) -> int:
    """Frames after which a text of so many tokens is taken for a runaway."""
    frames = max(GUARD_MIN_FRAMES, GUARD_FRAMES_PER_TOKEN * tokens)
    return round(frames * frame_rate / GUARD_RATE)


def stop_reason(ended: bool, limit: int, most: int) -> str:
    """Why a row stopped: its end token, or its limit, which `most` is without guard."""
    return EOS if ended else (MAX_FRAMES if limit >= most else GUARD)


def _results(parts: list[Frames], limit: np.ndarray, most: int) -> list[Generated]:
    def codes(row: int) -> np.ndarray:
        return np.concatenate([p.codes[row, : p.count[row]] for p in parts])

    ended = np.any([p.ended for p in parts], axis=0)
    return [
        Generated(codes(row), stop_reason(ended[row], limit[row], most))
        for row in range(len(limit))
    ]
