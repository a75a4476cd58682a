"""Convolutions: their plain definitions, the streaming contract, causality."""

import math

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.nn import activations, conv

# float32 sums of up to some hundred products against float64
PLAIN = dict(rtol=1e-5, atol=1e-5)
CONVS = [
    dict(kernel_size=7),
    dict(kernel_size=3, dilation=4),
    dict(kernel_size=6, stride=3, dilation=2, bias=False),
]
TRANSPOSED = [dict(kernel_size=6, stride=3), dict(kernel_size=2, stride=2)]


def causal(**options):
    return contract.random_part(
        lambda: conv.CausalConv1d(3, 4, **options, rngs=nnx.Rngs(0))
    )


def transposed(**options):
    return contract.random_part(
        lambda: conv.CausalConvTranspose1d(3, 4, **options, rngs=nnx.Rngs(0))
    )


def convnext():
    return contract.random_part(lambda: conv.ConvNeXtBlock(4, rngs=nnx.Rngs(0)))


def inputs(length, channels=3, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, length, channels))


def check_streaming(part, x, **options):
    kind = type(part)
    contract.check_streaming(
        kind.step, part.init_state(len(x)), x, kind.__call__, part=part, **options
    )


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_convolution_is_its_definition(options):
    part, x = causal(**options), inputs(18)
    kernel = np.asarray(part.kernel[...], np.float64)
    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    wide = np.asarray(x, np.float64)
    expected = np.zeros((2, 18 // stride, 4))
    if part.bias is not None:
        expected += np.asarray(part.bias[...])
    for t in range(18 // stride):
        for tap in range(len(kernel)):
            # the last tap meets the last of the stride's inputs
            at = t * stride + stride - 1 - (len(kernel) - 1 - tap) * dilation
            if at >= 0:
                expected[:, t] += wide[:, at] @ kernel[tap]
    np.testing.assert_allclose(jax.jit(part)(x), expected, **PLAIN)


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_convolution_streams(options):
    unit = options.get("stride", 1)
    check_streaming(causal(**options), inputs(21 * unit), unit=unit)


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_convolution_sees_the_past_only(options):
    unit = options.get("stride", 1)
    contract.check_causal(causal(**options), inputs(12 * unit), at=5 * unit, same=5)


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolution_is_its_definition(options):
    """Zeros between the inputs, a full convolution, and what hangs over the end cut."""
    part, x = transposed(**options), inputs(9)
    stride = options["stride"]
    # kernel [taps, in, stride, out], the newest input's tap last -> [time, in, out]
    kernel = np.asarray(part.kernel[...], np.float64)[::-1]
    kernel = kernel.transpose(0, 2, 1, 3).reshape(-1, 3, 4)
    spread = np.zeros((2, 9 * stride, 3))
    spread[:, ::stride] = np.asarray(x)
    full = np.zeros((2, 9 * stride + len(kernel) - 1, 4))
    for time, tap in enumerate(kernel):
        full[:, time : time + 9 * stride] += spread @ tap
    expected = full[:, : 9 * stride] + np.asarray(part.bias[...])
    np.testing.assert_allclose(jax.jit(part)(x), expected, **PLAIN)


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolution_streams(options):
    check_streaming(transposed(**options), inputs(21))


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolution_sees_the_past_only(options):
    same = 5 * options["stride"]
    contract.check_causal(transposed(**options), inputs(12), at=5, same=same)


def test_transposed_convolution_refuses_an_uneven_kernel():
    with pytest.raises(ValueError, match="got kernel_size 7, expected a multiple"):
        conv.CausalConvTranspose1d(3, 4, kernel_size=7, stride=2, rngs=nnx.Rngs(0))


def test_convnext_block_is_its_formula():
    part, x = convnext(), inputs(9, channels=4)
    wide = np.asarray(x, np.float64)
    past = np.concatenate([np.zeros((2, 6, 4)), wide], axis=1)
    kernel = np.asarray(part.depthwise[...], np.float64)[:, 0]
    y = sum(past[:, tap : tap + 9] * kernel[tap] for tap in range(7))
    y = y + np.asarray(part.depthwise_bias[...])
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * np.asarray(part.norm.scale[...]) + np.asarray(part.norm.bias[...])
    y = y @ np.asarray(part.up.kernel[...]) + np.asarray(part.up.bias[...])
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    y = y @ np.asarray(part.down.kernel[...]) + np.asarray(part.down.bias[...])
    expected = wide + y * np.asarray(part.gamma.scale[...])
    np.testing.assert_allclose(jax.jit(part)(x), expected, **PLAIN)


def test_convnext_block_streams():
    check_streaming(convnext(), inputs(21, channels=4))


def test_convnext_block_sees_the_past_only():
    contract.check_causal(convnext(), inputs(12, channels=4), at=5, same=5)


def test_snake_is_its_formula():
    part = contract.random_part(lambda: activations.SnakeBeta(4))
    x = inputs(9, channels=4)
    wide = np.asarray(x, np.float64)
    alpha, beta = (np.exp(np.asarray(p[...])) for p in (part.alpha, part.beta))
    expected = wide + np.sin(wide * alpha) ** 2 / (beta + 1e-9)
    np.testing.assert_allclose(jax.jit(part)(x), expected, **PLAIN)


def test_squared_sine_is_one():
    """Against float64.  2e-7 is the polynomial's rounding; at 10,000 one rounding of
    turns * pi's second part, half a step at 3, adds 1.2e-7."""
    rng = np.random.default_rng(0)
    for largest, tolerance in ((1, 2.5e-7), (30, 2.5e-7), (1e4, 4e-7)):
        x = np.float32(rng.uniform(-largest, largest, 20000))
        x[:3] = (0, largest, -largest)
        y = np.asarray(jax.jit(activations.squared_sine)(x))
        expected = np.sin(x.astype(np.float64)) ** 2
        assert np.abs(y - expected).max() < tolerance
    x = np.float32(rng.uniform(-30, 30, 2000))
    slope = jax.jit(jax.vmap(jax.grad(lambda x: activations.squared_sine(x[None])[0])))(
        x
    )
    expected = np.sin(2 * x.astype(np.float64))
    np.testing.assert_allclose(slope, expected, atol=2e-6)


def test_snake_keeps_float32_inside_bfloat16():
    """e^3 turns of the sine: rounded to bfloat16 they would be another angle."""
    part = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 3 * (path[0].name == "alpha"),
        contract.random_part(lambda: activations.SnakeBeta(4)),
    )
    x = inputs(9, channels=4).astype(jnp.bfloat16)
    y = part(x)
    assert y.dtype == jnp.bfloat16
    # only the last rounding is left: 2**-8, and 2**-8 of 0.02 near zero
    expected = np.asarray(part(x.astype(jnp.float32)))
    np.testing.assert_allclose(
        np.asarray(y, np.float32), expected, rtol=2**-8, atol=1e-4
    )
