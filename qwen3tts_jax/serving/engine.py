"""Engine: streams that share the slots of one device program.

A group is a few frames of every stream that is ready: talker, code predictor, sampling
and codec in one program whose state never leaves the device.  The next group is
dispatched before the samples of the last one are read.  Streams join and leave between
groups; a stream's row depends on no other row, so it makes what it would make alone.
"""

import collections
import threading

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3tts_jax import runtime
from qwen3tts_jax.generation import generate, prompt, sampling
from qwen3tts_jax.serving import stream as engine_stream

SCHEDULE = (1, 2, 4, 8)  # frames of a stream's first group, its second, ...; then 8
AHEAD = 2  # groups on the device: one that runs and one that waits for it
ABANDONED = "abandoned"
NO_TEXT = prompt.NONE
POSITIONS = 1024  # that `warmup` prepares for: a minute of speech


@struct.dataclass
class Group:
    """What a group has made.

    Attributes:
        frames: generate.Frames of all slots.
        wave: float32 [B, W], 24 kHz.
        samples: int32 [B], how many of a row's are sound, the first ones: those of its
            frames; or, where the codec waits for frames to come, of earlier ones.
    """

    frames: generate.Frames
    wave: jax.Array
    samples: jax.Array


def run_group(lm, decoder, state, codec, text, active, limit):
    """Up to N frames of the active rows, to the wave.

    Args:
        decoder: the codec's, see `Qwen3TTSTokenizer.decoder`.
        state: generate.GenerationState; codec: the decoder's state, of as many rows.
        text: int32 [B, N], text ids of the frames to make; where all rows have NO_TEXT
            there is none to make.
        active: bool [B], rows that make all (or end); the others stay as they are.
        limit: int32 [B], frames each row may have.
    Returns:
        (state, codec, Group).
    """
    count = jnp.sum(jnp.any(text != NO_TEXT, axis=0))
    state, frames = generate.advance(
        lm, state, jnp.maximum(text, 0), count, active, limit
    )

    def decode(codec):
        return decoder.stream(frames.codes, frames.count, codec)

    def rest(codec):
        wave, samples, _ = jax.eval_shape(decode, codec)
        silence = (jnp.zeros(x.shape, x.dtype) for x in (wave, samples))
        return *silence, codec

    made = jnp.any(frames.count > 0)
    wave, samples, codec = jax.lax.cond(made, decode, rest, codec)
    return state, codec, Group(frames, wave, samples)


_run_group = jax.jit(run_group, donate_argnames=("state", "codec"))
_row_of = jax.jit(
    lambda codec, slot: jax.tree.map(
        lambda rows: jax.lax.dynamic_slice_in_dim(rows, slot, 1), codec
    )
)


