"""Waves to codes, against the official encoder."""

import inputs
import make
import numpy as np
import parity
import pytest
import soundfile

from qwen3tts_jax.audio import io as audio_io

EXCUSED = 0.02  # of all frames, by near ties
SECONDS = 3  # of the recording's excerpt


def assert_codes(golden, key: str, codes: np.ndarray, expected: str = "") -> int:
    """`codes` against those under `expected` (or `key`); the near ties are key's."""
    arrays = golden.arrays
    return parity.assert_codes(
        codes,
        arrays[f"{expected or key}/codes"],
        arrays[f"{key}/near_ties"],
        arrays[f"{key}/near_tie_margins"],
    )


@parity.over("encode")
def test_codes_of_any_length(golden):
    """Lengths on the 1920 grid, a sample off it, and down to a single sample."""
    tokenizer, excused, frames = golden.model.speech_tokenizer, 0, 0
    for i, wave in enumerate(inputs.encoder_waves(golden.seed)):
        codes = tokenizer.encode(wave, sr=inputs.SAMPLE_RATE).audio_codes[0]
        assert len(codes) == -(-len(wave) // inputs.SAMPLES_PER_FRAME)
        excused += assert_codes(golden, f"encode/{i}", codes)
        frames += len(codes)
    assert excused <= EXCUSED * frames


@parity.over("encode")
def test_codes_of_a_ragged_batch(golden):
    waves = inputs.encoder_waves(golden.seed)
    together = [waves[i] for i in inputs.ENCODED_TOGETHER]
    encoded = golden.model.speech_tokenizer.encode(together, sr=inputs.SAMPLE_RATE)
    for row, i in enumerate(inputs.ENCODED_TOGETHER):
        key = f"encode_together/{row}"
        assert_codes(golden, f"encode/{i}", encoded.audio_codes[row], expected=key)


@parity.over("references")
def test_codes_of_references(golden):
    tokenizer = golden.model.speech_tokenizer
    for name, wave in inputs.references(golden.seed).items():
        codes = tokenizer.encode(wave, sr=inputs.SAMPLE_RATE).audio_codes[0]
        assert_codes(golden, f"reference/{name}", codes)


@pytest.mark.parametrize("resampler", ["plain", "soxr_hq"])
@parity.over("references")
def test_codes_of_a_human_voice(golden, resampler):
    """plain: both encoders get the same wave; soxr_hq: each its own package's."""
    if resampler == "plain":
        wave, rate = soundfile.read(make.RECORDING, dtype="float32")
        wave = inputs.resample(wave, rate)
    else:
        wave = audio_io.load(make.RECORDING)
    excused, frames = 0, 0
    for name, samples in {"3s": SECONDS * inputs.SAMPLE_RATE, "whole": None}.items():
        tokenizer = golden.model.speech_tokenizer
        (codes,) = tokenizer.encode(wave[:samples], sr=inputs.SAMPLE_RATE).audio_codes
        excused += assert_codes(golden, f"recording/{resampler}/{name}", codes)
        frames += len(codes)
    assert excused <= EXCUSED * frames
