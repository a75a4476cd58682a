"""The 12 Hz codec: streaming, causality, and what lies beyond the end of a row."""

import dataclasses

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax import speech_tokenizer
from qwen3tts_jax.config import tiny, tokenizer_12hz
from qwen3tts_jax.models.tokenizer_12hz import decoder as decoders
from qwen3tts_jax.nn import attention

FRAME = 1920  # samples
CONFIG = tokenizer_12hz.Tokenizer12HzConfig.from_hf(tiny.tokenizer_config())
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
    wave = contract.check_streaming(
        decoders.Decoder.step,
        codec.decoder.init_state(1),
        random_codes(63),
        decoders.Decoder.decode,
        part=codec.decoder,
        gradients=False,
    )
    assert wave.shape == (1, 63 * FRAME)
    assert np.std(wave) > 0.1 and (np.abs(wave) < 1).mean() > 0.95


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
    wave = contract.check_streaming(
        decoders.Decoder.step,
        decoder.init_state(1),
        random_codes(21) % 32,
        decoders.Decoder.decode,
        part=decoder,
        chunks=(3,),  # the parts have theirs; this is about what joins them
        tolerance=1e-4,
    )
    assert np.std(wave) > 0.01 and np.abs(wave).max() < 1


def test_a_frame_is_1920_samples_and_no_look_ahead(codec):
    contract.check_causal(codec.decoder.decode, random_codes(6), at=4, same=4 * FRAME)


# ----------------------------------------------------------------------- encoder


def encode(codec, wave, length):
    run = contract.quick_jit(type(codec.encoder).__call__, static_argnums=3)
    return run(codec.encoder, jnp.asarray(wave), jnp.asarray(length), QUANTIZERS)


def embed_alone(encoder, wave):
    """The encoder without masks: a wave [1, W] is as long as it is.

    Each strided convolution fills its last window with zeros, the last one repeats its
    first input before the start and its last one after the end.
    """
    x = encoder.first(wave[:, :, None])
    for block in encoder.blocks:
        for unit in block.units:
            x = unit(x)
        missing = -x.shape[1] % block.down.stride
        x = block.down(jnp.pad(jax.nn.elu(x), ((0, 0), (0, missing), (0, 0))))
    x = encoder.last(jax.nn.elu(x))
    steps = x.shape[1]
    positions, mask = jnp.arange(steps)[None], attention.causal_mask(steps)
    x, _ = encoder.transformer(x, positions, mask)
    before = jnp.repeat(x[:, :1], encoder.down.history, axis=1)
    after = jnp.repeat(x[:, -1:], steps % encoder.down.stride, axis=1)
    return encoder.down.step(jnp.concatenate([x, after], axis=1), before)[0]


# ends inside a frame, inside the half of one, on a frame, and at one sample
LENGTHS = np.array([5 * FRAME - 700, 3 * FRAME + 900, 4 * FRAME, 1])


def test_a_padded_wave_gives_what_it_gives_alone(codec):
    """1e-4 of the largest value: float32 through some 20 layers."""
    wave = jnp.asarray(random_wave(6 * FRAME, batch=4))
    padded = contract.quick_jit(codec.encoder.embed)(wave, jnp.asarray(LENGTHS))
    alone = contract.quick_jit(embed_alone)
    for row, length in enumerate(LENGTHS[:2]):
        expected = alone(codec.encoder, wave[row : row + 1, :length])[0]
        frames = -(-length // FRAME)
        assert len(expected) == frames
        difference = np.abs(padded[row, :frames] - expected).max()
        assert difference < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("beyond", [0.7, np.nan])
def test_what_lies_beyond_the_end_is_not_heard(codec, beyond):
    wave = random_wave(6 * FRAME, batch=4)
    ended = np.arange(6 * FRAME)[None] >= LENGTHS[:, None]
    silent = encode(codec, np.where(ended, 0, wave), LENGTHS)
    noisy = encode(codec, np.where(ended, np.float32(beyond), wave), LENGTHS)
    for row, frames in enumerate(-(-LENGTHS // FRAME)):
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
    embedded = contract.quick_jit(codec.encoder.embed)(wave, length)
    first = codec.encoder.quantizer.encode(embedded, 4)
    np.testing.assert_array_equal(first, encode(codec, wave, length)[:, :, :4])
