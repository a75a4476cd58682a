"""The voices of a corpus as the judges know them: vectors, rates of speaking, names."""

import dataclasses
import re

import numpy as np

from eval import scoring, test_sets
from qwen3tts_jax import metrics
from qwen3tts_jax.audio import io as audio_io

PER_VOICE = 20  # clips that stand for a voice
REFERENCE_SECONDS = 15.0  # longest recording that is cloned
QUARTILE = 25  # per cent


@dataclasses.dataclass(frozen=True)
class Take:
    """A clip that has been listened to.  vector: float [D]; seconds: of speech."""

    clip: test_sets.Clip
    vector: np.ndarray
    seconds: float
    length: float


class Voices:
    """All voices of some clips; clips without a speaker say only how fast one speaks.

    Attributes:
        names: of those with a speaker, in order of appearance.
    """

    def __init__(self, clips: list[test_sets.Clip], panel):
        """Raises: ValueError where no speaker has two clips: nothing to compare."""
        self._takes: dict[str, list[Take]] = {}
        for clip in clips:
            takes = self._takes.setdefault(clip.speaker, [])
            if len(takes) < PER_VOICE:
                takes.append(_listen(clip, panel))
        self.names = [name for name in self._takes if name]
        if not any(len(self._takes[name]) > 1 for name in self.names):
            raise ValueError(
                f"got {len(clips)} clips in which no speaker has two, expected some; "
                "give a list of clips with speakers"
            )

    def speaking(self, language: str) -> list[str]:
        """Those who speak a language; all, if none does."""
        found = [n for n in self.names if self._takes[n][0].clip.language == language]
        return found or self.names

    def recording(self, name: str) -> str:
        """The longest clip of a voice that is not too long to clone.

        Raises: ValueError for a voice that is not in the clips.
        """
        takes = self._of(name)
        short = [take for take in takes if take.length <= REFERENCE_SECONDS] or takes
        return max(short, key=lambda take: take.length).clip.audio

    def likeness(self, vector: np.ndarray, name: str, *, without: str = "") -> float:
        """Mean cosine of a vector and the clips of a voice.

        without: id of a clip that does not count.
        """
        kept = [take for take in self._of(name) if take.clip.id != without]
        return float(np.mean([metrics.cosine(vector, take.vector) for take in kept]))

    def same_voice(self) -> list[float]:
        """`likeness` of every clip and the other clips of its voice."""
        return [
            self.likeness(take.vector, name, without=take.clip.id)
            for name in self.names
            if len(self._takes[name]) > 1
            for take in self._takes[name]
        ]

    def lower_quartile(self) -> float:
        """What three of four clips reach with the others of their voice."""
        return float(np.percentile(self.same_voice(), QUARTILE))

    def rate(self, name: str, language: str) -> float | None:
        """Characters a second of a voice in a language, or of all who speak it.

        None where nobody speaks it: rates of two languages cannot be compared.
        """
        everyone = [take for takes in self._takes.values() for take in takes]
        for takes in (self._takes.get(name, []), everyone):
            own = [t for t in takes if t.clip.language == language and t.seconds > 0]
            if own:
                texts = [take.clip.text for take in own]
                return metrics.speaking_rate(texts, [take.seconds for take in own])
        return None

    def _of(self, name: str) -> list[Take]:
        if name not in self.names:
            raise ValueError(
                f"got the speaker {name!r}, expected one of the clips: "
                f"{', '.join(self.names[:20])}; correct the texts, or add clips"
            )
        return self._takes[name]


def _listen(clip: test_sets.Clip, panel) -> Take:
    wave = audio_io.load(clip.audio)
    low = audio_io.resample(wave, audio_io.SAMPLE_RATE, scoring.JUDGE_RATE)
    seconds = metrics.speech_seconds(wave)
    return Take(clip, panel.speaker(low), seconds, len(wave) / audio_io.SAMPLE_RATE)


def as_exported(name: str) -> str:
    """The name that `training.export` gives a speaker of a corpus."""
    return re.sub(r"[/\s]+", "_", name.lower())
