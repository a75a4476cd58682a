"""A codec in pieces: log mels that see no future, halves that fold into one decoder."""

import functools

import codec_examples as made
import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3tts_jax.config import small, tokenizer_12hz
from qwen3tts_jax.training.codec import generator as codec
from qwen3tts_jax.training.codec import initialization as codec_start
from qwen3tts_jax.training.codec import mel_scaffold
from qwen3tts_jax.training.codec import train_step as codec_state

CONFIG = made.config_in_pieces()
HALVES = mel_scaffold.Halves.of(CONFIG.decoder)
STEPS = 12
# a random head and embed double float32's rounding more than once
FOLDED = 2e-4  # of the wave's deviation
OWN = dict(
    mel=dict(log_mel=1.0, size=0.1, commitment=0.25),
    vocoder=dict(mel=15.0),
    join=dict(mel=15.0),
    encoder=dict(distillation=1.0),
)


def recipe(train: str, **settings) -> codec_state.Recipe:
    none = dict.fromkeys(made.WEIGHTS, 0.0)
    return made.recipe(
        whole=CONFIG,
        weights=none | OWN[train],
        teacher_dim=0,
        train=train,
        scaffold=True,
        **settings,
    )


@functools.cache
def fresh(seed: int = 0) -> dict:
    """Path -> array, the same of every piece."""
    return jax.jit(recipe("mel").fresh)(jax.random.key(seed))


def batch(frames: int = 6) -> dict:
    return made.without(made.batch(2, frames), "teacher", "frames")


@functools.cache
def trained(train: str):
    """(parameters before, after, figures of each step)."""
    one = recipe(train, **(dict(free_steps=4, noise=0.1) if train == "mel" else {}))
    state = jax.jit(one.init)(fresh(), jax.random.key(1))
    step = jax.jit(one.step).lower(state, batch())
    step, figures = step.compile(compiler_options=examples.QUICK), []
    for _ in range(STEPS):
        state, metrics = step(state, batch())
        figures.append({k: np.asarray(v) for k, v in metrics.items()})
    return fresh(), state.params, figures


def differ(one, other) -> bool:
    return not np.array_equal(one, other)


# ---------------------------------------------------------------------------- mels


def test_log_mels_see_no_sample_of_the_future_and_the_last_of_their_own():
    wave = made.batch(1, 2)["wave"]
    before = np.asarray(mel_scaffold.log_mel(wave))
    assert before.shape == (1, 16, mel_scaffold.BINS)
    cut = 5 * mel_scaffold.HOP
    for first, changed in ((cut, 5), (cut - 20, 4)):
        other = wave.copy()
        other[:, first:] = 0.5 * (-1) ** np.arange(wave.shape[1] - first)
        after = np.asarray(mel_scaffold.log_mel(other))
        same = [bool((a == b).all()) for a, b in zip(before[0], after[0])]
        assert same[:changed] == [True] * changed and not any(
            same[changed : changed + 3]
        )


def test_silence_is_a_number_like_any_other():
    mel = mel_scaffold.log_mel(jnp.zeros((1, 1920)))
    assert np.isfinite(mel).all() and np.ptp(mel) < 1e-5


def test_the_filter_bank_takes_apart_and_puts_together():
    """Overlapping blocks, transformed and back by the same kernel."""
    bands = 16
    kernel = mel_scaffold.cosine_transform(bands)
    both = np.concatenate([kernel[1], kernel[0]], axis=1)  # [band, 2 * bands samples]
    wave = np.random.default_rng(0).normal(size=8 * bands)
    blocks = [wave[i : i + 2 * bands] for i in range(0, len(wave) - bands, bands)]
    made_ = np.zeros_like(wave)
    for i, block in enumerate(blocks):
        made_[i * bands : (i + 2) * bands] += (both @ block) @ both
    np.testing.assert_allclose(made_[bands:-bands], wave[bands:-bands], atol=1e-5)


def test_a_fresh_vocoder_has_the_filter_bank():
    kernel = fresh()["decoder.blocks.0.up.kernel"][:, :, :, 0]
    assert (kernel == mel_scaffold.cosine_transform(16)).all()


