"""Log-mels to codes, against the official encoder; windows, padding, what follows."""

import dataclasses

import contract
import inputs_25hz
import jax
import jax.numpy as jnp
import numpy as np
import parity
import parity_25hz
import pytest
from flax import nnx

from qwen3tts_jax.checkpoints import key_tables_25hz, weights
from qwen3tts_jax.config import tiny, tokenizer_25hz
from qwen3tts_jax.models.tokenizer_25hz import encoder as encoders
from qwen3tts_jax.models.tokenizer_25hz import features
from qwen3tts_jax.nn import tree

CONFIG = tokenizer_25hz.Tokenizer25HzConfig.from_hf(
    tiny.tokenizer_25hz_config()
).encoder
WINDOW = 2 * CONFIG.window  # mel frames
CODE = features.FRAMES_PER_CODE  # mel frames
EXCUSED = 1  # of all codes of a file, by near ties
QUANTITY = "25 Hz, before the quantiser"

log_mel = jax.jit(features.log_mel)
embed, codes_of, hidden_of, marked = (
    contract.quick_jit(method)
    for method in (
        encoders.Encoder.embed,
        encoders.Encoder.codes,
        encoders.Encoder.hidden,
        encoders.Encoder.__call__,
    )
)


def mels_of(waves, samples: int):
    """(log-mels, their lengths) of a batch; NaN behind the end of each."""
    rows = np.full((len(waves), samples), np.nan, np.float32)
    for row, wave in zip(rows, waves):
        row[: len(wave)] = wave
    counts = features.code_count(np.array([len(wave) for wave in waves]))
    mel = log_mel(rows, np.array([len(wave) for wave in waves]))
    return ended(mel, CODE * counts), jnp.asarray(CODE * counts)


def ended(mel, length, beyond=np.nan):
    """A batch of mels with `beyond` after the end of each row."""
    real = np.arange(mel.shape[1])[None, :, None] < np.asarray(length)[:, None, None]
    return jnp.where(real, mel, jnp.float32(beyond))


# -------------------------------------------------------------------- the official


def whole_batch(golden):
    """(encoder, log-mels, their lengths) of all waves of a golden file."""
    waves = inputs_25hz.waves(golden.seed)
    longest = features.code_count(max(map(len, waves))) * features.SAMPLES_PER_CODE
    return golden.parts["encoder"], *mels_of(waves, longest)


