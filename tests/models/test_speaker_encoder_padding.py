"""The speaker encoder gives a padded row what it gives the same row alone."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.models import speaker_encoder

CONFIG = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("base")).speaker_encoder
LENGTHS = (40, 23, 5)  # 5: the shortest that the widest reflection allows
# float32 means over fewer or more frames, through some 20 layers
SAME = dict(rtol=1e-4, atol=1e-5)

embed = contract.quick_jit(speaker_encoder.SpeakerEncoder.__call__)


@pytest.fixture(scope="module")
def encoder():
    return contract.random_part(
        lambda: speaker_encoder.SpeakerEncoder(CONFIG, rngs=nnx.Rngs(0))
    )


@pytest.fixture(scope="module")
def mel():
    """Float32 [B, 40, M], with the mean and spread of a log-mel."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((len(LENGTHS), LENGTHS[0], CONFIG.mel_bins), np.float32)
    return 2 * noise - 4


@pytest.fixture(scope="module")
def alone(encoder, mel):
    """Each row as long as it is."""
    return [
        embed(encoder, jnp.asarray(row[None, :length]), jnp.asarray([length]))[0]
        for row, length in zip(mel, LENGTHS)
    ]


def padded(encoder, mel, padding):
    ended = np.arange(LENGTHS[0])[None] >= np.asarray(LENGTHS)[:, None]
    x = np.where(ended[:, :, None], np.float32(padding), mel)
    return embed(encoder, jnp.asarray(x), jnp.asarray(LENGTHS))


@pytest.mark.parametrize("padding", [0.0, -11.5, 1e6, np.nan])
def test_a_padded_row_gives_what_it_gives_alone(encoder, mel, alone, padding):
    for got, expected in zip(padded(encoder, mel, padding), alone):
        np.testing.assert_allclose(got, expected, **SAME)


def test_what_stands_in_the_padding_changes_no_bit(encoder, mel):
    np.testing.assert_array_equal(
        padded(encoder, mel, 0.0), padded(encoder, mel, np.nan)
    )


def test_every_frame_of_a_row_counts(encoder, mel, alone):
    """Also the last one, and one at the edge that a reflection shows twice."""
    for at in (0, 1, 20, 39):
        changed = mel.copy()
        changed[0, at] += 1
        row = padded(encoder, changed, 0.0)[0]
        assert np.abs(row - alone[0]).max() > 10 * SAME["rtol"] * np.abs(alone[0]).max()


def test_gradients_do_not_see_the_padding(encoder, mel):
    """Also where the padding is NaN: `where` passes NaN on if its branches hold it."""
    weights = np.random.default_rng(1).standard_normal((len(LENGTHS), CONFIG.dim))

    @contract.quick_jit
    @jax.grad
    def gradient(mel):
        y = encoder(mel, jnp.asarray(LENGTHS))
        return jnp.vdot(jnp.asarray(weights, jnp.float32), y)

    ended = np.arange(LENGTHS[0])[None] >= np.asarray(LENGTHS)[:, None]
    g = np.asarray(gradient(jnp.where(ended[:, :, None], jnp.nan, mel)))
    assert np.isfinite(g).all()
    assert (g[ended] == 0).all() and (g[~ended] != 0).any(axis=-1).all()