class Engine:
    """Slots on one device, and the streams in them; safe to use from many threads."""

    def __init__(
        self, model, *, slots: int = 1, schedule: tuple[int, ...] | None = None
    ):
        """
        Args:
            model: Qwen3TTSModel.
            slots: streams that advance together; more wait for their turn.
            schedule: frames of a stream's groups, the last number for all that follow;
                None: SCHEDULE, or always the chunk of a codec that makes sound of so
                many codes at a time (it takes no other).
        """
        chunk = model.speech_tokenizer.chunk
        usual = SCHEDULE if chunk is None else (chunk,)
        schedule = usual if schedule is None else tuple(schedule)
        if not schedule or not all(isinstance(n, int) and n > 0 for n in schedule):
            raise ValueError(
                f"got schedule {schedule!r}, expected numbers of frames such as {usual}"
            )
        if chunk is not None and schedule != usual:
            raise ValueError(
                f"got schedule {schedule!r}, expected {usual}: this codec makes sound "
                f"of {chunk} codes at a time"
            )
        if not isinstance(slots, int) or slots < 1:
            raise ValueError(f"got slots={slots!r}, expected 1 or more")
        self.model, self.schedule = model, schedule
        self._chunk, self.sizes = chunk, sorted({1, *schedule}, reverse=True)
        if chunk is not None:  # one program makes any number of frames up to that
            self.sizes = list(range(chunk, 0, -1))
        self._lock = threading.RLock()
        self._slots: list[engine_stream.Stream | None] = [None] * slots
        self._waiting: collections.deque[engine_stream.Stream] = collections.deque()
        self._flying: collections.deque = collections.deque()
        self._state = self._codec = None

    # ------------------------------------------------------------ streams come and go

    def add(self, stream: engine_stream.Stream) -> None:
        """Let a stream wait for a slot; it takes part from the next group on."""
        with self._lock:
            self._waiting.append(stream)

    def remove(self, stream: engine_stream.Stream, reason: str) -> None:
        """Forget a stream, wherever it stands; nothing else is disturbed."""
        with self._lock:
            if not stream.over:
                stream.stop_reason = reason
            if stream in self._waiting:
                self._waiting.remove(stream)
            stream.chunks.clear()
            self._leave(stream)

    def _leave(self, stream: engine_stream.Stream) -> None:
        self._slots = [None if s is stream else s for s in self._slots]
        if not any(self._slots) and not self._waiting:
            self._state = self._codec = None  # an idle engine holds no memory
            self._flying.clear()

    # ---------------------------------------------------------------------- one group

    def step(self) -> bool:
        """Dispatch a group, deliver the oldest one; False if there was neither."""
        with self._lock:
            self._reap()
            joined = self._join()
            dispatched = self._dispatch()
            if self._flying and (not dispatched or len(self._flying) == AHEAD):
                self._deliver()
            elif not (joined or dispatched):
                return False
            return True

    def _reap(self) -> None:
        for stream in [*self._waiting, *self._slots]:
            if stream is not None and stream.abandoned:
                self.remove(stream, ABANDONED)

    def _join(self) -> bool:
        """Waiting streams take free slots; whether any did, or failed to."""
        joined = False
        while self._waiting and None in self._slots:
            stream, slot = self._waiting.popleft(), self._slots.index(None)
            joined, stream.waiting = True, False
            try:
                row, codec = self._row(stream)
            except Exception as error:  # its own: the state of the others is untouched
                stream.error = error
                continue
            self._slots[slot] = stream
            try:
                self._put(slot, row, codec)
            except jax.errors.JaxRuntimeError as error:
                self._recover({slot: stream}, error)
        return joined

    def _row(self, stream: engine_stream.Stream):
        """(GenerationState, the codec's) of one row: the stream where it has come to.

        A stream whose frames are there already has lost its state to a device error.
        """
        model, item, codec = self.model, stream.prompt, stream.codec
        stream.planned, made = 0, np.stack(stream.codes) if stream.codes else None
        if made is not None:
            text = stream.take_text(len(made), model.config.tts_pad_id)
            item = prompt.resume(item, text, made)
            codec = model.speech_tokenizer.state_after(made, codec)
            stream.planned = len(made)
        frames = min(stream.limit - stream.planned, generate.GUARD_MIN_FRAMES)
        size = generate.slots(len(item.text), max(frames, self.sizes[0]))
        if self._state is not None and len(self._slots) > 1:
            size = max(size, self._state.size)
        row = self._read(item, stream.choices, stream.seed, size=size, made=made)
        return row, model.speech_tokenizer.own_state(codec)

    def _read(self, item, choices, seed, **options) -> generate.GenerationState:
        lm, config = self.model.language_model, self.model.config
        key = generate.row_key(seed)
        with runtime.exact():
            return generate.read_prompt(lm, config, item, choices, key, **options)

    def _put(self, slot: int, row, codec) -> None:
        """Write one row into the state of all."""
        rows = len(self._slots)
        if rows == 1:
            self._state, self._codec = row, codec
            return
        if self._state is None:
            lm = self.model.language_model
            self._state = generate.jit_init(lm, rows=rows, size=row.size)
            self._codec = self.model.speech_tokenizer.empty_state(rows)
        elif row.size > self._state.size:
            self._state = generate.jit_grow(self._state, size=row.size)
        self._state = generate.jit_insert(self._state, row, np.int32(slot))
        self._codec = generate.jit_insert(self._codec, codec, np.int32(slot))

    def _dispatch(self) -> bool:
        """Send the next group of the streams that are ready; False if none is."""
        ready = {i: s for i, s in enumerate(self._slots) if s and s.ready() > 0}
        suspects = [i for i, s in ready.items() if s.suspect]
        if suspects:  # one of them has failed a group: each alone shows which
            ready = {suspects[0]: ready[suspects[0]]}
        if not ready:
            return False
        try:
            self._flying.append((ready, self._send(ready)))
        except jax.errors.JaxRuntimeError as error:
            self._recover(ready, error)
        return True

    def _send(self, streams: dict[int, engine_stream.Stream]) -> Group:
        rows, size = len(self._slots), self._group_size(streams.values())
        text = np.full((rows, self._chunk or size), NO_TEXT, np.int32)
        text[:, :size] = self.model.config.tts_pad_id
        active, limit = np.zeros(rows, bool), np.zeros(rows, np.int32)
        for slot, stream in streams.items():
            text[slot, :size] = stream.take_text(size, self.model.config.tts_pad_id)
            active[slot], limit[slot] = True, stream.limit
            stream.planned = min(stream.planned + size, stream.limit)
            stream.groups += 1
        filled = max(len(s.prompt.text) + s.planned for s in self._slots if s)
        if filled >= self._state.size:
            size = generate.slots(1, filled)
            self._state = generate.jit_grow(self._state, size=size)
        return self._run(text, active, limit)

    def _group_size(self, streams) -> int:
        """Frames that every one of the streams wants and has the text for."""
        most = min(map(self.wanted, streams))
        text = [s.ready() for s in streams if not s.complete]
        return next(n for n in self.sizes if n <= min([most, *text]))

    def wanted(self, stream: engine_stream.Stream) -> int:
        """Frames of a stream's next group, by the schedule."""
        return self.schedule[min(stream.groups, len(self.schedule) - 1)]

    def _run(self, text, active, limit) -> Group:
        with runtime.exact():
            self._state, self._codec, group = _run_group(
                self.model.language_model,
                self.model.speech_tokenizer.decoder,
                self._state,
                self._codec,
                text,
                active,
                limit,
            )
        return group

    def _deliver(self) -> None:
        """Wait for the oldest group and hand its chunks to the streams."""
        streams, group = self._flying[0]
        try:
            group = jax.device_get(group)
            tails = self._tails(streams, group.frames)
        except jax.errors.JaxRuntimeError as error:
            self._recover(streams, error)
            return
        self._flying.popleft()
        for slot, stream in streams.items():
            if not stream.over:
                self._hand_over(stream, slot, group, tails.get(slot))

    def _tails(
        self, streams: dict[int, engine_stream.Stream], frames
    ) -> dict[int, np.ndarray]:
        """Slot -> the sound that the codec still owes a stream which now ends."""
        ending = [
            slot
            for slot, stream in streams.items()
            if not stream.over and stream.ends(frames.count[slot], frames.ended[slot])
        ]
        tokenizer = self.model.speech_tokenizer
        if tokenizer.chunk is None:
            return dict.fromkeys(ending, np.zeros(0, np.float32))
        # a row that has ended rests in the groups that were dispatched since
        rows = {slot: _row_of(self._codec, np.int32(slot)) for slot in ending}
        return {slot: tokenizer.finish(row) for slot, row in rows.items()}

    def _hand_over(
        self, stream: engine_stream.Stream, slot: int, group: Group, tail
    ) -> None:
        """One stream's part of a group; tail: None where it goes on."""
        frames = group.frames
        hop = self.model.speech_tokenizer.get_decode_upsample_rate()
        count, ended = int(frames.count[slot]), bool(frames.ended[slot])
        stream.suspect = False
        stream.codes.extend(frames.codes[slot, :count].copy())
        stream.hand_over(group.wave[slot, : int(group.samples[slot])].copy())
        if tail is not None:
            stream.hand_over(tail[: len(stream.codes) * hop - stream.samples])
            stream.stop_reason = generate.stop_reason(ended, stream.limit, stream.asked)
            self._leave(stream)

    def _recover(
        self, streams: dict[int, engine_stream.Stream], error: Exception
    ) -> None:
        """A group has failed, and the state of all streams with it.

        They start again from the frames they have, in groups of their own until one
        has worked; a stream that fails alone gets the error.
        """
        alone, live = len(streams) == 1, [s for s in self._slots if s]
        for stream in streams.values():
            stream.suspect = True
            if alone and not stream.over:
                stream.error = error
        self._slots = [None] * len(self._slots)
        self._flying.clear()
        self._state = self._codec = None
        for stream in reversed(live):
            if not stream.over:
                stream.waiting = True
                self._waiting.appendleft(stream)

    # ------------------------------------------------------------------------ warm-up

    def warmup(self, *, positions: int = POSITIONS) -> None:
        """Compile all that streams of up to `positions` (prompt and frames) need."""
        with self._lock:
            if any(self._slots):
                raise ValueError(
                    "got an engine with open streams; warm it up before the first"
                )
            largest = runtime.bucket(positions, generate.CACHE_BUCKETS)
            for size in generate.CACHE_BUCKETS:
                if size <= largest:
                    self._warm(size)
            self._state = self._codec = None
            self.model.speech_tokenizer.warmup()

    def _warm(self, size: int) -> None:
        """The programs of one cache size; no frame is made in them."""
        rows, tokenizer = len(self._slots), self.model.speech_tokenizer
        lm = self.model.language_model
        choices = sampling.Options().sampling()
        for length in generate.PROMPT_CHUNKS:
            item = prompt.blank(self.model.config, length)
            row = self._read(item, choices, 0, size=size)
            self._state = None
            self._put(0, row, tokenizer.own_state(None))
        for smaller in generate.CACHE_BUCKETS:
            if smaller < size:
                small = generate.jit_init(lm, rows=rows, size=smaller)
                generate.jit_grow(small, size=size)
        for count in [self._chunk] if self._chunk else self.sizes:
            text = np.zeros((rows, count), np.int32)
            self._run(text, np.zeros(rows, bool), np.zeros(rows, np.int32))