@parity_25hz.over()
def test_codes_are_the_official_ones(golden_25hz):
    """Of one ragged batch: official codes of each wave alone, and of the batch."""
    arrays = golden_25hz.arrays
    encoder, mel, length = whole_batch(golden_25hz)
    found = np.asarray(codes_of(encoder, mel, length))
    excused = 0
    for i, count in enumerate(length // CODE):
        theirs, ties = arrays[f"encode/{i}/codes"], arrays[f"encode/{i}/near_ties"]
        margins = arrays[f"encode/{i}/near_tie_margins"]
        ours = found[i, :count, None]
        excused += parity.assert_codes(ours, theirs[:, None], ties, margins)
        np.testing.assert_array_equal(arrays[f"encode_together/{i}/codes"], theirs)
        assert (found[i, count:] == 0).all()
    assert excused <= EXCUSED
    i = inputs_25hz.CONTINUED[-1]
    alone = codes_of(encoder, mel[i : i + 1, : length[i]], length[i : i + 1])
    np.testing.assert_array_equal(alone[0], found[i, : alone.shape[1]])


@parity_25hz.over()
def test_what_is_quantised_is_the_official_one(golden_25hz):
    encoder, mel, length = whole_batch(golden_25hz)
    found = embed(encoder, mel, length)
    scale = golden_25hz.arrays[f"encode/{len(length) - 1}/embedded"].std()
    for i, count in enumerate(length // CODE):
        quantity, theirs = QUANTITY, golden_25hz.arrays[f"encode/{i}/embedded"]
        ours = found[i, :count]
        parity.assert_close(quantity, ours, theirs, parity.CLOSE, scale=scale)


@parity_25hz.over()
def test_what_follows_is_the_official_one(golden_25hz):
    encoder, seed = golden_25hz.parts["encoder"], golden_25hz.seed
    waves = [inputs_25hz.waves(seed)[i] for i in inputs_25hz.CONTINUED]
    mel, length = mels_of(waves, 60 * features.SAMPLES_PER_CODE)
    found = marked(encoder, mel, length)
    for i, row, count in zip(inputs_25hz.CONTINUED, found, length // CODE + 2):
        theirs = golden_25hz.arrays[f"encode/{i}/hidden"]
        assert len(theirs) == count
        quantity = "25 Hz, what a language model hears"
        parity.assert_close(quantity, row[:count], theirs, parity.CLOSE)
        assert (row[count:] == 0).all()


# ------------------------------------------------------------------------ windows


@pytest.fixture(scope="module")
def encoder():
    return contract.random_part(lambda: encoders.Encoder(CONFIG, rngs=nnx.Rngs(0)))


def random_mel(rows: int, frames: int) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((rows, frames, CONFIG.mel_bins), np.float32))


# within a window, on its end, one code into the next, in its midst
LENGTHS = jnp.array([CODE * 3, WINDOW, WINDOW + CODE, WINDOW + CODE * 20, 0])


def test_what_lies_beyond_the_end_is_not_heard(encoder):
    mel = random_mel(len(LENGTHS), 2 * WINDOW)
    silent = ended(mel, LENGTHS, 0.0)
    for run in (embed, hidden_of):
        expected = run(encoder, silent, LENGTHS)
        for noisy in (mel, ended(mel, LENGTHS)):
            found = run(encoder, noisy, LENGTHS)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("run, rows", [(embed, (0, 3)), (hidden_of, (2,))])
def test_a_padded_row_gives_what_it_gives_alone(encoder, run, rows):
    """1e-5 of the largest value: float32 sums in another order."""
    mel = random_mel(len(LENGTHS), 2 * WINDOW)
    padded = run(encoder, ended(mel, LENGTHS), LENGTHS)
    for i in rows:
        alone = run(encoder, mel[i : i + 1, : LENGTHS[i]], LENGTHS[i : i + 1])[0]
        assert len(alone) == LENGTHS[i] // CODE
        difference = np.abs(padded[i, : len(alone)] - alone).max()
        assert difference < 1e-5 * np.abs(alone).max()


def test_windows_know_nothing_of_each_other(encoder):
    """Two windows are two waves: positions restart, attention ends, nothing leaks."""
    mel, whole = random_mel(1, 2 * WINDOW), jnp.array([2 * WINDOW])
    halves, half = mel.reshape(2, WINDOW, -1), jnp.array([WINDOW, WINDOW])
    for run in (embed, hidden_of):
        joined = run(encoder, mel, whole)[0]
        apart = run(encoder, halves, half).reshape(joined.shape)
        np.testing.assert_allclose(joined, apart, atol=1e-5)
        other = run(encoder, mel.at[:, WINDOW:].add(1.0), whole)[0]
        middle = WINDOW // CODE
        np.testing.assert_array_equal(joined[:middle], other[:middle])
        assert (joined[middle:] != other[middle:]).any(axis=-1).all()


def test_a_window_is_heard_as_a_whole(encoder):
    """Each code knows of every frame in its window, those after it too."""
    mel, length = random_mel(1, WINDOW), jnp.array([WINDOW])
    before = embed(encoder, mel, length)[0]
    for frame in (0, WINDOW - 1):
        after = embed(encoder, mel.at[:, frame].add(1.0), length)[0]
        assert (before != after).any(axis=-1).all()


def test_the_layers_after_the_quantiser_hear_codewords_alone(encoder):
    mel, length = random_mel(2, WINDOW), jnp.array([WINDOW, 8 * CODE])
    codes = codes_of(encoder, mel, length)
    vectors = encoder.quantizer.decode(codes)
    found = contract.quick_jit(encoders.Encoder.continued)(encoder, vectors, length)
    np.testing.assert_allclose(found, hidden_of(encoder, mel, length), atol=1e-6)


def test_gradients_pass_the_layers_after_the_quantiser(encoder):
    """As speech recognition will train them: straight-through to what is quantised."""
    mel, length = random_mel(1, 5 * CODE), jnp.array([5 * CODE])

    def loss(encoder):
        plain = encoder.embed(mel, length)
        chosen = encoder.quantizer.decode(encoder.quantizer.encode(plain))
        vectors = plain + jax.lax.stop_gradient(chosen - plain)
        return jnp.square(encoder.continued(vectors, length)).sum()

    gradient = contract.quick_jit(jax.grad(loss))(encoder)
    for part in (gradient.conv1.kernel, gradient.blocks[0].query.kernel):
        assert np.isfinite(part[...]).all() and np.abs(part[...]).max() > 0
    assert np.abs(gradient.quantizer.codewords[...]).max() == 0


def test_bfloat16_stays_bfloat16(encoder):
    half = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf
            if tree.leaf_path(path).endswith(weights.KEEP_FLOAT32)
            else leaf.astype(jnp.bfloat16)
        ),
        encoder,
    )
    mel, length = random_mel(1, 8 * CODE).astype(jnp.bfloat16), jnp.array([8 * CODE])
    found = jax.eval_shape(encoders.Encoder.hidden, half, mel, length)
    assert found.dtype == jnp.bfloat16
    assert (
        jax.eval_shape(encoders.Encoder.embed, half, mel, length).dtype == jnp.float32
    )


# ---------------------------------------------------------------------- key table

NARROW = dataclasses.replace(CONFIG, codebook_dim=16, vq_positions=False)


@pytest.mark.parametrize("config", [CONFIG, NARROW], ids=["tiny", "narrow codebook"])
def test_every_parameter_has_a_name_of_its_own(config):
    module = weights.abstract(encoders.Encoder, config)
    plan = weights.leaves(module, key_tables_25hz.encoder_rules(config))
    keys = [key for leaf in plan for key in leaf.keys]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("encoder.tokenizer.") for key in keys)
    prefix = "encoder.tokenizer.audio_quantizer.rvqs.0.layers.0.project_in.weight"
    assert (prefix in keys) == (config is NARROW)
    lengths = jnp.array([8 * CODE])
    shape = jax.eval_shape(encoders.Encoder.hidden, module, random_mel(1, 40), lengths)
    assert shape.shape == (1, 10, config.output_dim)


# ------------------------------------------------------------------ configuration

BAD = [
    (dict(n_window=101), "n_window 101, expected an even number"),
    (dict(n_ctx=98), "n_window 100.*at most n_ctx 98"),
    (dict(audio_vq_layers=0), "audio_vq_layers 0, expected 1 to n_layer 3"),
    (dict(n_head=5), "n_state 32, expected a multiple of n_head 5"),
    (dict(audio_vq_ds_rate=4), "audio_vq_ds_rate: got 4, expected 2"),
    (dict(audio_vq_type="RVQ"), "audio_vq_type: got 'RVQ', expected 'GRVQ'"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_configurations_are_one_clear_error(changes, message):
    values = tiny.tokenizer_25hz_config()["encoder_config"] | changes
    with pytest.raises(ValueError, match=message):
        tokenizer_25hz.Tokenizer25HzEncoderConfig.from_hf(values)
