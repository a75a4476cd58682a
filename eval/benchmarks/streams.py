"""Our streams, as `speed` measures them: many at once, and first packets.

Every stream speaks the job's text, all of which is there at the start, with sampling
on, and makes exactly the frames that are asked for.
"""

import copy
import dataclasses
import importlib.util
import pathlib
import statistics
import time

import jax
import numpy as np

from qwen3tts_jax import model
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.generation import generate
from qwen3tts_jax.serving import engine as engines
from qwen3tts_jax.serving import session as sessions

AUDIBLE_DBFS = -50.0  # RMS of the first window that counts as sound
WINDOW = 240  # samples of it: 10 ms
WARM_FRAMES = 3  # of the streams that run before the measured ones
FIRST_PACKETS = (1, 2, 4, 6, 8)  # frames
LATER_PACKETS = 8  # frames of those that follow
LOOKAHEADS = (0, 1, 2, 4, None)  # blocks that a 25Hz stream waits for; None: all
REPEATS = 3  # measured first packets of each length
TRACED_FRAMES = 8
DNSMOS_RATE = 16000
NO_DNSMOS = "not installed"


@dataclasses.dataclass
class Heard:
    """One stream as its listener got it: chunks, and when each was in hand.

    Attributes:
        at: seconds after the request; waves: float32 [n] each.
        codes: int32 [T, Q] of all of them.
        made: (seconds after the request, codes so far) whenever some came back; of the
            first stream only.
    """

    at: list[float]
    waves: list[np.ndarray]
    codes: np.ndarray
    made: list[tuple[float, int]] = dataclasses.field(default_factory=list)

    def first_audible(self) -> float | None:
        """Arrival of the chunk with the first audible window, if there is one."""
        for at, wave in zip(self.at, self.waves):
            if audible(wave):
                return at
        return None


class Watched(engines.Engine):
    """An engine that notes when codes of a session come back from the device."""

    def watch(self, session: sessions.StreamingSession, start: float) -> list:
        """The list that is filled; see `Heard.made`.  start: of `time.perf_counter`."""
        self._watched, self._start, self._made = session, start, []
        return self._made

    def step(self) -> bool:
        moved = super().step()
        count = len(self._watched.codes)
        if count > (self._made[-1][1] if self._made else 0):
            self._made.append((time.perf_counter() - self._start, count))
        return moved


def utterance(bundle: model.Qwen3TTSModel, job: dict) -> model.Utterance:
    """What the job's request says."""
    name = f"{model.METHODS[bundle.config.variant]}_utterances"
    [only] = getattr(bundle, name)(**job["request"])
    return only