# -------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("train", codec.IN_PIECES)
def test_each_piece_learns_its_own_parameters_only(train):
    before, after, figures = trained(train)
    one = recipe(train)
    moved = set(one.trained())
    for path in moved:
        zero = before[path].ndim == 1 and not np.any(before[path])
        assert differ(before[path], after[path]) or zero, path
    for path in set(before) - moved:
        statistic = path.endswith(("embedding_sum", "cluster_usage", "initialized"))
        learnt = statistic and train == "mel" and not path.startswith("scaffold")
        assert differ(before[path], after[path]) == learnt, path
    name = dict(mel="log_mel", encoder="distillation").get(train, "mel")
    assert figures[-1][name] < 0.9 * figures[0][name]


def test_the_halves_of_the_decoder_are_trained_apart():
    slow, fast = (set(recipe(train).trained()) for train in ("mel", "vocoder"))
    decoder = set(recipe("join").trained())
    assert not slow & fast
    assert {p for p in slow | fast if p.startswith("decoder.")} == decoder


def test_what_is_distilled_can_be_reached():
    """The same vectors on both sides: nothing is left to explain."""
    one = recipe("encoder")
    parts = one.unflatten(fresh())
    wave = jnp.asarray(batch()["wave"])
    vectors = parts.scaffold.encoder(mel_scaffold.log_mel(wave))

    class Same:
        def embed(self, wave, length):
            return vectors

    generator = one.generator
    own = type(generator)(CONFIG, one.settings, "float32")
    object.__setattr__(own, "_cast", lambda part: Same())
    made_ = own._distil(parts, batch())
    assert float(made_.losses["distillation"]) == 0.0


def test_codes_to_mels_to_wave_is_the_folded_decoder():
    """fold: the two trained halves one after the other, and the one decoder."""
    _, slow, _ = trained("mel")
    _, fast, _ = trained("vocoder")
    codes = np.random.default_rng(0).integers(0, made.CODES, (2, 5, 16))

    def in_two(slow, fast):
        first, second = (recipe("join").unflatten(p) for p in (slow, fast))
        state = first.decoder.init_state(2)
        vectors = first.decoder.quantizer.decode(codes)
        x, *_ = first.decoder.contextualize(vectors, state)
        x, _ = first.decoder.upsample_through(x, state, stop=HALVES.slow)
        x = second.scaffold.embed(first.scaffold.head(x))
        return second.decoder.synthesize(x, state, start=HALVES.slow)[0]

    joined = mel_scaffold.fold(slow, fast, HALVES)
    whole = recipe("join").unflatten(joined).decoder.decode
    expected = jax.jit(in_two, compiler_options=examples.QUICK)(slow, fast)
    found = jax.jit(whole, compiler_options=examples.QUICK)(codes)
    spread = float(np.std(expected))
    assert spread > 1e-3
    np.testing.assert_allclose(
        found, np.clip(expected, -1, 1), rtol=0, atol=FOLDED * spread
    )
    assert set(joined) == set(slow)


def test_what_cannot_be_folded_is_refused():
    slow, fast = dict(fresh()), dict(fresh())
    slow["scaffold.head.kernel"] = jnp.zeros_like(slow["scaffold.head.kernel"])
    with pytest.raises(ValueError, match="expected an invertible one"):
        mel_scaffold.fold(slow, fast, HALVES)


def test_a_decoder_that_does_not_pass_through_50_hz_is_refused():
    with pytest.raises(ValueError, match="cuts the decoder at 50 Hz"):
        mel_scaffold.Halves.of(made.config().decoder)


def test_the_small_codec_can_be_trained_in_pieces():
    config = tokenizer_12hz.Tokenizer12HzConfig.from_hf(small.tokenizer_config())
    assert mel_scaffold.Halves.of(config.decoder).slow == 2
    rates = config.decoder.upsample_rates
    assert config.decoder.decoder_dim == rates[-1]  # a filter bank fits


def test_scaled_weights_leave_the_scaffold_alive():
    params = codec_start.scaled(fresh(), jax.random.key(3))
    assert float(jnp.std(params["scaffold.head.kernel"])) > 0.05
