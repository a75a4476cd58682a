"""Marks of clips by models, where they are asked for, and the tier that comes of it."""

import dataclasses

import numpy as np

from data import optional
from data.preparation import cleaning, sources
from qwen3tts_jax import metrics
from qwen3tts_jax.audio import io as audio_io

SCORER_RATE = 16_000  # Hz, of both


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which scorers to run, and what they must say.

    Attributes:
        dnsmos: whether to run DNSMOS.
        asr: directory of a Whisper model in CTranslate2's format, or None.
        min_ovrl, min_p808: below either, a clip is bad.  A clean studio voice has 3.3
            and 3.9, home recordings 2.3 to 3.0 and 3.1 to 3.5.
        max_cer: above it text and sound do not belong together.  Recognisers write "19"
            for "nineteen" and miss names, so that good clips have errors, too.
        high_ovrl, high_p808, high_cer: what the tier "high" takes.
    """

    dnsmos: bool = False
    asr: str | None = None
    min_ovrl: float = 2.0
    min_p808: float = 2.6
    max_cer: float = 0.4
    high_ovrl: float = 2.9
    high_p808: float = 3.5
    high_cer: float = 0.1


class Scorers:
    """The models of a Spec."""

    def __init__(self, spec: Spec, *, workers: int = 1):
        """Raises: ModuleNotFoundError for a package that is missing; FileNotFoundError
        for an ASR model that is."""
        self.spec, self._dnsmos, self._asr = spec, None, None
        if spec.dnsmos:
            self._dnsmos = optional.load("data.preparation.dnsmos")
        if spec.asr:
            self._asr = optional.load("data.preparation.asr").Recogniser(
                spec.asr, workers=workers
            )

    def judge(self, take: cleaning.Take) -> tuple[cleaning.Take, str]:
        """The clip with the marks that the models add, and its tier.

        low: marked.  high: every model that was asked for is content, with a margin.
        medium: the rest, and all that is not marked where no model was asked.
        """
        if take.wave is None:
            return take, ""
        marks, high = list(take.marks), bool(self._dnsmos or self._asr)
        if high:
            wave = audio_io.resample(take.wave, audio_io.SAMPLE_RATE, SCORER_RATE)
            for judge in (self._quality, self._mismatch):
                mark, good = judge(wave, take.clip)
                marks += [mark] * bool(mark)
                high &= good
        take = dataclasses.replace(take, marks=tuple(marks))
        return take, "low" if marks else ("high" if high else "medium")

    def _quality(self, wave: np.ndarray, clip) -> tuple[str, bool]:
        if not self._dnsmos:
            return "", True
        spec, score = self.spec, self._dnsmos.score(wave)
        bad = score["ovrl"] < spec.min_ovrl or score["p808"] < spec.min_p808
        good = score["ovrl"] >= spec.high_ovrl and score["p808"] >= spec.high_p808
        return "dnsmos" * bad, good

    def _mismatch(self, wave: np.ndarray, clip) -> tuple[str, bool]:
        if not self._asr:
            return "", True
        heard = self._asr.transcribe(wave, sources.CODES.get(clip.language))
        error = cer(clip.text, heard)
        return "mismatch" * (error > self.spec.max_cer), error <= self.spec.high_cer


def cer(said: str, heard: str) -> float:
    """Character error rate: edits for each character of what was said.

    Letter case, punctuation and spaces do not count; accents do.
    """
    return metrics.character_edits(said, heard).rate