def audible(wave: np.ndarray) -> bool:
    """Whether any 10 ms of a chunk are louder than -50 dBFS."""
    windows = wave[: len(wave) // WINDOW * WINDOW].reshape(-1, WINDOW)
    rms = np.sqrt(np.mean(np.square(windows.astype(np.float64)), axis=1))
    return bool((rms > 10 ** (AUDIBLE_DBFS / 20)).any())


def listen(
    bundle, job: dict, engine: Watched, *, count: int, frames: int, voice
) -> list[Heard]:
    """`count` streams that are asked for together and read in turn by one thread."""
    start = time.perf_counter()
    opened = [
        sessions.StreamingSession(
            bundle, voice, seed=seed, engine=engine, max_new_tokens=frames + 1
        )
        for seed in range(job["seed"], job["seed"] + count)
    ]
    heard = [Heard([], [], np.zeros(0)) for _ in opened]
    heard[0].made = engine.watch(opened[0], start)
    for one in opened:
        one.push_text(job["request"]["text"])
        one.end_text()
    speaking = list(zip(opened, heard))
    while speaking:
        speaking = [pair for pair in speaking if read_one(*pair, start)]
    for one in heard:
        if len(one.codes) != frames:
            raise ValueError(f"got {len(one.codes)} frames, expected {frames}")
    return heard


def read_one(one: sessions.StreamingSession, heard: Heard, start: float) -> bool:
    """Take the next chunk; False if there is none."""
    chunk = one.read()
    if chunk is None:
        heard.codes = one.codes
        return False
    heard.at.append(time.perf_counter() - start)
    heard.waves.append(chunk)
    return True


def voice_of(bundle, job: dict) -> model.Voice:
    """The request without its text."""
    return bundle.voice(**{k: v for k, v in job["request"].items() if k != "text"})


def concurrent(bundle, job: dict) -> dict:
    """Streams that share an engine: latencies, and the rate of all of them.

    Programs are compiled, and streams of three frames made, before the clock starts.
    """
    count, frames = job["concurrency"], job["stream_frames"]
    voice = voice_of(bundle, job)
    engine = Watched(bundle, slots=count, schedule=tuple(job["schedule"]))
    length = len(utterance(bundle, job).prompt.text)
    largest = max(frames, *engine.schedule)
    engine.warmup(positions=generate.slots(length, largest))
    asked = dict(count=count, voice=voice)
    listen(bundle, job, engine, frames=min(WARM_FRAMES, frames), **asked)
    heard = listen(bundle, job, engine, frames=frames, **asked)
    return summary(heard, frames, bundle.config.frame_rate) | dict(
        concurrency=count, packets=", ".join(map(str, engine.schedule)), frames=frames
    )


def summary(heard: list[Heard], frames: int, frame_rate: float) -> dict:
    """Medians and maxima over streams that were asked for at the same time."""
    first = [h.at[0] for h in heard]
    sound = [h.first_audible() for h in heard]
    end, started = max(h.at[-1] for h in heard), max(first)
    samples = sum(map(len, heard[0].waves))
    early = round(len(heard[0].waves[0]) / samples * frames)
    spoken = frames / frame_rate
    return dict(
        seconds_first_byte=[statistics.median(first), max(first)],
        seconds_first_audible=(
            None if None in sound else [statistics.median(sound), max(sound)]
        ),
        seconds_per_frame_step=(end - started) / (frames - early),
        audio_seconds_per_second=len(heard) * spoken / end,
        rtf_stream=statistics.median(h.at[-1] for h in heard) / spoken,
        seconds_total=end,
    )


# --------------------------------------------------------------------- first packets


def first_packets(bundle, job: dict) -> list[dict]:
    """At 12.5 Hz the first packet after 1, 2, 4, 6 and 8 frames; the later ones have 8.

    At 25 Hz after the 8 codes of a block and those of 0, 1, 2, 4 blocks ahead of it, or
    of all that it depends on.
    """
    if bundle.speech_tokenizer.chunk is None:
        voice = voice_of(bundle, job)
        asked = dict(later=LATER_PACKETS, voice=voice)
        return [first_packet(bundle, job, frames=n, **asked) for n in FIRST_PACKETS]
    found = []
    for blocks in LOOKAHEADS:
        other, voice = looking_ahead(bundle, job, blocks)
        decoder = other.speech_tokenizer.decoder
        # twice the chunk: at the end of a stream comes all that it has waited for
        asked = dict(frames=decoder.window, later=2 * decoder.chunk, voice=voice)
        found.append(first_packet(other, job, **asked) | dict(blocks=decoder.lookahead))
    return found


def looking_ahead(bundle, job: dict, blocks: int | None):
    """(the model, a voice) whose 25Hz streams wait for so many blocks; None: all.

    The voice is made anew: it remembers the state of the decoder it was made for.
    """
    other = copy.copy(bundle)
    other.speech_tokenizer = bundle.speech_tokenizer.streaming(lookahead=blocks)
    voice = voice_of(other, job)
    fresh = dataclasses.replace(voice.codec, state=None)
    return other, dataclasses.replace(voice, codec=fresh)


def first_packet(bundle, job: dict, *, frames: int, later: int, voice) -> dict:
    """Latency of a first packet, the pause after it, its quality.

    Args:
        frames: before it; later: after it.
    Returns: medians of three streams after an unmeasured one:
        seconds_first_packet: request to first packet in hand.
        packet_seconds: its length.
        stall_seconds: silence between its end and the second packet's arrival.
        largest_difference: from the same samples of the same codes decoded whole.
        dnsmos: OVRL and P808 of the packet, or why not; a packet of a few frames scores
            low for being short, also where it is recorded speech.
    """
    chunked = bundle.speech_tokenizer.chunk is not None
    engine = Watched(bundle, schedule=None if chunked else (frames, later))
    asked = dict(count=1, frames=frames + later, voice=voice)
    heard = [listen(bundle, job, engine, **asked)[0] for _ in range(REPEATS + 1)]
    codec = bundle.speech_tokenizer
    [whole], rate = codec.decode([heard[0].codes], states=[voice.codec])
    packet = heard[0].waves[0]
    length = len(packet) / rate
    measured = heard[1:]
    stalls = [max(0.0, h.at[1] - h.at[0] - length) for h in measured]
    return dict(
        frames=frames,
        seconds_first_packet=statistics.median(h.at[0] for h in measured),
        packet_seconds=length,
        stall_seconds=statistics.median(stalls),
        largest_difference=float(np.abs(packet - whole[: len(packet)]).max()),
        dnsmos=dnsmos(packet, rate),
    )


def dnsmos(wave: np.ndarray, rate: int) -> dict | str:
    """OVRL and P808 by speechmos, which repeats a short wave until it is 9 s long."""
    if importlib.util.find_spec("speechmos") is None:
        return NO_DNSMOS
    from speechmos import dnsmos as scorer  # here: it is optional

    wave = np.clip(audio_io.resample(wave, rate, DNSMOS_RATE), -1, 1)
    scores = scorer.run(wave, DNSMOS_RATE)
    return dict(ovrl=float(scores["ovrl_mos"]), p808=float(scores["p808_mos"]))


# ------------------------------------------------------------------------------ trace


def trace(bundle, job: dict) -> None:
    """Write a jax.profiler trace of one stream's prompt and two groups of frames."""
    size = bundle.speech_tokenizer.chunk or TRACED_FRAMES
    engine = Watched(bundle, schedule=(size,))
    asked = dict(count=1, frames=2 * size, voice=voice_of(bundle, job))
    listen(bundle, job, engine, **asked)
    pathlib.Path(job["profile"]).mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(job["profile"]):
        listen(bundle, job, engine, **asked)
