"""What the 25 Hz tokenizer hears of a wave, against the official front ends and SoX."""

import functools

import inputs_25hz
import jax
import jax.numpy as jnp
import numpy as np
import parity_25hz
import pytest

from qwen3tts_jax.models.tokenizer_25hz import features

# Absolute, of logarithms of about 1: what float32 leaves of faint bands.
MEL_CLOSE = 1e-4
FBANK_CLOSE = 1e-3  # torchaudio's filters are float32: up to 2e-4 in narrow bands

log_mel = jax.jit(features.log_mel)


def batch(waves, samples: int, beyond=0.0):
    """(float32 [B, samples], int [B]), `beyond` after the end of each."""
    rows = np.full((len(waves), samples), beyond, np.float32)
    for row, wave in zip(rows, waves):
        row[: len(wave)] = wave
    return jnp.asarray(rows), jnp.asarray([len(wave) for wave in waves])


@parity_25hz.over()
def test_log_mel_is_the_official_one(golden_25hz):
    """Of a ragged batch: the official one is of each wave alone."""
    waves = inputs_25hz.waves(golden_25hz.seed)
    waves = [waves[i] for i in inputs_25hz.FEATURED]
    mels = np.asarray(log_mel(*batch(waves, 12 * 640, np.nan)))
    for i, mel, wave in zip(inputs_25hz.FEATURED, mels, waves):
        theirs = golden_25hz.arrays[f"features/log_mel/{i}"]
        frames = features.FRAMES_PER_CODE * features.code_count(len(wave))
        assert len(theirs) == frames
        np.testing.assert_allclose(mel[:frames], theirs, atol=MEL_CLOSE)
        assert (mel[frames:] == 0).all()


@parity_25hz.over()
def test_features_of_a_voice_are_the_official_ones(golden_25hz):
    wave = inputs_25hz.waves(golden_25hz.seed)[inputs_25hz.REFERENCE]
    arrays = golden_25hz.arrays
    bank, mel = features.fbank(wave), features.reference_mel(wave)
    assert bank.dtype == mel.dtype == np.float32
    np.testing.assert_allclose(bank, arrays["features/fbank"], atol=FBANK_CLOSE)
    mel_file = arrays["features/reference_mel"]
    np.testing.assert_allclose(mel, mel_file, atol=MEL_CLOSE)


def test_whole_rows_need_no_lengths():
    wave, length = batch(inputs_25hz.waves(1)[:1], 4480)
    mel = jax.jit(functools.partial(features.log_mel, bins=80))
    np.testing.assert_allclose(mel(wave), mel(wave, length), atol=1e-6)


def test_codes_begun_are_codes():
    assert [features.code_count(n) for n in (0, 1, 640, 641)] == [0, 1, 1, 2]


# What `sox -t f32 -r 16000 -c 1 - -t raw -b 32 - norm -6` (14.4.2) makes, in 2^-24.
SOX = [
    ([0.5, -0.25, 0.1, 1e-9], [8408526, -4204263, 1681705, 0]),
    ([1.5, -3.0, 0.2, 1.0], [8408526, -8408526, 1681705, 8408526]),  # clipped before
    ([-3e-8, 1e-8, 2e-8, -1e-8], [-8408526, 2759048, 5518096, -2759048]),
    ([-0.8, 0.3, 0.80000001, 1e-4], [-8408526, 3153198, 8408526, 1051]),
    ([0.0, 0.0], [0, 0]),
]


@pytest.mark.parametrize("wave, expected", SOX)
def test_the_level_is_that_of_sox(wave, expected):
    level = features.normalize(np.float32(wave))
    assert level.dtype == np.float32
    np.testing.assert_array_equal(level * 2**24, expected)


def test_too_short_waves_are_one_clear_error():
    with pytest.raises(ValueError, match="399 samples.*at least 400"):
        features.fbank(np.zeros(399, np.float32))
    with pytest.raises(ValueError, match="799 samples.*at least 800"):
        features.reference_mel(np.zeros(799, np.float32))
    shortest = np.zeros(features.MIN_REFERENCE_SAMPLES, np.float32)
    assert features.reference_mel(shortest).shape == (5, 80)
    assert features.fbank(shortest).shape == (3, 80)
