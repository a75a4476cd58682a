"""Our streams, as `eval.speed` measures them: many at once, and first packets.

Every stream speaks the job's text, all of which is there at the start, with sampling
on, and makes exactly the frames that are asked for.
"""

import dataclasses
import importlib.util
import pathlib
import statistics
import time

import jax
import numpy as np

from qwen3tts_jax import audio, generate, model
from qwen3tts_jax.serving import engine as engines
from qwen3tts_jax.serving import session as sessions

FRAME_SECONDS = 0.08
AUDIBLE_DBFS = -50.0  # RMS of the first window that counts as sound
WINDOW = 240  # samples of it: 10 ms
WARM_FRAMES = 3  # of the streams that run before the measured ones
FIRST_PACKETS = (1, 2, 4, 6, 8)  # frames
LATER_PACKETS = 8  # frames of those that follow
REPEATS = 3  # measured first packets of each length
TRACED_FRAMES = 8
DNSMOS_RATE = 16000
NO_DNSMOS = "not installed"


@dataclasses.dataclass
class Heard:
    """One stream as its listener got it: chunks, and when each was in hand.

    Attributes:
        at: seconds after the request; waves: float32 [n * 1920].
        codes: int32 [T, 16] of all of them.
    """

    at: list[float]
    waves: list[np.ndarray]
    codes: np.ndarray

    def first_audible(self) -> float | None:
        """Arrival of the chunk with the first audible window, if there is one."""
        for at, wave in zip(self.at, self.waves):
            if audible(wave):
                return at
        return None


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
    bundle, job: dict, engine: engines.Engine, *, count: int, frames: int, voice
) -> list[Heard]:
    """`count` streams that are asked for together and read in turn by one thread."""
    start = time.perf_counter()
    opened = [
        sessions.StreamingSession(
            bundle, voice, seed=seed, engine=engine, max_new_tokens=frames + 1
        )
        for seed in range(count)
    ]
    for one in opened:
        one.push_text(job["request"]["text"])
        one.end_text()
    heard = [Heard([], [], np.zeros(0)) for _ in opened]
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
    engine = engines.Engine(bundle, slots=count, schedule=tuple(job["schedule"]))
    length = len(utterance(bundle, job).prompt.text)
    largest = max(frames, *engine.schedule)
    engine.warmup(positions=generate.slots(length, largest))
    asked = dict(count=count, voice=voice)
    listen(bundle, job, engine, frames=min(WARM_FRAMES, frames), **asked)
    heard = listen(bundle, job, engine, frames=frames, **asked)
    return summary(heard, frames) | dict(
        concurrency=count, packets=", ".join(map(str, engine.schedule)), frames=frames
    )


def summary(heard: list[Heard], frames: int) -> dict:
    """Medians and maxima over streams that were asked for at the same time."""
    first = [h.at[0] for h in heard]
    sound = [h.first_audible() for h in heard]
    end, started = max(h.at[-1] for h in heard), max(first)
    samples = sum(map(len, heard[0].waves))
    early = round(len(heard[0].waves[0]) / samples * frames)
    spoken = frames * FRAME_SECONDS
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
    """The first packet after 1, 2, 4, 6 and 8 frames; the later ones have 8."""
    return [first_packet(bundle, job, frames) for frames in FIRST_PACKETS]


def first_packet(bundle, job: dict, frames: int) -> dict:
    """Latency of a first packet of so many frames, the pause after it, its quality.

    Returns: medians of three streams after an unmeasured one:
        seconds_first_packet: request to first packet in hand.
        packet_seconds: its length.
        stall_seconds: silence between its end and the second packet's arrival.
        largest_difference: from the same samples of the same codes decoded whole.
        dnsmos: OVRL and P808 of the packet, or why not; a packet of a few frames scores
            low for being short, also where it is recorded speech.
    """
    voice = voice_of(bundle, job)
    engine = engines.Engine(bundle, schedule=(frames, LATER_PACKETS))
    asked = dict(count=1, frames=frames + LATER_PACKETS, voice=voice)
    heard = [listen(bundle, job, engine, **asked)[0] for _ in range(REPEATS + 1)]
    [whole], rate = bundle.speech_tokenizer.decode([heard[0].codes])
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

    wave = np.clip(audio.resample(wave, rate, DNSMOS_RATE), -1, 1)
    scores = scorer.run(wave, DNSMOS_RATE)
    return dict(ovrl=float(scores["ovrl_mos"]), p808=float(scores["p808_mos"]))


# ------------------------------------------------------------------------------ trace


def trace(bundle, job: dict) -> None:
    """Write a jax.profiler trace of one stream's prompt and one group of 8 frames."""
    engine = engines.Engine(bundle, schedule=(TRACED_FRAMES,))
    asked = dict(count=1, frames=TRACED_FRAMES, voice=voice_of(bundle, job))
    listen(bundle, job, engine, **asked)
    pathlib.Path(job["profile"]).mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(job["profile"]):
        listen(bundle, job, engine, **asked)
