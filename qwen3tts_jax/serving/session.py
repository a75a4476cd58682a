"""StreamingSession: push text, pull sound.

    voice = model.voice(speaker="Ryan", language="English", non_streaming_mode=False)
    with StreamingSession(model, voice, seed=1) as session:
        session.push_text("Good mor")
        session.push_text("ning.")
        session.end_text()
        for chunk in session:
            play(chunk)  # float32 [n], 24 kHz

With the streaming text layout sound begins with the first word, and a frame that needs
text waits for it; with the non-streaming one (the default of CustomVoice and
VoiceDesign, as officially) it begins after `end_text`.  Codes and waves are those of
the `generate_*` methods with the same text, voice, options and seed, however the text
was cut and whatever the schedule.
"""

import secrets
import threading
import time
import weakref
from collections.abc import Iterable, Iterator

import numpy as np

from qwen3tts_jax.generation import generate, prompt, sampling
from qwen3tts_jax.serving import engine as engines
from qwen3tts_jax.serving import stream as engine_stream
from qwen3tts_jax.text import incremental

TEXT_TIMEOUT = 10.0  # seconds without text that is needed, until the text is ended
SLOT_TIMEOUT = 60.0  # seconds without a free slot, until a session gives up
SLOT_POLL = 0.01  # seconds between two looks
TEXT, SLOT = "text", "slot"  # what a session can wait for
TEXT_TIMED_OUT, CLOSED = "text_timeout", "closed"


