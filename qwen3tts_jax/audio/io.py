"""Waves in and out, as numpy arrays.

Every sample rate of the project is named here. A wave is mono float32 [W]; files,
addresses, base64 text and arrays become one through `read` or `load`.
"""

import base64
import io
import math
import numbers
import os
import pathlib
import re
import secrets
import urllib.parse

import jax.numpy as jnp
import numpy as np
import soundfile
import soxr

from qwen3tts_jax.audio import download

SAMPLE_RATE = 24_000  # Hz: both tokenizers in and out, and the speaker encoder
ANALYSIS_RATE_25HZ = 16_000  # Hz: inside the 25 Hz tokenizer (log-mel, x-vector)

# The 12 Hz encoder has 8000 positions (encoder_config.max_position_embeddings) and
# spends 25 of them per second: 320 s is the longest wave it can place.
MAX_SECONDS = 320.0

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # two letters: not "C:/"

BASE64_MIN_CHARS = 256  # shorter text that names no file is a mistyped path
BLOCK_SAMPLES = 16_384  # decoded at a time, so that a lying header costs no memory
HEADER_SLACK = 2_304  # samples a header may promise too many: two MP3 frames
MAX_RATE = 2**31 - 1  # what the header of a sound file can hold
PCM_SCALE = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (2**7, 2**7)}


def read(
    source: str | os.PathLike | tuple, *, max_seconds: float = MAX_SECONDS
) -> tuple[np.ndarray, int]:
    """Read one wave, average its channels, keep its sample rate.

    A str is a path if such a file exists, else a data: URI, else an http(s) address,
    else base64 text if it is long enough and strictly base64, else a missing file.
    A server must not hand on a stranger's text: it may name a local file or host.

    Args:
        source: path, address, base64 text, or (array, rate): float, int16, int32 or
            uint8 PCM [W] or [W, C] (never [C, W]), rate in Hz.
        max_seconds: longest wave accepted; math.inf for any.

    Returns:
        wave: float32 [W]; PCM is scaled to [-1, 1], floats beyond that are kept.
        rate: int, Hz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source is of no known kind, cannot be fetched or decoded, is
            empty or too long, or has NaN or infinity, a bad rate or a bad shape.
    """
    if isinstance(source, tuple):
        return _from_array(source, max_seconds)
    if isinstance(source, (str, os.PathLike)):
        file, name = _locate(source)
        return _decode(file, name, max_seconds)
    raise ValueError(
        f"got a {type(source).__name__}, expected a path, an http(s) address, base64 "
        "text or (array, rate); pass (array, rate) for samples in memory"
    )


def resample(wave: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Change the sample rate with soxr's HQ filter.

    Args:
        wave: float [W].
        rate, target_rate: Hz.

    Returns:
        float32 [ceil(W * target_rate / rate)]: cut or zero-padded to just that.

    Raises:
        ValueError: a rate is not a whole number above 0, or the wave is not [W].

    Source: librosa.resample, which the official code calls; where its own rounding
    of the length goes astray (147 n samples at 44.1 kHz), it adds one zero more.
    """
    wave = _float_wave(wave)
    rate, target_rate = _check_rate(rate), _check_rate(target_rate)
    if rate == target_rate:
        return wave
    samples = -(-len(wave) * target_rate // rate)
    result = soxr.resample(wave, rate, target_rate, quality="HQ")[:samples]
    return np.pad(result, (0, samples - len(result)))


def load(
    source: str | os.PathLike | tuple,
    *,
    rate: int = SAMPLE_RATE,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """`read`, then `resample`: float32 [W] at `rate` Hz; raises what they raise."""
    wave, source_rate = read(source, max_seconds=max_seconds)
    return resample(wave, source_rate, rate)


def write_wav(
    path: str | os.PathLike,
    wave: np.ndarray,
    rate: int = SAMPLE_RATE,
    *,
    subtype: str = "PCM_16",
) -> None:
    """Write a WAV file whole or not at all.

    Args:
        path: file to write or replace, in a folder that exists.
        wave: float [W], finite, at least one sample; PCM clips it to [-1, 1].
        rate: Hz.
        subtype: sample format by soundfile's names: PCM_16, PCM_24, FLOAT, ...

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the wave, the rate or the subtype is not as above, or the path is
            a folder.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"got the folder {str(path)!r}, expected a file; add a name")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"got {str(path)!r}, expected a folder {str(path.parent)!r}; create it"
        )
    if not soundfile.check_format("WAV", subtype):
        raise ValueError(
            f"got subtype {subtype!r}, expected one of "
            f"{', '.join(soundfile.available_subtypes('WAV'))}; choose one of these"
        )
    wave, rate = _float_wave(wave), _check_rate(rate)
    _check_samples(wave, rate, "a wave", math.inf)
    # Not `tempfile`: its files are private to the user even after the renaming.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            soundfile.write(file, wave, rate, subtype=subtype, format="WAV")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_rate(rate: float) -> int:
    whole = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not (whole and 0 < rate <= MAX_RATE and rate == int(rate)):
        raise ValueError(
            f"got a sample rate of {download.short(rate)}, expected a whole number of "
            "Hz above 0; pass the rate of the samples, as in (array, 24000)"
        )
    return int(rate)


