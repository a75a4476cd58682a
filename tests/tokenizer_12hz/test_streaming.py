"""The 12 Hz codec: streaming, causality, and what lies beyond the end of a row."""

import dataclasses

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from qwen3tts_jax import config as configs
from qwen3tts_jax import speech_tokenizer
from qwen3tts_jax.tokenizer_12hz import decoder as decoders

FRAME = 1920  # samples
CONFIG = configs.Tokenizer12HzConfig.from_hf(tiny.tokenizer_config())
QUANTIZERS = CONFIG.quantizers


@pytest.fixture(scope="module")
def codec(checkpoint):
    """A tiny codec whose waves are loud and seldom clipped."""
    directory = checkpoint("base") / "speech_tokenizer"
    return speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(directory)


def random_codes(frames, batch=1):
    rng = np.random.default_rng(0)
    size = CONFIG.decoder.codebook_size - 1  # check_causal adds 1
    return jnp.asarray(rng.integers(0, size, (batch, frames, QUANTIZERS)))


def random_wave(samples, batch=1):
    """Noise under a moving envelope, about as loud as speech."""
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.standard_normal((batch, samples), np.float32)
    return wave * np.abs(np.sin(np.arange(samples, dtype=np.float32) / 3000))


# ----------------------------------------------------------------------- decoder


def test_decoder_steps_are_the_whole(codec):
    """63 frames: more than twice the attention window of 24.

    1e-5 of the loudest sample: float32 sums in another order, through some 30 layers.
    """
    assert CONFIG.decoder.transformer.window == 24
    decoder, codes = codec.decoder, random_codes(63)
    wave = jax.jit(decoders.Decoder.decode)(decoder, codes)
    assert wave.shape == (1, 63 * FRAME)
    assert np.std(wave) > 0.1 and (np.abs(wave) < 1).mean() > 0.95
    contract.check_streaming(
        decoders.Decoder.step,
        decoder.init_state(1),
        codes,
        decoders.Decoder.decode,
        part=decoder,
        gradients=False,
    )


def test_decoder_gradients_stream_too():
    """On a smaller decoder with 6 samples a frame and a window of 5 frames.

    1e-4 of an array's largest gradient: each sums over all frames and samples.
    """
    transformer = dataclasses.replace(CONFIG.decoder.transformer, layers=1, window=5)
    config = dataclasses.replace(
        CONFIG.decoder,
        transformer=transformer,
        upsampling_ratios=(2,),
        upsample_rates=(3,),
        decoder_dim=16,
        codebook_size=32,
    )
    decoder = contract.random_part(lambda: decoders.Decoder(config, rngs=nnx.Rngs(0)))
    # small activations: the snakes' sines turn little, and no sample is clipped
    decoder = jax.tree.map(lambda leaf: leaf / leaf.ndim, decoder)
    codes = random_codes(21) % 32
    wave = jax.jit(decoders.Decoder.decode)(decoder, codes)
    assert np.std(wave) > 0.01 and np.abs(wave).max() < 1
    contract.check_streaming(
        decoders.Decoder.step,
        decoder.init_state(1),
        codes,
        decoders.Decoder.decode,
        part=decoder,
        chunks=(3,),  # the parts have theirs; this is about what joins them
        tolerance=1e-4,
    )


def test_a_frame_is_1920_samples_and_no_look_ahead(codec):
    contract.check_causal(codec.decoder.decode, random_codes(6), at=4, same=4 * FRAME)


def test_decoder_rows_do_not_mix(codec):
    codes = random_codes(6, batch=2)
    decode = jax.jit(codec.decoder.decode)
    other = codes.at[1].add(1)
    np.testing.assert_array_equal(decode(codes)[0], decode(other)[0])


# ----------------------------------------------------------------------- encoder


def encode(codec, wave, length):
    run = jax.jit(type(codec.encoder).__call__, static_argnums=3)
    return run(codec.encoder, jnp.asarray(wave), jnp.asarray(length), QUANTIZERS)


@pytest.mark.parametrize("beyond", [0.7, np.nan])
def test_what_lies_beyond_the_end_is_not_heard(codec, beyond):
    """Ends inside a frame, inside half a frame, on a frame, and at one sample."""
    length = np.array([5 * FRAME - 700, 3 * FRAME + 1000, 4 * FRAME, 1])
    wave = random_wave(6 * FRAME, batch=4)
    ended = np.arange(6 * FRAME)[None] >= length[:, None]
    silent = encode(codec, np.where(ended, 0, wave), length)
    noisy = encode(codec, np.where(ended, np.float32(beyond), wave), length)
    for row, frames in enumerate(-(-length // FRAME)):
        np.testing.assert_array_equal(noisy[row, :frames], silent[row, :frames])


def test_longer_padding_gives_the_same_codes(codec):
    length = 2 * FRAME + 1500
    wave = random_wave(6 * FRAME)
    short = encode(codec, wave[:, : 3 * FRAME], np.array([length]))
    long = encode(codec, wave, np.array([length]))
    np.testing.assert_array_equal(short, long[:, :3])
    whole = encode(codec, wave, np.array([6 * FRAME]))
    assert (whole[:, :3] != short).any()  # the end matters inside its own frame


def test_codes_depend_on_the_past_only(codec):
    """A frame's codes know its own 1920 samples, and none after."""
    length = jnp.asarray([6 * FRAME])
    contract.check_causal(
        lambda wave: codec.encoder(wave, length, QUANTIZERS),
        jnp.asarray(random_wave(6 * FRAME)),
        at=4 * FRAME,
        same=4,
    )


def test_fewer_codebooks_are_the_first_ones(codec):
    length = jnp.asarray([3 * FRAME])
    wave = jnp.asarray(random_wave(3 * FRAME))
    embedded = jax.jit(codec.encoder.embed)(wave, length)
    first = codec.encoder.quantizer.encode(embedded, 4)
    np.testing.assert_array_equal(first, encode(codec, wave, length)[:, :, :4])