class StreamingSession:
    """One utterance whose text arrives and whose sound leaves piece by piece.

    An iterator over chunks of float32 at 24 kHz.  Text may be pushed from another
    thread than the one that reads.

    Attributes:
        seed: of the draws.
        stop_reason: None while it speaks, then "eos", "max_frames", "guard",
            "text_timeout" (no text came in time: what had come was spoken) or "closed".
    """

    def __init__(
        self,
        model,
        voice,
        *,
        seed: int | None = None,
        schedule: tuple[int, ...] | None = None,
        text_timeout: float = TEXT_TIMEOUT,
        slot_timeout: float = SLOT_TIMEOUT,
        engine: engines.Engine | None = None,
        **options,
    ):
        """
        Args:
            model: Qwen3TTSModel; voice: see `Qwen3TTSModel.voice`.
            seed: None draws one.
            schedule: frames of its groups; None: 1, 2, 4, then always 8; at 25 Hz
                always the chunk of the codec, 8.
            text_timeout: seconds that a frame waits for its text before the text is
                taken to have ended.
            slot_timeout: seconds to wait for a slot of a busy engine.
            engine: shared with other sessions; None: one of its own.
            options: see `sampling.Options`.
        """
        if engine is not None and schedule is not None:
            raise ValueError("got engine and schedule; a shared engine has its own")
        if text_timeout <= 0 or slot_timeout <= 0:
            raise ValueError(
                f"got text_timeout={text_timeout}, slot_timeout={slot_timeout}; "
                "expected seconds, more than 0"
            )
        self.engine = engine or engines.Engine(model, schedule=schedule)
        self.seed = secrets.randbits(31) if seed is None else seed
        self._model, self._voice = model, voice
        model.speech_tokenizer.prepare(voice.codec)
        self._options = sampling.Options.merge(options, model.generate_defaults)
        self._guarded = options.get("max_new_tokens") is None
        self._timeouts = {TEXT: text_timeout, SLOT: slot_timeout}
        self._arrived = threading.Condition()  # of text
        self._tokens = incremental.TextStream(model.tokenizer)
        self._ids: list[int] = []  # before the prompt is laid out
        self._spoken = self._ended = self._timed_out = False
        self._closed = False
        self._progress = time.monotonic()  # when it last could go on
        self._stream: engine_stream.Stream | None = None
        self._owned: list[engine_stream.Stream] = []
        weakref.finalize(self, _abandon, self._owned)

    # ----------------------------------------------------------------------- text in

    def push_text(self, text: str) -> None:
        """Add text; a word may be cut anywhere.

        Text that comes when the speech is over (`stop_reason` says why) is ignored.
        Raises: ValueError if the text has been ended or the session closed.
        """
        with self._arrived:
            self._check_open("push_text")
            if not self._over:
                self._tokens.push(text)
                self._spoken = self._spoken or bool(text.strip())
                self._feed()

    def end_text(self) -> None:
        """No more text will come.

        Raises: ValueError if there was none, or it has been ended before.
        """
        with self._arrived:
            self._check_open("end_text")
            if self._over:
                self._ended = True
            else:
                self._end()

    def _check_open(self, method: str) -> None:
        if self._ended or self._closed:
            why = "its text is ended" if self._ended else "it is closed"
            why += ": no text came in time" if self._timed_out else ""
            raise ValueError(
                f"got {method} of a session after {why}; open a new one for more"
            )

    @property
    def _over(self) -> bool:
        return self._stream is not None and self._stream.over

    def _end(self) -> None:
        if not self._spoken:
            raise ValueError("got no text but blanks; push at least one word to say")
        self._tokens.end()
        self._ended = True
        self._feed()

    def _feed(self) -> None:
        """Hand on what is certain: first to the prompt, then to the frames."""
        ids, stream = self._tokens.take(), self._stream
        if stream is None:
            self._ids += ids
            if self._startable():
                self._start()
        else:
            stream.text += ids
            stream.text_tokens += len(ids)
            if self._ended:
                stream.text.append(self._model.config.tts_eos_id)
                stream.complete = True  # last: the engine may be reading
        self._check_length()
        self._progress = time.monotonic()
        self._arrived.notify_all()

    def _startable(self) -> bool:
        if self._ended:
            return True
        layout = self._voice.layout
        needed = prompt.text_needed(
            layout.get("reference"), non_streaming=layout["non_streaming"]
        )
        return needed is not None and 0 < needed <= len(self._ids)

    def _start(self) -> None:
        """Lay the prompt out and let the stream wait for a slot."""
        try:
            self._stream = self._new_stream()
        except ValueError:
            self.close()  # nobody is to wait for it
            raise
        self._owned.append(self._stream)
        self.engine.add(self._stream)

    def _new_stream(self) -> engine_stream.Stream:
        config, options = self._model.config, self._options
        item = prompt.build(
            config,
            role=self._tokens.role,
            text=self._ids,
            more=not self._ended,
            **self._voice.layout,
        )
        return engine_stream.Stream(
            prompt=item,
            choices=options.sampling(),
            seed=self.seed,
            codec=self._voice.codec,
            most=generate.most_frames(config, len(item.text), options, self._guarded),
            asked=options.max_new_tokens - 1,
            guarded=self._guarded,
            text=item.trailing.tolist(),
            complete=self._ended,
            text_tokens=item.text_tokens,
            frame_rate=config.frame_rate,
        )

    def _check_length(self) -> None:
        most = self._model.config.talker.max_positions
        tokens = len(self._ids) if self._stream is None else len(self._stream.text)
        if max(tokens, self._tokens.held) > most:
            self.close()
            raise ValueError(
                f"got text of more than {most} tokens, which is more than one session "
                "can speak; begin a new session at a sentence"
            )

    # ---------------------------------------------------------------------- sound out

    def read(self) -> np.ndarray | None:
        """The next chunk, float32 [n] at 24 kHz; None when it has all been said.

        At 12.5 Hz it holds whole frames of 1920 samples, those that were made last.

        Raises: TimeoutError if no slot of a shared engine became free; what the device
        raised, if it failed in this stream.
        """
        return self._read(patient=True)

    def _read(self, *, patient: bool) -> np.ndarray | None:
        """`read`; without patience also None where it would wait for text."""
        while True:
            stream = self._stream
            # first: the last chunk is there before its stream is over
            over = self._closed or self._over
            if stream is not None and stream.chunks:
                self._progress = time.monotonic()
                return stream.chunks.popleft()
            if over:
                if stream is not None and stream.error is not None:
                    raise stream.error
                return None
            if not patient and self._awaited() == TEXT:
                return None
            progressed, awaited = self.engine.step(), self._awaited()
            if awaited is None:
                self._progress = time.monotonic()
                continue
            patience = self._progress + self._timeouts[awaited] - time.monotonic()
            if patience < 0:
                self._give_up(awaited)
            elif not progressed:
                self._wait(awaited, patience)

    def _awaited(self) -> str | None:
        """What this session cannot go on without, if there is such a thing."""
        stream = self._stream
        if stream is not None and stream.waiting:
            return SLOT
        if not self._ended and (stream is None or stream.starved):
            return TEXT
        return None

    def _wait(self, awaited: str, patience: float) -> None:
        """Sleep until there may be something to do."""
        if awaited == TEXT:
            with self._arrived:
                self._arrived.wait_for(lambda: self._awaited() != TEXT, patience)
        else:  # a slot becomes free when a reader of another session goes on
            time.sleep(min(SLOT_POLL, patience))

    def _give_up(self, awaited: str) -> None:
        seconds = self._timeouts[awaited]
        if awaited == SLOT:
            self.close()
            raise TimeoutError(
                f"got no free slot within {seconds} s; give the engine more slots, or "
                "read and close the other sessions"
            )
        with self._arrived:
            if self._awaited() != TEXT:
                return  # another thread has just pushed some, or ended it
            self._timed_out = True
            if self._spoken:
                self._end()
            else:
                self.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        chunk = self.read()
        if chunk is None:
            raise StopIteration
        return chunk

    def speak(self, text: str | Iterable[str]) -> Iterator[np.ndarray]:
        """Push all of a text, or of its pieces as they come, and yield the chunks.

        Pieces are taken when frames need them, so that sound and text flow together.
        The session is closed at the end, also when the reader stops early.
        """
        try:
            for piece in [text] if isinstance(text, str) else text:
                if self._over:
                    break  # it has said all it wants to, or all it may
                self.push_text(piece)
                while self._goes_on():
                    # a codec that waits for frames to come may make no sound of these
                    if (chunk := self._read(patient=False)) is None:
                        break
                    yield chunk
            else:
                self.end_text()
            yield from self
        finally:
            self.close()

    def _goes_on(self) -> bool:
        """Whether its next group of frames, or its last one, has all its text."""
        stream = self._stream
        if stream is None or self._over:
            return False
        rest = stream.limit - stream.planned
        return stream.ready() >= min(self.engine.wanted(stream), rest)

    # --------------------------------------------------------------------------- state

    @property
    def codes(self) -> np.ndarray:
        """The frames so far, int32 [T, Q]."""
        groups = self._model.config.talker.code_groups
        made = self._stream.codes if self._stream is not None else []
        return np.stack(made) if made else np.zeros((0, groups), np.int32)

    @property
    def stop_reason(self) -> str | None:
        stream = self._stream
        if stream is None:
            reason = CLOSED if self._closed else None
        else:
            reason = stream.stop_reason
        ended = reason is not None and (reason != CLOSED or not self._spoken)
        return TEXT_TIMED_OUT if self._timed_out and ended else reason

    def close(self) -> None:
        """Give the slot back and drop the chunks that nobody has read."""
        self._closed = True
        if self._stream is not None:
            self.engine.remove(self._stream, CLOSED)

    def __enter__(self) -> "StreamingSession":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _abandon(streams: list[engine_stream.Stream]) -> None:
    """A session was dropped without `close`: its engine frees the slot when it next
    moves.  Not at once: this runs wherever Python collects garbage."""
    for stream in streams:
        stream.abandoned = True
