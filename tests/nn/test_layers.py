"""Leaf layers against their formulas in float64."""

import math

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.nn import layers

DIM, EPS = 6, 1e-3
PLAIN = dict(rtol=1e-5, atol=1e-5)  # float32 against float64
BFLOAT16 = 2**-8  # largest relative error of a rounding to it


def inputs(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), shape).astype(dtype)


def wide(x):
    return np.asarray(x, np.float64)


def norm(kind):
    return contract.random_part(lambda: kind(DIM, eps=EPS))


def linear(**options):
    return contract.random_part(
        lambda: layers.Linear(DIM, 4, rngs=nnx.Rngs(0), **options)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(DIM,), (5, DIM), (2, 3, DIM)], ids=str)
def test_linear(shape, bias):
    part, x = linear(bias=bias), inputs(*shape)
    expected = wide(x) @ wide(part.kernel[...])
    if bias:
        expected = expected + wide(part.bias[...])
    np.testing.assert_allclose(part(x), expected, **PLAIN)


def test_linear_has_no_bias_unless_asked():
    assert len(jax.tree.leaves(linear())) == 1


def test_linear_computes_in_the_dtype_of_its_input():
    part, x = linear(bias=True), inputs(3, DIM, dtype=jnp.bfloat16)
    assert part(x).dtype == jnp.bfloat16
    rounded = wide(part.kernel[...].astype(jnp.bfloat16))
    expected = wide(x) @ rounded + wide(part.bias[...])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(wide(part(x)), expected, atol=2 * BFLOAT16 * scale)


def test_embed_takes_rows():
    part = contract.random_part(lambda: layers.Embed(9, DIM, rngs=nnx.Rngs(0)))
    ids = np.array([[0, 8, 3], [3, 3, 1]])
    expected = np.asarray(part.embedding[...])[ids]
    np.testing.assert_array_equal(part(jnp.asarray(ids)), expected)


def test_rms_norm():
    part, x = norm(layers.RMSNorm), inputs(2, 3, DIM)
    y = wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + EPS)
    np.testing.assert_allclose(part(x), y * wide(part.scale[...]), **PLAIN)


def test_layer_norm():
    part, x = norm(layers.LayerNorm), inputs(2, 3, DIM) + 3
    y = wide(x) - wide(x).mean(-1, keepdims=True)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + EPS)
    y = y * wide(part.scale[...]) + wide(part.bias[...])
    np.testing.assert_allclose(part(x), y, **PLAIN)


@pytest.mark.parametrize("kind", [layers.RMSNorm, layers.LayerNorm])
def test_norms_take_statistics_in_float32(kind):
    """One rounding to bfloat16 is left; bfloat16 statistics would add two."""
    part = kind(512, eps=EPS)
    spread = 1.1 ** np.arange(16)[:, None]
    x = (spread * (3 + inputs(16, 512))).astype(jnp.bfloat16)
    y = part(x)
    assert y.dtype == jnp.bfloat16
    expected = wide(part(x.astype(jnp.float32)))
    np.testing.assert_allclose(wide(y), expected, rtol=BFLOAT16, atol=1e-5)


def test_layer_scale():
    part = layers.LayerScale(DIM, initial=0.25)
    x = inputs(2, 3, DIM)
    np.testing.assert_array_equal(part(x), 0.25 * np.asarray(x))
    part = contract.random_part(lambda: layers.LayerScale(DIM, initial=0.25))
    expected = wide(x) * wide(part.scale[...])
    np.testing.assert_allclose(part(x), expected, **PLAIN)


def test_swiglu():
    part = contract.random_part(lambda: layers.SwiGLU(DIM, 8, rngs=nnx.Rngs(0)))
    x = inputs(2, 3, DIM)
    gate, up, down = (wide(p.kernel[...]) for p in (part.gate, part.up, part.down))
    gate = wide(x) @ gate
    y = (gate / (1 + np.exp(-gate)) * (wide(x) @ up)) @ down
    np.testing.assert_allclose(part(x), y, **PLAIN)


def test_gelu_mlp_has_the_exact_gelu():
    part = contract.random_part(lambda: layers.GeluMLP(DIM, 8, rngs=nnx.Rngs(0)))
    x = 2 * inputs(2, 3, DIM)
    y = wide(x) @ wide(part.up.kernel[...])
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    y = y @ wide(part.down.kernel[...])
    np.testing.assert_allclose(part(x), y, **PLAIN)  # the tanh form is 1e-4 away
