"""Packets of a stream: where their time goes, and what their listener hears when.

`packets` gives a row of the paper's table of latencies, `timeline` one side of the
experiment of `latency`.  A packet is 320 ms, as in the paper: 4 codes at 12.5 Hz,
8 at 25 Hz.  Programs are compiled before: the first run of each kind is not measured.
"""

import copy
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from eval.benchmarks import codec as codec_speed
from eval.benchmarks import streams
from qwen3tts_jax import model, runtime

PACKET_SECONDS = 0.32
PACKETS = 5  # after the first; of the last one nothing is taken: it ends the stream
REPEATS = 3
QUIET_DB = 200.0  # of a difference that is not there


def packet_codes(bundle: model.Qwen3TTSModel) -> int:
    """Codes of a packet."""
    return bundle.speech_tokenizer.chunk or round(
        PACKET_SECONDS * bundle.config.frame_rate
    )


def first_codes(bundle: model.Qwen3TTSModel) -> int:
    """Codes before the first packet: at 25 Hz also those that it waits for."""
    codec = bundle.speech_tokenizer
    return packet_codes(bundle) if codec.chunk is None else codec.decoder.window


# ------------------------------------------------------------------ the language model


@struct.dataclass
class SilentDecoder:
    """Stands where the codec's decoder is, so that a stream costs the codes alone."""

    def stream(self, codes, count, state):
        rows = len(codes)
        return jnp.zeros((rows, 1)), jnp.zeros(rows, jnp.int32), state


class SilentCodec:
    """A codec that makes no sound of as many codes at a time as another one."""

    decoder = SilentDecoder()

    def __init__(self, codec):
        self.chunk = codec.chunk
        self.get_decode_upsample_rate = codec.get_decode_upsample_rate

    def prepare(self, state) -> None:
        """Nothing to prepare."""

    def empty_state(self, rows: int = 1) -> jax.Array:
        return jnp.zeros((rows, 1))

    def own_state(self, state) -> jax.Array:
        return self.empty_state()

    def finish(self, state) -> np.ndarray:
        return np.zeros(0, np.float32)


def silent(bundle: model.Qwen3TTSModel) -> model.Qwen3TTSModel:
    """The same model with a codec that costs nothing."""
    other = copy.copy(bundle)
    other.speech_tokenizer = SilentCodec(bundle.speech_tokenizer)
    return other


def stream_times(bundle, job: dict, *, first: int, schedule, voice) -> dict:
    """Of streams at once: when codes and sound come.

    Args:
        first: codes before the first packet.
    Returns: medians over repeats, of all streams:
        first_codes: seconds to so many codes; packet: from group to group after them.
        first_sound: [median, maximum] of the streams; None of a silent codec.
    """
    count, size = job["concurrency"], schedule[-1]
    engine = streams.Watched(bundle, slots=count, schedule=schedule)
    asked = dict(count=count, frames=first + PACKETS * size, voice=voice)
    runs = [streams.listen(bundle, job, engine, **asked) for _ in range(REPEATS + 1)][
        1:
    ]
    waits, gaps, sounds = [], [], []
    for heard in runs:
        at = [seconds for seconds, made in heard[0].made if made >= first]
        waits.append(at[0])
        gaps += list(np.diff(at)[:-1])
        sounds.append([one.at[0] for one in heard if one.at])
    heard_all = bool(sounds[0])
    return dict(
        first_codes=statistics.median(waits),
        packet=float(np.median(gaps)),
        first_sound=[
            statistics.median(map(statistics.median, sounds)),
            statistics.median(map(max, sounds)),
        ]
        if heard_all
        else None,
    )


# --------------------------------------------------------------------------- the codec


def codec_times(bundle, job: dict) -> dict:
    """Of as many rows at once: seconds before the first packet, and of a later one.

    The first counts all groups of codes up to the first sound, of which those that
    only wait cost next to nothing.
    """
    codec, rows = bundle.speech_tokenizer, job["concurrency"]
    size = packet_codes(bundle)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, job["codebook"], (rows, size, job["quantizers"]))
    codes, count = np.int32(codes), np.full(rows, size, np.int32)
    firsts, later = [], []
    for _ in range(REPEATS + 1):
        state, seconds, sound = codec.empty_state(rows), [], 0
        with runtime.exact():
            while sound < PACKETS:
                start = time.perf_counter()
                wave, samples, state = codec_speed.stream_packet(
                    codec.decoder, codes, count, state
                )
                samples, _ = np.asarray(samples), np.asarray(wave)
                seconds.append(time.perf_counter() - start)
                sound += bool(samples[0])
        waited = len(seconds) - PACKETS + 1
        firsts.append(sum(seconds[:waited]))
        later += seconds[waited:]
    of_later = later[PACKETS - 1 :]
    return dict(first=statistics.median(firsts[1:]), packet=statistics.median(of_later))


# ------------------------------------------------------------------- the paper's table


