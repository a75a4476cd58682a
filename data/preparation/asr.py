"""What Whisper hears, by the package faster-whisper (extra eval)."""

from pathlib import Path

import faster_whisper
import numpy as np

RATE = 16_000  # Hz
FILES = ("model.bin", "config.json", "tokenizer.json")


class Recogniser:
    """A Whisper model in CTranslate2's format, from a local directory."""

    def __init__(self, directory: str | Path, *, workers: int = 1):
        """Raises: FileNotFoundError where the directory lacks a file of the model."""
        missing = [name for name in FILES if not (Path(directory) / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"got the ASR model {str(directory)!r}, which lacks "
                f"{', '.join(missing)}; give the directory of a Whisper model that "
                "ct2-transformers-converter has made"
            )
        self._model = faster_whisper.WhisperModel(
            str(directory),
            num_workers=workers,
            cpu_threads=1,  # for each worker: of these there are as many as cores
            local_files_only=True,
        )

    def transcribe(self, wave: np.ndarray, language: str | None) -> str:
        """The text in float32 [W] at 16 kHz; language: ISO 639-1, None to detect it.

        Greedy, at temperature 0: falling back on sampling would give another text each
        time, and takes five times as long on bad clips.
        """
        known = language if language in self._model.supported_languages else None
        segments, _ = self._model.transcribe(
            wave,
            language=known,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)
