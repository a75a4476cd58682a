"""Where sound goes: a file that appears whole, a file that grows, a pipe.

All are context managers with `write(wave: float [W], 24 kHz)`; samples are 16 bits, and
clipped to [-1, 1].
"""

import io
import os
import pathlib
import secrets
import sys
import wave

import numpy as np
import soundfile

from qwen3tts_jax.audio import io as audio_io

PIPE = "-"  # standard output, by this name


def check(*outs: pathlib.Path | None) -> None:
    """Raises: ValueError unless each is "-", None or a file of its own to write."""
    files = [out for out in outs if out is not None and str(out) != PIPE]
    for out in files:
        if not os.access(out.parent, os.W_OK) or out.is_dir():
            raise ValueError(
                f"got {str(out)!r}, expected a file in a folder to write to"
            )
        if files.count(out) > 1:
            raise ValueError(f"got {str(out)!r} twice; each output needs its own file")


def open_sound(out: str | os.PathLike, *, growing: bool):
    """The sink for `out`: "-" is raw samples to standard output, else a WAV file.

    growing: the file is there from the first chunk on, else when all has been written.
    """
    if str(out) == PIPE:
        return RawPipe(sys.stdout.buffer)
    return GrowingWav(out) if growing else WholeWav(out)


class RawPipe:
    """Raw mono little-endian samples to a binary file, which stays open."""

    def __init__(self, file):
        self._file = file

    def write(self, chunk: np.ndarray) -> None:
        self._file.write(pcm16(chunk))
        self._file.flush()

    def __enter__(self) -> "RawPipe":
        return self

    def __exit__(self, *error) -> None:
        """The file is its owner's to close."""


class GrowingWav:
    """A mono WAV file that is valid after every chunk.

    It is not touched before the first one: what fails earlier leaves what was there.
    """

    def __init__(self, path: str | os.PathLike, rate: int = audio_io.SAMPLE_RATE):
        """path: file to write or replace, in a folder that exists; rate: Hz."""
        self._path, self._rate, self._wav = path, rate, None

    def write(self, chunk: np.ndarray) -> None:
        if self._wav is None:
            self._file = open(self._path, "wb")
            self._wav = wave.open(self._file)
            self._wav.setparams((1, 2, self._rate, 0, "NONE", ""))
        self._wav.writeframes(pcm16(chunk))  # it also sets the lengths in the header
        self._file.flush()

    def __enter__(self) -> "GrowingWav":
        return self

    def __exit__(self, *error) -> None:
        if self._wav is not None:
            self._wav.close()
            self._file.close()


class WholeWav:
    """A mono WAV file that appears when all of it is there; after an error, never."""

    def __init__(self, path: str | os.PathLike):
        self._path, self._chunks = path, []

    def write(self, chunk: np.ndarray) -> None:
        self._chunks.append(chunk)

    def __enter__(self) -> "WholeWav":
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None:
            audio_io.write_wav(self._path, np.concatenate(self._chunks))


def pcm16(chunk: np.ndarray) -> bytes:
    """Little-endian 16-bit samples, as `io.write_wav` writes them."""
    raw, form = io.BytesIO(), dict(subtype="PCM_16", endian="LITTLE", format="RAW")
    soundfile.write(raw, chunk, audio_io.SAMPLE_RATE, **form)
    return raw.getvalue()


def write_npy(path: pathlib.Path, array: np.ndarray) -> None:
    """An .npy file, whole or not at all, under exactly this name."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
