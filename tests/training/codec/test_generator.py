"""The codec's step: who learns from what, what stays, and what a trained codec is."""

import functools

import codec_examples as made
import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3tts_jax import speech_tokenizer
from qwen3tts_jax.config import tiny
from qwen3tts_jax.training.codec import generator as codec
from qwen3tts_jax.training.codec import losses as codec_losses
from qwen3tts_jax.training.codec import train_step as codec_state

STEPS = 40
CLOSE = 1e-4  # of the largest sample: random weights make float32 errors grow
ROWS = 6
BATCH = made.batch(ROWS, 6)
LAST = ("parts.0.stack.convs.2.kernel", "parts.1.stack.convs.5.kernel")  # give scores


def compiled(recipe: codec_state.Recipe, state, batch):
    step = jax.jit(recipe.step).lower(state, batch)
    return step.compile(compiler_options=examples.QUICK)


@functools.cache
def trained():
    """(recipe, first state, last state, figures of each step) on one batch."""
    recipe = made.recipe(heard=3, dropout=0.5, bypass=0.25, optim=dict(ema=0.9))
    first = state = made.start(recipe)
    step, figures = compiled(recipe, state, made.batch()), []
    for _ in range(STEPS):
        state, metrics = step(state, made.batch())
        figures.append({k: np.asarray(v) for k, v in metrics.items()})
    return recipe, first, state, figures


def moved(before: dict, after: dict, pattern: str) -> list[bool]:
    paths = [path for path in before if pattern in path]
    assert paths, pattern
    return [differ(before[path], after[path]) for path in paths]


def differ(one, other) -> bool:
    """By numpy, which needs no program for each shape."""
    return not np.array_equal(one, other)


def test_losses_fall():
    figures = trained()[3]
    for name in ("loss", "mel", "semantic"):
        assert figures[-1][name] < 0.8 * figures[0][name], name
    assert all(np.isfinite(f["loss"]) for f in figures)


def test_both_sides_learn_and_the_rest_stays():
    recipe, first, last, _ = trained()
    for path in (*recipe.trained(), *recipe.judging()):
        still = first.params[path].ndim == 1 and not np.any(first.params[path])
        changed = differ(first.params[path], last.params[path])
        assert changed or (still and path.endswith("bias")), path
    named = {*recipe.trained(), *recipe.judging()}
    for path in set(first.params) - named:
        learnt = path.endswith(("embedding_sum", "cluster_usage", "initialized"))
        expected = learnt and path.startswith(("encoder", "decoder"))
        assert differ(first.params[path], last.params[path]) == expected, path


def test_codebooks_are_filled_and_shared():
    recipe, _, last, figures = trained()
    for name, count in dict(semantic=1, acoustic=15).items():
        path = f"quantizer.{name}"
        for field in ("embedding_sum", "cluster_usage"):
            ours = last.params[f"encoder.{path}.{field}"][:count]
            assert (ours == last.params[f"decoder.{path}.{field}"]).all()
        done = last.params[f"encoder.{path}.initialized"]
        assert (done[:count] == 1).all()
    # a book is filled when the one above it has words: one more with each step
    full = np.array([f["replaced"] for f in figures])  # [steps, 16]
    assert (full[0] == 1).all()
    for step in range(1, 15):
        assert (full[step][step + 1 :] == 1).all() and full[step][step] < 1
    assert figures[-1]["usage"].shape == figures[-1]["perplexity"].shape == (16,)
    assert (figures[-1]["perplexity"] > 1.5).all()


def test_averages_follow_the_generator():
    recipe, first, last, _ = trained()
    assert set(last.ema) == set(recipe.trained())
    path = "decoder.wave_conv.kernel"
    far = jnp.abs(last.params[path] - first.params[path]).max()
    assert 0 < jnp.abs(last.ema[path] - last.params[path]).max() < far


