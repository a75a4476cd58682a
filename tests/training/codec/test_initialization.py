"""A fresh codec passes on what it hears."""

import functools

import codec_examples as made
import examples
import jax
import numpy as np

from qwen3tts_jax.training.codec import initialization as codec_start

# no crop is quantised: the codebooks are still empty
RECIPE = made.recipe(bypass=1.0, dropout=0.0)


@functools.cache
def heard() -> tuple[np.ndarray, ...]:
    """What it makes of tones, of the same backwards, and of silence."""

    def reconstruct(key, batch):
        parts = RECIPE.unflatten(RECIPE.fresh(key))
        return RECIPE.generator(parts, batch, key).wave

    tones = made.batch()
    lowered = jax.jit(reconstruct).lower(jax.random.key(0), tones)
    compiled = lowered.compile(compiler_options=examples.QUICK)
    wave = tones["wave"]
    batches = [tones | dict(wave=w) for w in (wave, wave[:, ::-1], 0 * wave)]
    return tuple(np.asarray(compiled(jax.random.key(0), b)) for b in batches)


def test_waves_have_the_size_of_speech():
    for wave in heard():
        assert 0.01 < wave.std() < 0.5


def test_what_goes_in_matters():
    tones, *others = heard()
    for wave in others:
        assert np.std(tones - wave) > 0.1 * np.std(tones)


def test_discriminators_and_codebooks_stay():
    before = made.start(RECIPE).params
    after = codec_start.scaled(before, jax.random.key(1))
    assert set(after) == set(before)
    kept = [path for path in before if after[path] is before[path]]
    for still in ("discriminators.", "encoder.quantizer.acoustic.embedding_sum"):
        assert any(path.startswith(still) for path in kept)
    for path in set(before) - set(kept):
        assert path.startswith(("encoder.", "decoder.", "projection."))
        assert after[path].shape == before[path].shape