def packets(bundle, job: dict) -> dict:
    """One row: language model and codec apart, and both in one program.

    Returns:
        seconds_lm_first: request to the codes of the first packet.
        seconds_codec_first: their decoding, of all streams at once.
        seconds_first_packet: request to sound, both together: [median, maximum].
        seconds_lm_packet, seconds_codec_packet, seconds_packet: of a later one.
        rtf: the last over the packet's length.
    """
    first, voice = first_codes(bundle), streams.voice_of(bundle, job)
    asked = dict(first=first, schedule=(packet_codes(bundle),), voice=voice)
    codes = stream_times(silent(bundle), job, **asked)
    sound = codec_times(bundle, job)
    both = stream_times(bundle, job, **asked)
    seconds = packet_codes(bundle) / bundle.config.frame_rate
    return dict(
        concurrency=job["concurrency"],
        packet_codes=packet_codes(bundle),
        packet_seconds=seconds,
        codes_before_sound=first,
        seconds_lm_first=codes["first_codes"],
        seconds_codec_first=sound["first"],
        seconds_first_packet=both["first_sound"],
        seconds_lm_packet=codes["packet"],
        seconds_codec_packet=sound["packet"],
        seconds_packet=both["packet"],
        rtf=both["packet"] / seconds,
    )


# ---------------------------------------------------------------- what a listener hears


def timeline(bundle, job: dict, side: dict) -> dict:
    """One stream: when its codes are made, and what can be heard when.

    Args:
        side: schedule, of the engine, at 12.5 Hz; lookahead, in blocks, at 25 Hz.
    Returns: medians over repeats:
        made: (seconds, codes so far) whenever some have come back.
        heard: (seconds, seconds of sound so far) of each chunk.
        seconds_first_codes, seconds_first_sound, first_sound_seconds (its length),
        seconds_first_audible (None: never).
        seconds_per_packet: median from chunk to chunk, for 320 ms of sound, without
            those that come with the end (None: there are no others).
        rtf: of all after the first chunk (None: there is no other); seconds_total.
        pause: silence in all, if it is played as soon as it comes.
        largest_difference, difference_db: of the wave from its codes decoded whole.
    """
    if bundle.speech_tokenizer.chunk is None:
        voice = streams.voice_of(bundle, job)
    else:
        bundle, voice = streams.looking_ahead(bundle, job, side["lookahead"])
    engine = streams.Watched(bundle, schedule=side.get("schedule"))
    asked = dict(count=1, frames=job["stream_frames"], voice=voice)
    runs = [
        streams.listen(bundle, job, engine, **asked)[0]
        for _ in range(job["repeats"] + 1)
    ]
    found = summary(runs[1:], bundle.speech_tokenizer.get_output_sample_rate())
    whole, _ = bundle.speech_tokenizer.decode([runs[0].codes], states=[voice.codec])
    return found | difference(np.concatenate(runs[0].waves), whole[0])


def summary(runs: list[streams.Heard], rate: int) -> dict:
    """See `timeline`; runs: of the same stream."""
    at = np.median([run.at for run in runs], axis=0)
    made = np.median([[seconds for seconds, _ in run.made] for run in runs], axis=0)
    sound = np.cumsum([len(wave) for wave in runs[0].waves]) / rate
    audible = [run.first_audible() for run in runs]
    gaps = np.diff(at) / np.diff(sound)  # seconds for a second of sound
    between = gaps[at[1:] < made[-1]]  # the others come with the last codes
    return dict(
        made=[[float(s), n] for s, (_, n) in zip(made, runs[0].made)],
        heard=[[float(s), float(n)] for s, n in zip(at, sound)],
        seconds_first_codes=float(made[0]),
        seconds_first_sound=float(at[0]),
        first_sound_seconds=float(sound[0]),
        seconds_first_audible=None if None in audible else statistics.median(audible),
        seconds_per_packet=(
            float(np.median(between) * PACKET_SECONDS) if len(between) else None
        ),
        rtf=(float((at[-1] - at[0]) / (sound[-1] - sound[0])) if len(gaps) else None),
        seconds_total=float(at[-1]),
        pause=pause(at, sound),
    )


def pause(at: np.ndarray, sound: np.ndarray) -> float:
    """Seconds of silence after the first chunk, played as soon as it comes.

    at: arrivals; sound: seconds of sound up to the end of each chunk.
    """
    late = at[1:] - at[0] - sound[:-1]
    return float(max(0.0, late.max(initial=0.0)))


def difference(wave: np.ndarray, whole: np.ndarray) -> dict:
    """How far a stream is from its codes decoded whole.

    difference_db: power of the whole over that of the difference.
    """
    apart = np.float64(wave) - whole
    power = np.mean(np.square(np.float64(whole)))
    ratio = np.mean(np.square(apart)) / max(power, np.finfo(np.float64).tiny)
    decibel = -10 * np.log10(max(ratio, 10 ** (-QUIET_DB / 10)))
    return dict(
        largest_difference=float(np.abs(apart).max()), difference_db=float(decibel)
    )
