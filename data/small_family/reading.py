"""From planned texts to clips: languages by turns, each clip once and whole."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from data.preparation import cleaning as clips
from data.small_family import reading_plan as plan
from qwen3tts_jax.audio import io as audio

PEAK = 10 ** (-3 / 20)  # -3 dBFS, of every clip
RULES = clips.Rules(margin_seconds=0.1)
SAY_EVERY = 60.0  # seconds

Speak = Callable[[str, str], np.ndarray]  # text, voice -> float32 [W], 24 kHz


def finish(wave: np.ndarray) -> np.ndarray:
    """float32 [W] without the silence at the ends, at the corpus' peak level.

    Raises: ValueError for silence.
    """
    loud = clips.speech_frames(wave, RULES)
    if not loud.any() or not np.isfinite(wave).all():
        raise ValueError("got silence or no numbers, expected speech")
    wave, _ = clips.trim(wave, loud, RULES)
    return wave * np.float32(PEAK / np.abs(wave).max())


def write(path: Path, wave: np.ndarray) -> None:
    """FLAC, 16 bit, 24 kHz; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plan.whole(path) as part:
        soundfile.write(part, wave, audio.SAMPLE_RATE, "PCM_16", format="FLAC")


def seconds(path: Path) -> float:
    """Length of a clip that is there."""
    info = soundfile.info(path)
    return info.frames / info.samplerate


def queue(
    readings: dict[str, list[plan.Reading]],
    goals: dict[str, float],
    length: Callable[[plan.Reading], float],
) -> Iterator[plan.Reading]:
    """Readings by turns until every language has its seconds.

    Args:
        goals: language -> seconds.
        length: seconds that a reading has come to, asked after it was yielded.
    """
    left = {language: iter(found) for language, found in readings.items()}
    done = dict.fromkeys(left, 0.0)
    while left:
        language = min(left, key=lambda code: done[code] / goals[code])
        reading = next(left[language], None)
        if reading is None or done[language] >= goals[language]:
            del left[language]
            continue
        yield reading
        done[language] += length(reading)


def share(found: list, worker: int, workers: int) -> list:
    """Every workers-th."""
    return found[worker::workers]


def run(
    out: Path,
    hours: float,
    speak: Speak,
    *,
    worker: int = 0,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> int:
    """Make the clips that are missing; returns how many were made."""
    readings = {
        language: share(found, worker, workers)
        for language, found in plan.load(out).items()
    }
    goals = plan.goals_of(hours / workers, readings)
    lengths, made, told = {}, 0, time.monotonic()
    for reading in queue(readings, goals, lambda one: lengths.get(one.id, 0.0)):
        path = out / reading.audio
        if not path.is_file():
            try:
                write(path, finish(speak(reading.text, reading.voice)))
            except ValueError as error:  # the next text takes its place
                say(f"{reading.id}: {error}")
                continue
            made += 1
        lengths[reading.id] = seconds(path)
        if time.monotonic() - told >= SAY_EVERY:
            told = time.monotonic()
            say(f"{sum(lengths.values()) / 3600:.2f} h there, {made} clips made now")
    return made
