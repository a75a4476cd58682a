"""One clip: decode, find what is wrong with it, trim, bring to one level, 24 kHz."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import soundfile

from data import optional
from data.preparation import clip as raw
from qwen3tts_jax.audio import io as audio_io

REASONS = {  # why a clip is dropped; those of MARKS may be kept, in the tier "low"
    "unreadable": "the sound cannot be decoded",
    "no_text": "nothing is written that can be said",
    "remark": "the transcript holds remarks that nobody says",
    "lost_letter": "letters of the text are lost",
    "silence": "no speech, or most of it is silence",
    "too_short": "shorter than Rules.min_seconds when trimmed",
    "too_long": "longer than Rules.max_seconds when trimmed",
    "clipping": "the waveform is cut off at its peaks",
    "too_fast": "more text than can be said in the time",
    "too_slow": "less text than the time would take",
    "dnsmos": "DNSMOS finds it bad",
    "mismatch": "speech recognition hears another text",
}
MARKS = ("clipping", "too_fast", "too_slow", "dnsmos", "mismatch")

HOP_SECONDS = 0.01  # of the level's frames
PEAK_LIMIT = 10 ** (-1 / 20)  # -1 dBFS: the level is not raised beyond it
FLAT_RUN = 3  # equal samples in a row at the peak; sine waves have 1 or 2 there
FLAT_TOLERANCE = 1e-4  # of the peak: 16-bit rounding of a full-scale wave is 3e-5
QUIET_PEAK = 0.01  # below -40 dBFS equal samples at the peak come from rounding

# How much is to be said, in letters: a Han or Kana character or a Hangul block takes as
# long as some letters; a digit is a word.
HEAVY = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
HEAVY_LETTERS, DIGIT_LETTERS = 3, 4


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is done to a clip and what is asked of it.

    Attributes:
        min_seconds, max_seconds: of the trimmed clip.  The least is above the 0.06 s
            that the speaker encoder needs.
        trim_db: what is so far below the loudest frames counts as silence.
        floor_db: so does what is below this level, dBFS.
        margin_seconds: of silence that trimming leaves at both ends.
        level_db: RMS of the frames with speech after normalising, dBFS; None leaves
            the level alone.
        min_speech: smallest share of frames with speech, after trimming.
        max_flat: largest share of samples that stand cut off at a peak.
        max_rate: letters a second, the most; 30 is beyond auctioneers.
        min_rate: letters a second, the least, `grace_seconds` being free.
    """

    min_seconds: float = 0.3
    max_seconds: float = 40.0
    trim_db: float = 40.0
    floor_db: float = -60.0
    margin_seconds: float = 0.1
    level_db: float | None = -23.0
    min_speech: float = 0.25
    max_flat: float = 0.002
    max_rate: float = 30.0
    min_rate: float = 3.0
    grace_seconds: float = 2.0


@dataclasses.dataclass(frozen=True)
class Take:
    """A clip that has been looked at.

    Attributes:
        wave: float32 [W] at 24 kHz, trimmed and brought to level; None if dropped.
        reason: why it was dropped, or "".
        marks: what is bad about it though it might be kept.
        detail: the error's text, of an unreadable clip.
    """

    clip: raw.Clip
    wave: np.ndarray | None = None
    reason: str = ""
    marks: tuple[str, ...] = ()
    detail: str = ""


def take(clip: raw.Clip, rules: Rules) -> Take:
    """Decode, check, trim and normalise one clip.  Never raises for a bad clip."""
    if reason := clip.problem or ("" if letters(clip.text) else "no_text"):
        return Take(clip, reason=reason)
    try:
        # trimming a clip thrice too long would rarely make it short enough
        if _seconds(clip) > 3 * rules.max_seconds:
            return Take(clip, reason="too_long")
        wave, rate = _read(clip)
        flat = flat_share(wave)
        wave = audio_io.resample(wave, rate, audio_io.SAMPLE_RATE)
    # decoders raise errors of many kinds for bytes that they cannot read
    except (ValueError, OSError, RuntimeError, EOFError) as error:
        return Take(clip, reason="unreadable", detail=str(error))
    return _judge(clip, wave, flat, rules)