def _check_duration(samples: int, rate: int, name: str, max_seconds: float) -> None:
    if samples == 0:
        raise ValueError(
            f"got {name} with 0 samples, expected at least 1; pass a wave with sound"
        )
    if samples > max_seconds * rate:
        raise ValueError(
            f"got {name} of {samples / rate:.1f} s, expected at most {max_seconds:g} s;"
            " cut it, or pass a larger max_seconds"
        )


def _check_samples(wave: np.ndarray, rate: int, name: str, max_seconds: float) -> None:
    _check_duration(len(wave), rate, name, max_seconds)
    bad = ~np.isfinite(wave)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"got {name} with {wave[first]} at sample {first}, expected finite numbers;"
            " find where it came from, or cut it out"
        )


def _float_wave(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave)
    if wave.ndim != 1 or not jnp.issubdtype(wave.dtype, jnp.floating):
        raise ValueError(
            f"got a wave of {wave.dtype} {list(wave.shape)}, expected float [W]; "
            "average its channels, and scale it to [-1, 1]"
        )
    return _to_float32(wave)


def _to_float32(samples: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 too large becomes inf, found later
        return samples.astype(np.float32)


def _from_array(source: tuple, max_seconds: float) -> tuple[np.ndarray, int]:
    if len(source) != 2:
        raise ValueError(
            f"got a tuple of {len(source)}, expected (array, rate); pass these two"
        )
    samples, rate = np.asarray(source[0]), _check_rate(source[1])
    if samples.size == 0:
        _check_duration(0, rate, "an array", max_seconds)
    channels_first = samples.ndim == 2 and samples.shape[1] > samples.shape[0]
    if samples.ndim not in (1, 2) or channels_first:
        raise ValueError(
            f"got an array of shape {list(samples.shape)}, expected [W] or [W, C]; "
            "pass one wave, its channels last"
        )
    _check_duration(len(samples), rate, "an array", max_seconds)
    wave = _unscaled(samples.reshape(len(samples), -1)).mean(axis=1)
    _check_samples(wave, rate, "an array", max_seconds)
    return wave, rate


def _unscaled(samples: np.ndarray) -> np.ndarray:
    """PCM to float32 in [-1, 1]; floats to float32 as they are."""
    if samples.dtype.name in PCM_SCALE:
        zero, scale = PCM_SCALE[samples.dtype.name]
        return ((samples.astype(np.float64) - zero) / scale).astype(np.float32)
    if jnp.issubdtype(samples.dtype, jnp.floating):
        return _to_float32(samples)
    raise ValueError(
        f"got an array of {samples.dtype}, expected float or one of "
        f"{', '.join(PCM_SCALE)}; convert it to float in [-1, 1]"
    )


def _decode(
    file: str | io.BytesIO, name: str, max_seconds: float
) -> tuple[np.ndarray, int]:
    """Decode a sound file; the header alone decides whether it is too long."""
    blocks = [np.zeros(0, np.float32)]
    try:
        with soundfile.SoundFile(file) as sound:
            rate, samples = sound.samplerate, sound.frames
            _check_duration(samples, rate, name, max_seconds)
            while len(block := sound.read(BLOCK_SAMPLES, "float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
    # soundfile says TypeError of a name that ends in .raw: such files have no header.
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(
            f"got {name}, which cannot be decoded ({str(error).split(': ')[-1]}), "
            "expected an intact WAV, FLAC, OGG or MP3 file; convert it again"
        ) from error
    wave = np.concatenate(blocks)
    if len(wave) < samples - HEADER_SLACK:
        raise ValueError(
            f"got {name}, which breaks off after {len(wave)} samples, expected the "
            f"{samples} of its header; copy it again"
        )
    _check_samples(wave, rate, name, max_seconds)
    return wave, rate


def _locate(source: str | os.PathLike) -> tuple[str | io.BytesIO, str]:
    """Find the bytes: a path or a buffer, and what to call it in a message."""
    text = os.fspath(source)
    if os.path.isfile(text):
        return text, f"the file {download.short(text)}"
    if isinstance(source, str):
        if text.startswith("data:"):
            return io.BytesIO(_data_uri(text)), f"the data URI {download.short(text)}"
        if SCHEME.match(text):
            return io.BytesIO(
                download.download(text)
            ), f"the address {download.short(text)}"
        if len(text) > BASE64_MIN_CHARS and (data := _base64(text)) is not None:
            return io.BytesIO(data), f"the base64 text {download.short(text)}"
    raise FileNotFoundError(
        f"got {download.short(text)}, expected a file that exists, an http(s) address "
        "or base64 text; check the path"
    )


def _base64(text: str) -> bytes | None:
    """Decode, line breaks allowed; None if it is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _data_uri(text: str) -> bytes:
    header, _, payload = text.partition(",")
    data = _base64(urllib.parse.unquote(payload)) if ";base64" in header else None
    if data is None:
        raise ValueError(
            f"got {download.short(text)}, expected data:...;base64, and strict base64; "
            "encode the file with base64"
        )
    return data
