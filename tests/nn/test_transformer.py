"""The stack in its two forms, with and without caches."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import attention, transformer

QWEN = tts.TransformerConfig(
    dim=8,
    ffn=12,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=4,
    rope_theta=100.0,
    norm_eps=1e-6,
    qk_norm=True,
)
MIMI = tts.TransformerConfig(
    dim=8,
    ffn=12,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=4,
    rope_theta=100.0,
    norm_eps=1e-5,
    norm="layer",
    mlp="gelu",
    layer_scale=0.01,
    final_norm=False,
)
CACHE = 10  # slots, more than any test fills
CONFIGS = pytest.mark.parametrize("config", [QWEN, MIMI], ids=["qwen", "mimi"])
# float32 sums in another order, through three layers
SAME = dict(rtol=1e-5, atol=1e-5)


def both_forms(config):
    """One set of parameters as a list of layers and as a stack."""
    listed, stacked = (
        contract.random_part(
            lambda s=s: transformer.Transformer(config, rngs=nnx.Rngs(0), stacked=s)
        )
        for s in (False, True)
    )
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *listed.layers)
    norm = jax.tree.leaves(listed.norm) if config.final_norm else []
    leaves = jax.tree.leaves(layers) + norm
    return listed, jax.tree.unflatten(jax.tree.structure(stacked), leaves)


def inputs(length=7):
    return jax.random.normal(jax.random.key(1), (2, length, QWEN.dim))


@jax.jit
def whole(part, x):
    steps = x.shape[1]
    mask = attention.causal_mask(steps, part.config.window)
    return part(x, jnp.arange(steps)[None], mask)[0]


@jax.jit
def chunk(part, x, state):
    start, caches = state
    steps = x.shape[1]
    positions = (start + jnp.arange(steps))[None]
    mask = attention.cache_mask(positions, CACHE)
    y, caches = part(x, positions, mask, caches)
    return y, (start + steps, caches)


@CONFIGS
def test_both_forms_compute_the_same(config):
    listed, stacked = both_forms(config)
    x = inputs()
    np.testing.assert_allclose(whole(stacked, x), whole(listed, x), **SAME)


def test_both_forms_have_the_same_gradients():
    listed, stacked = both_forms(QWEN)
    x, weights = inputs(), inputs()[::-1]

    @jax.jit
    @jax.grad
    def gradient(part):
        return jnp.vdot(weights, whole(part, x))

    by_layer, at_once = gradient(listed), gradient(stacked)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *by_layer.layers)

    def compare(got, expected):
        assert np.isfinite(expected).all() and (expected != 0).any()
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol)

    jax.tree.map(compare, at_once.layers, expected)
    jax.tree.map(compare, at_once.norm, jax.tree.map(np.asarray, by_layer.norm))


@pytest.mark.parametrize("form", [0, 1], ids=["list", "stacked"])
def test_cached_is_uncached(form):
    part, x = both_forms(QWEN)[form], inputs()
    state, outputs = (jnp.int32(0), part.init_cache(2, CACHE, jnp.float32)), []
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 7)):  # a prefill, then steps
        y, state = chunk(part, x[:, start:end], state)
        outputs.append(y)
    y = np.concatenate(outputs, axis=1)
    np.testing.assert_allclose(y, whole(part, x), **SAME)


def test_layers_norms_and_scales_are_what_the_configuration_says():
    """A pre-norm residual stack, written out with the parts of one block."""
    part, x = both_forms(MIMI)[0], inputs()
    mask = attention.causal_mask(7)

    @jax.jit
    def written_out(x):
        angles = attention.rope_angles(jnp.arange(7)[None], 4, 100.0)
        for block in part.layers:
            y, _ = block.attention(block.attention_norm(x), angles, mask)
            x = x + block.attention_scale(y)
            x = x + block.mlp_scale(block.mlp(block.mlp_norm(x)))
        return x

    np.testing.assert_allclose(whole(part, x), written_out(x), **SAME)


def test_the_stack_sees_the_past_only():
    part = both_forms(QWEN)[0]
    contract.check_causal(lambda x: whole(part, x), inputs(), at=3, same=3)