def tokenizer(recipe, state):
    values = tiny.tokenizer_config()
    parts = recipe.model(state)
    return speech_tokenizer.Qwen3TTSTokenizer(
        recipe.config, parts.encoder, parts.decoder, hf_config=values, source=None
    )


def test_what_is_heard_in_training_is_what_the_tokenizer_gives():
    recipe, _, last, _ = trained()
    wave = made.batch()["wave"]
    generator = jax.jit(recipe.generator, compiler_options=examples.QUICK)
    whole = generator(recipe.model(last), made.batch(), None)
    own = tokenizer(recipe, last)
    codes = own.encode(list(wave), sr=24_000)
    for row, found in enumerate(codes.audio_codes):
        for name, part in dict(semantic=slice(0, 1), acoustic=slice(1, 16)).items():
            expected = whole.quantized[name].codes[row]
            assert (found[:, part] == expected).all()
    decoded, _ = own.decode(codes)
    clipped = np.clip(whole.wave, -1, 1)
    assert np.allclose(np.stack(decoded), clipped, atol=2e-5)


def test_a_trained_codec_is_causal_and_streams_exactly():
    recipe, _, last, _ = trained()
    own = tokenizer(recipe, last)
    wave = made.batch(1, 8, seed=3)["wave"][0]
    [codes] = own.encode(wave, sr=24_000).audio_codes
    changed = wave.copy()
    changed[5 * made.HOP :] = 0.1
    [other] = own.encode(changed, sr=24_000).audio_codes
    assert (codes[:5] == other[:5]).all()
    [whole], _ = own.decode([codes])
    state, heard = own.empty_state(), []
    for start, stop in ((0, 1), (1, 4), (4, 8)):
        piece, _ = own.decode([codes[start:stop]], states=[state])
        heard += piece
        state = own.state_after(codes[start:stop], state)
    assert np.allclose(np.concatenate(heard), whole, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    recipe, _, last, _ = trained()
    own = tokenizer(recipe, last)
    values = own._hf_config
    for part in ("encoder_config", "decoder_config"):
        values[part]["codebook_size"] = made.CODES
        values[part]["num_hidden_layers"] = 1
    values["encoder_config"]["num_filters"] = 4
    values["decoder_config"]["decoder_dim"] = 32
    own.save_pretrained(tmp_path / "codec")
    again = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(tmp_path / "codec")
    assert again.fingerprint == own.fingerprint
    for part in ("encoder", "decoder"):
        one, two = getattr(own, part), getattr(again, part)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
            assert not differ(a, b)


# ------------------------------------------------------------------- parts of it


@functools.cache
def reconstructed(key: int | None = None, **settings):
    """Of one batch, by a generator whose codebooks count, through one program."""
    recipe = made.recipe(**dict(dropout=0.0, bypass=0.0) | settings)
    state = made.start(recipe)
    ready = {
        path: jnp.ones_like(leaf)
        for path, leaf in state.params.items()
        if path.endswith(".initialized")
    }
    parts = recipe.unflatten(state.params | ready)
    key = None if key is None else jax.random.key(key)
    run = jax.jit(recipe.generator).lower(parts, BATCH, key)
    return run.compile(compiler_options=examples.QUICK)(parts, BATCH, key)


def test_the_frames_that_are_heard_belong_together():
    whole, part = reconstructed(), reconstructed(key=2, heard=3)
    assert part.wave.shape == part.real.shape == (ROWS, 3 * made.HOP)
    starts = []
    for row, cut in enumerate(np.asarray(part.real)):
        wave = BATCH["wave"][row]
        [start] = [
            frame
            for frame in range(4)
            if np.array_equal(wave[frame * made.HOP :][: len(cut)], cut)
        ]
        starts.append(start)
        if start == 0:  # only then nothing came before it in both
            expected = whole.wave[row][: len(cut)]
            close = CLOSE * np.abs(expected).max()
            assert np.allclose(part.wave[row], expected, rtol=0, atol=close)
    assert 0 in starts and len(set(starts)) > 1


def test_rows_may_bypass_the_quantiser():
    whole = reconstructed().wave
    close = CLOSE * np.abs(whole).max()
    assert np.allclose(reconstructed(key=0).wave, whole, rtol=0, atol=close)
    plain = reconstructed(key=0, bypass=1.0).wave
    assert (np.abs(plain - whole).max(axis=1) > 1e-4).all()


def test_dropout_leaves_some_rows_few_codebooks():
    few, whole = reconstructed(key=1, dropout=1.0), reconstructed()
    differs = np.abs(few.wave - whole.wave).max(axis=1) > 1e-6
    assert differs.sum() > ROWS / 2
    for name in codec.STACKS:  # every book learns from every row all the same
        a, b = few.quantized[name], whole.quantized[name]
        assert np.allclose(a.residuals, b.residuals, atol=1e-6)


def test_decoder_alone_keeps_every_code():
    recipe = made.recipe(
        train="decoder", weights=dict(semantic=0.0, commitment=0.0), teacher_dim=0
    )
    batch = made.without(made.batch(), "teacher", "frames")
    first = state = made.start(recipe)
    step = compiled(recipe, state, batch)
    for _ in range(3):
        state, metrics = step(state, batch)
    assert "usage" not in metrics and "commitment" not in metrics
    for path, leaf in first.params.items():
        changed = differ(leaf, state.params[path])
        if path.startswith(("encoder", "decoder.quantizer.semantic.embedding")):
            assert not changed, path
    assert all(moved(first.params, state.params, "decoder.blocks.0.up.kernel"))
    assert all(moved(first.params, state.params, "decoder.quantizer.semantic.output"))


def test_balanced_gradients_do_not_depend_on_the_size_of_a_loss():
    recipe = made.recipe(
        weights=dict(mel=0.0, semantic=0.0, commitment=0.0),
        teacher_dim=0,
        balancer=codec_losses.Balancer((("adversarial", 4.0), ("feature", 4.0))),
    )
    first = made.start(recipe)
    real, fake = (jnp.asarray(made.batch(seed=s)["wave"]) for s in (0, 1))
    hear = jax.jit(recipe._hear).lower(first, {}, real, fake)
    hear, found = hear.compile(compiler_options=examples.QUICK), []
    for scale in (1.0, 1000.0):
        louder = {p: x * scale for p, x in first.params.items() if p.endswith(LAST)}
        state = first.replace(params=first.params | louder)
        gradient, norms, values = hear(state, {}, real, fake)
        found.append((gradient, float(values["adversarial"])))
        assert set(norms.sums) == {"adversarial", "feature"}
    (one, small), (two, large) = found
    assert abs(large) > 100 * abs(small)
    assert np.allclose(one, two, rtol=0, atol=1e-3 * np.abs(one).max())


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(teacher_dim=0), "semantic weight of 1.0 and a teacher of width 0"),
        (dict(train="heard"), "got train 'heard', expected one of all, decoder, mel"),
        (dict(train="encoder"), "got train 'encoder' without model.scaffold"),
    ],
)
def test_refuses_settings_that_do_not_fit(bad, says):
    with pytest.raises(ValueError, match=says):
        made.recipe(**bad)


def test_refuses_a_freeze_pattern_that_finds_nothing():
    with pytest.raises(ValueError, match="which no parameter matches"):
        made.recipe(optim=dict(freeze=("talker",))).trained()
    recipe = made.recipe(optim=dict(freeze=(r"^encoder\.",)))
    assert not any(path.startswith("encoder") for path in recipe.trained())


def test_paths_name_every_leaf_once():
    recipe = made.recipe()
    flat = codec_state.flatten(recipe.abstract_parts())
    assert len(flat) == len(jax.tree.leaves(recipe.abstract_parts()))