def _judge(clip: raw.Clip, wave: np.ndarray, flat: float, rules: Rules) -> Take:
    loud = speech_frames(wave, rules)
    if not loud.any():
        return Take(clip, reason="silence")
    wave, loud = trim(wave, loud, rules)
    seconds = len(wave) / audio_io.SAMPLE_RATE
    if seconds < rules.min_seconds:
        return Take(clip, reason="too_short")
    if seconds > rules.max_seconds:
        return Take(clip, reason="too_long")
    if loud.mean() < rules.min_speech:
        return Take(clip, reason="silence")
    marks = ["clipping"] * (flat > rules.max_flat) + pace(clip.text, seconds, rules)
    return Take(clip, normalise(wave, loud, rules), marks=tuple(marks))


def _seconds(clip: raw.Clip) -> float:
    """Length by the header alone."""
    if isinstance(clip.audio, tuple):
        samples, rate = clip.audio
        return len(samples) / rate
    path = Path(clip.audio)
    if path.suffix.lower() == ".g722":
        return optional.load("data.preparation.g722").seconds(path)
    if not path.is_file():
        raise FileNotFoundError("no such file")
    info = soundfile.info(path)
    return info.frames / info.samplerate


def _read(clip: raw.Clip) -> tuple[np.ndarray, int]:
    source = clip.audio
    if not isinstance(source, tuple):
        source = Path(source)  # a text might be taken for an address
        if source.suffix.lower() == ".g722":
            source = optional.load("data.preparation.g722").read(source)
    return audio_io.read(source)


# ------------------------------------------------------------------------ checks


def letters(text: str) -> int:
    """How much there is to say, in letters of an alphabet; 0: nothing."""
    count = sum(character.isalnum() for character in text)
    count += (HEAVY_LETTERS - 1) * len(HEAVY.findall(text))
    return count + (DIGIT_LETTERS - 1) * sum(c.isdecimal() for c in text)


def pace(text: str, seconds: float, rules: Rules) -> list[str]:
    """What the rate of speech tells: text and sound that cannot belong together."""
    count = letters(text)
    if count > rules.max_rate * seconds:
        return ["too_fast"]
    if count < rules.min_rate * (seconds - rules.grace_seconds):
        return ["too_slow"]
    return []


def flat_share(wave: np.ndarray) -> float:
    """Share of samples that stand in a run of equal ones at the wave's peak.

    Taken before resampling, which would round the edges off.
    """
    for_peak = np.abs(wave)
    peak = for_peak.max(initial=0.0)
    if peak < QUIET_PEAK:
        return 0.0
    total = 0
    for sign in (1, -1):  # a run lies on one side
        at = np.concatenate([[0], sign * wave >= peak * (1 - FLAT_TOLERANCE), [0]])
        edges = np.flatnonzero(np.diff(at.astype(np.int8)))
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= FLAT_RUN].sum())
    return total / len(wave)


def speech_frames(wave: np.ndarray, rules: Rules) -> np.ndarray:
    """bool [T]: frames of 10 ms that are no silence.

    Loud is what comes within trim_db of the 95th percentile, a level that a click does
    not raise.
    """
    hop = int(HOP_SECONDS * audio_io.SAMPLE_RATE)
    padded = np.pad(wave, (0, -len(wave) % hop))
    power = np.square(padded, dtype=np.float32).reshape(-1, hop).mean(axis=1)
    level = 10 * np.log10(power + 1e-12)  # [T], dBFS
    return level > max(np.percentile(level, 95) - rules.trim_db, rules.floor_db)


# --------------------------------------------------------------------- processing


def trim(
    wave: np.ndarray, loud: np.ndarray, rules: Rules
) -> tuple[np.ndarray, np.ndarray]:
    """The wave and its frames without the silence at the ends, a margin left."""
    found = np.flatnonzero(loud)
    margin = round(rules.margin_seconds / HOP_SECONDS)
    start, stop = max(found[0] - margin, 0), found[-1] + 1 + margin
    hop = int(HOP_SECONDS * audio_io.SAMPLE_RATE)
    return wave[start * hop : stop * hop], loud[start:stop]


def normalise(wave: np.ndarray, loud: np.ndarray, rules: Rules) -> np.ndarray:
    """The wave at level_db, or as near as its peak allows."""
    if rules.level_db is None:
        return wave
    hop = int(HOP_SECONDS * audio_io.SAMPLE_RATE)
    speaking = wave[np.repeat(loud, hop)[: len(wave)]]
    rms = np.sqrt(np.mean(np.square(speaking, dtype=np.float64)))
    gain = min(10 ** (rules.level_db / 20) / rms, PEAK_LIMIT / np.abs(wave).max())
    return wave * np.float32(gain)
