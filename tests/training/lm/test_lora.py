"""LoRA: starts at the model itself, moves only what it names, merges to the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.training.lm import lora, train_step
from qwen3tts_jax.training.lm import params as parts

CONFIG = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("custom_voice"))
TALKER = r"talker\.transformer\.layers\..*\.kernel$"
UP = "talker.transformer.layers.mlp.up.kernel"


@pytest.fixture(scope="module")
def params() -> dict:
    shapes, draw = train_step.flatten(parts.abstract(CONFIG)), np.random.default_rng(0)
    return {
        path: jnp.asarray(draw.normal(0, 0.02, x.shape), jnp.float32)
        for path, x in shapes.items()
    }


def adapters_of(settings, params, *, filled: bool, seed: int = 1) -> dict:
    """Adapters as they are drawn, or with both matrices away from zero."""
    made = settings.init(params, jax.random.key(seed))
    if not filled:
        return made
    keys = jax.random.split(jax.random.key(seed + 1), len(made))
    return {n: jax.random.normal(k, x.shape) for k, (n, x) in zip(keys, made.items())}


def test_training_starts_at_the_model_itself(params):
    settings = lora.LoRA(4, 8.0, (TALKER, "predictor.heads$"))
    merged = settings.merge(params, adapters_of(settings, params, filled=False))
    assert merged.keys() == params.keys()
    for path, x in params.items():
        np.testing.assert_array_equal(merged[path], x, path)


def test_layers_and_heads_have_adapters_of_their_own(params):
    settings = lora.LoRA(4, 8.0, (TALKER, "^predictor.heads$"))
    made = adapters_of(settings, params, filled=False)
    assert made[UP + lora.A].shape == (3, 64, 4)
    assert made[UP + lora.B].shape == (3, 4, 96)
    assert made["predictor.heads" + lora.A].shape == (15, 64, 4)
    assert made["predictor.heads" + lora.B].shape == (15, 4, 2048)
    kinds = {path.rpartition(":")[0] for path in made}
    assert len(kinds) == 4 + 3 + 1 and len(made) == 2 * len(kinds)
    a = np.asarray(made[UP + lora.A])
    assert not np.array_equal(a[0], a[1])
    assert abs(a.std() * np.sqrt(64) - 1) < 0.1  # A x is as wide as x
    assert all(not x.any() for name, x in made.items() if name.endswith(lora.B))


def test_merging_is_the_formula_in_every_layer(params):
    settings = lora.LoRA(4, 8.0, (TALKER, "^predictor.heads$"))
    made = adapters_of(settings, params, filled=True)
    merged = settings.merge(params, made)
    for path in (UP, "predictor.heads"):
        for i in range(len(params[path])):
            a, b = (np.float64(made[path + end][i]) for end in (lora.A, lora.B))
            expected = np.float64(params[path][i]) + 8.0 / 4 * a @ b
            np.testing.assert_allclose(merged[path][i], expected, rtol=1e-4, atol=1e-4)
    other = "talker.codec_head.kernel"
    assert merged[other] is params[other]


def test_a_merged_layer_computes_the_layer_beside_its_adapter(params):
    """x (W + s A B) = x W + s (x A) B."""
    settings = lora.LoRA(4, 8.0, (r"codec_head\.kernel$",))
    made = adapters_of(settings, params, filled=True)
    x = jax.random.normal(jax.random.key(3), (5, 64))
    path = "talker.codec_head.kernel"
    merged = x @ settings.merge(params, made)[path]
    beside = x @ params[path] + 2.0 * (x @ made[path + lora.A]) @ made[path + lora.B]
    np.testing.assert_allclose(merged, beside, rtol=1e-3, atol=1e-3)


def test_the_gradient_is_that_of_the_two_matrices(params):
    """At the start B alone moves, since A stands before a zero."""
    settings = lora.LoRA(2, 4.0, (r"mlp\.up\.kernel$",))
    made = adapters_of(settings, params, filled=False)
    target = jax.random.normal(jax.random.key(4), params[UP].shape)

    def loss(adapters):
        return jnp.sum(settings.merge(params, adapters)[UP] * target)

    gradient = jax.jit(jax.grad(loss))(made)
    assert gradient.keys() == made.keys()
    assert not np.any(gradient[UP + lora.A])
    expected = 2.0 * jnp.einsum("LIR,LIO->LRO", made[UP + lora.A], target)
    np.testing.assert_allclose(gradient[UP + lora.B], expected, rtol=1e-4, atol=1e-4)


def test_other_targets_do_not_change_what_a_kernel_draws(params):
    one = adapters_of(lora.LoRA(4, 8.0, (r"mlp\.up\.kernel$",)), params, filled=False)
    all_ = adapters_of(lora.LoRA(4, 8.0, (TALKER,)), params, filled=False)
    np.testing.assert_array_equal(one[UP + lora.A], all_[UP + lora.A])


def test_shapes_alone_are_enough_to_plan(params):
    settings = lora.LoRA(4, 8.0, (TALKER,))
    shapes = jax.eval_shape(lambda: params)
    made = jax.eval_shape(settings.init, shapes, jax.random.key(0))
    right = adapters_of(settings, params, filled=False)
    assert made == jax.eval_shape(lambda: right)


BAD_TARGETS = [
    ((r"\.kernel$", r"\.kernal$"), r"targets '\\\\\.kernal\$', which no"),
    ((r"text_embedding",), "text_embedding"),  # a table has no kernel
    ((r"norm\.scale$",), "scale"),
    ((), "none"),
]


@pytest.mark.parametrize("targets, message", BAD_TARGETS)
def test_a_target_that_matches_nothing_is_an_error(params, targets, message):
    with pytest.raises(ValueError, match=message) as caught:
        lora.LoRA(4, 8.0, targets).init(params, jax.random.key(0))
    assert "paths look like 'talker." in str(caught.value)


def test_a_rank_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="got rank 0, expected at least 1"):
        lora.LoRA(0, 8.0, (TALKER,))
