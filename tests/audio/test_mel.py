"""The log-mel spectrogram and its filters, against official values.

golden/log_mel.npz holds a fixed 0.3 s signal (a glide, a 140 Hz buzz and noise, as
16-bit PCM at 24 kHz), its log-mel by `mel_spectrogram` of qwen_tts 0.1.1 on the CPU
(torch 2.13; n_fft 1024, hop 256, 128 bins, 0..12000 Hz), and the sum, first bin, peak
and place of each filter of librosa.filters.mel.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3tts_jax.audio import mel as log_mels

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "log_mel.npz"


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def test_mel_filterbank_equals_librosa(golden):
    bank = log_mels.mel_filterbank()
    assert bank.shape == (128, 513) and bank.dtype == np.float32
    np.testing.assert_allclose(bank.sum(1), golden["filter_sum"], atol=1e-7)
    np.testing.assert_allclose(bank.max(1), golden["filter_peak"], atol=1e-8)
    np.testing.assert_array_equal(bank.argmax(1), golden["filter_at"])
    np.testing.assert_array_equal((bank > 0).argmax(1), golden["filter_first"])


def test_log_mel_equals_official(golden):
    wave = golden["pcm_24k"].astype(np.float32) / 2**15
    result = jax.jit(log_mels.log_mel)(wave[None], np.array([len(wave)]))
    assert result.shape == (1, 28, 128) and result.dtype == jnp.float32
    # Two float32 Fourier transforms differ by about 1e-5 of the spread.
    error = np.abs(result[0] - golden["log_mel"]).max() / golden["log_mel"].std()
    assert error < 1e-4


def test_log_mel_of_padded_rows_is_that_of_each_alone(golden):
    wave = golden["pcm_24k"].astype(np.float32) / 2**15
    lengths = [log_mels.MIN_REFERENCE_SAMPLES, 5001, 0, len(wave)]
    rows = np.full((len(lengths), len(wave) + 300), np.nan, np.float32)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = wave[:length]
    log_mel = jax.jit(log_mels.log_mel)
    batch = log_mel(rows, np.array(lengths))
    for mel, length in zip(batch, lengths, strict=True):
        frames = length // log_mels.HOP
        alone = log_mel(wave[None, :length], np.array([length]))[0]
        assert alone.shape == (frames, 128)
        np.testing.assert_allclose(mel[:frames], alone, atol=1e-5)
        np.testing.assert_array_equal(mel[frames:], 0)


def test_log_mel_gradient_stays_inside_the_row(golden):
    wave = np.full((1, 3000), np.nan, np.float32)
    wave[0, :1280] = golden["pcm_24k"][:1280].astype(np.float32) / 2**15
    loss = jax.jit(lambda wave: log_mels.log_mel(wave, jnp.array([1280])).sum())
    gradient = np.asarray(jax.jit(jax.grad(loss))(wave))[0]
    assert np.isfinite(gradient).all() and np.abs(gradient[1200:1280]).max() > 0
    np.testing.assert_array_equal(gradient[1280:], 0)


def test_log_mel_compiles_once_for_all_lengths():
    traces = []

    @jax.jit
    def counted(wave, length):
        traces.append(wave.shape)
        return log_mels.log_mel(wave, length)

    for length in (1280, 2000, 3000):
        counted(np.zeros((1, 3000), np.float32), np.array([length]))
    assert len(traces) == 1


def test_log_mel_of_silence_is_the_floor():
    log_mel = jax.jit(log_mels.log_mel)
    mel = log_mel(np.zeros((1, 2560), np.float32), np.array([2560]))
    np.testing.assert_allclose(mel, np.full((1, 10, 128), math.log(1e-5)), rtol=1e-6)
    for samples in (0, 255):
        assert log_mel(np.zeros((1, samples)), np.array([samples])).size == 0
    assert log_mel(np.zeros((0, 512)), np.zeros(0, int)).shape == (0, 2, 128)
