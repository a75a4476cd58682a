"""Quantised kernels against their own values in float64, and against int64 sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.nn import layers, quantized

FORMS = ("int8", "float8")
IN, OUT = 24, 200  # in parts of 3; out no multiple of a vector
ROWS = (1, quantized.INTEGER_ROWS + 1)  # one for each product of a CPU
BFLOAT16 = 2**-8  # largest relative error of a rounding to it
FLOAT8 = 2**-4  # the same of float8_e4m3fn
FLOAT32 = 1e-6  # of a sum of magnitudes: float32 sums of some tens of terms


def normal(*shape, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)


def wide(x):
    return np.asarray(x, np.float64)


def bound(x, kernel):
    """How far x @ kernel may be off: half an activation's step times sum |kernel|."""
    x, kernel = wide(x), np.abs(wide(kernel.dequantize()))
    steps = quantized.largest_activation(x.shape[-1])
    step = np.abs(x).max(-1, keepdims=True) / steps
    return step / 2 * kernel.sum(0) + FLOAT32 * (np.abs(x) @ kernel)


@jax.jit
def product(x, kernel):
    return x @ kernel


# --------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(IN, OUT), (3, IN, OUT)], ids=str)
def test_a_weight_is_off_by_half_a_step(shape, dtype):
    kernel = normal(*shape, dtype=dtype)
    got = quantized.quantize(kernel, "int8")
    assert got.values.dtype == jnp.int8 and got.scale.dtype == jnp.float32
    assert got.values.shape == shape and got.scale.shape == (*shape[:-2], OUT)
    scale = wide(got.scale)[..., None, :]
    exact = np.abs(wide(kernel)).max(-2, keepdims=True) / 127
    np.testing.assert_allclose(scale, exact, rtol=1e-6)
    error = np.abs(wide(got.values) * scale - wide(kernel))
    assert (error <= scale * 0.50002).all()  # 0.00002: the quotient's own rounding
    assert np.abs(wide(got.values)).max() == 127


def test_a_float8_weight_keeps_four_bits():
    kernel = normal(IN, OUT)
    got = quantized.quantize(kernel, "float8")
    assert got.values.dtype == jnp.float8_e4m3fn
    assert np.abs(wide(got.values)).max() == 448
    error = np.abs(wide(got.dequantize()) - wide(kernel))
    least = wide(got.scale) * 2**-10  # half the distance of the smallest values
    assert (error <= np.maximum(FLOAT8 * np.abs(wide(kernel)), least) * 1.0001).all()


@pytest.mark.parametrize("form", FORMS)
def test_zero_columns_stay_zero(form):
    kernel = quantized.quantize(normal(IN, OUT).at[:, 5].set(0), form)
    for rows in ROWS:
        y = product(normal(rows, IN), kernel)
        assert (y[:, 5] == 0).all() and jnp.isfinite(y).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_dequantize(dtype):
    kernel = quantized.quantize(normal(2, IN, OUT), "int8")
    got = kernel.dequantize(dtype)
    expected = wide(kernel.values) * wide(kernel.scale)[:, None]
    assert got.dtype == dtype
    np.testing.assert_allclose(wide(got), expected, rtol=BFLOAT16, atol=0)


# -------------------------------------------------------------------- products


@pytest.mark.parametrize("in_dim", [IN, 7], ids="in={}".format)  # 7: a single part
@pytest.mark.parametrize("rows", [*ROWS, quantized.INTEGER_ROWS])
def test_int8_product(rows, in_dim):
    kernel = quantized.quantize(normal(in_dim, OUT), "int8")
    x = normal(rows, in_dim, seed=1)
    error = np.abs(wide(product(x, kernel)) - wide(x) @ wide(kernel.dequantize()))
    assert (error <= bound(x, kernel)).all()
    assert error.max() > 0


@pytest.mark.parametrize("form", FORMS)
def test_cast_product(form):
    """What a GPU runs for both forms, and any machine for float8."""
    kernel = quantized.quantize(normal(IN, OUT), form)
    x = normal(3, IN, seed=1)
    y = wide(quantized.cast_product(x, kernel.values)) * wide(kernel.scale)
    size = np.abs(wide(x)) @ np.abs(wide(kernel.dequantize()))
    expected = wide(x) @ wide(kernel.dequantize())
    assert (np.abs(y - expected) <= FLOAT32 * size).all()
    if form == "float8":
        assert (np.abs(wide(product(x, kernel)) - expected) <= FLOAT32 * size).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lead", [(), (1, 1), (2, 3), (0,)], ids=str)
def test_leading_axes_are_rows(lead, form):
    kernel = quantized.quantize(normal(IN, OUT), form)
    x = normal(*lead, IN, seed=1)
    y = product(x, kernel)
    assert y.shape == (*lead, OUT)
    np.testing.assert_array_equal(
        y.reshape(-1, OUT), product(x.reshape(-1, IN), kernel)
    )


def test_few_rows_do_not_know_each_other():
    kernel = quantized.quantize(normal(IN, OUT), "int8")
    x = normal(quantized.INTEGER_ROWS, IN, seed=1) * jnp.array([[1], [9], [0.1], [0]])
    together = product(x, kernel)
    for i in range(len(x)):
        np.testing.assert_array_equal(product(x[i], kernel), together[i])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", ROWS)
def test_bfloat16(rows, form):
    kernel = quantized.quantize(normal(IN, OUT), form)
    x = normal(rows, IN, seed=1, dtype=jnp.bfloat16)
    y = product(x, kernel)
    assert y.dtype == jnp.bfloat16
    expected = wide(x) @ wide(kernel.dequantize())
    error = np.abs(wide(y) - expected)
    assert (error <= bound(x, kernel) * 1.01 + BFLOAT16 * np.abs(expected)).all()


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-38], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_nothing_in_gives_nothing_out(rows, value):
    kernel = quantized.quantize(normal(IN, OUT), "int8")
    y = product(jnp.full((rows, IN), value), kernel)
    assert (jnp.abs(y) <= 1e-36).all()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_what_is_not_finite_stays_so(rows, value):
    kernel = quantized.quantize(normal(IN, OUT), "int8")
    y = product(normal(rows, IN).at[0, 3].set(value), kernel)
    assert not jnp.isfinite(y[0]).any()
    assert jnp.isfinite(y[1:]).all()


# -------------------------------------------------------------------- overflow


@pytest.mark.parametrize("in_dim", [8, 8192, 8264, 20_000, 10**6])
def test_the_largest_sum_fits(in_dim):
    top = quantized.largest_activation(in_dim)
    assert 1 <= top <= 2047
    assert top * 127 * in_dim <= 2**31 - 1
    assert top == 2047 or (top + 1) * 127 * in_dim > 2**31 - 1


@pytest.mark.parametrize("in_dim", [8192, 20_000])
@pytest.mark.parametrize("signs", [1, -1])
def test_extreme_values_do_not_overflow(signs, in_dim):
    values = np.full((in_dim, 3), signs * 127, np.int8)
    values[:, 1] = -signs * 127
    top = quantized.largest_activation(in_dim)
    x = jnp.full((2, in_dim), float(top))  # its own integers
    y = jax.jit(quantized.integer_product)(x, jnp.asarray(values))
    expected = np.full((2, in_dim), top, np.int64) @ values.astype(np.int64)
    assert np.abs(expected).max() > 2**30
    np.testing.assert_allclose(wide(y), expected, rtol=FLOAT32)


# ----------------------------------------------------------- in a float's place


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 8])
def test_a_stack_read_in_a_loop(rows, form):
    stack = quantized.quantize(normal(5, IN, OUT), form)
    x = normal(rows, IN, seed=1)

    @jax.jit
    def loop(x, param):
        def fill(i, out):
            return out.at[i].set(x @ param[...][i].astype(x.dtype))

        return jax.lax.fori_loop(0, 5, fill, jnp.zeros((5, rows, OUT)))

    got = loop(x, nnx.Param(stack))
    for i in range(5):
        np.testing.assert_array_equal(got[i], product(x, stack[i]))
        np.testing.assert_array_equal(stack[i].values, stack[jnp.int32(i)].values)


def test_a_kernel_passes_through_jit_and_scan():
    stack = quantized.quantize(normal(5, IN, IN), "int8")
    back = jax.jit(lambda param: param)(nnx.Param(stack))[...]
    assert isinstance(back, quantized.QuantizedKernel)
    np.testing.assert_array_equal(back.values, stack.values)
    np.testing.assert_array_equal(back.scale, stack.scale)
    x, expected = normal(1, IN, seed=1), normal(1, IN, seed=1)
    for i in range(5):
        expected = product(expected, stack[i])
    got, _ = jax.jit(lambda x, s: jax.lax.scan(lambda x, k: (x @ k, None), x, s))(
        x, stack
    )
    np.testing.assert_array_equal(got, expected)


def test_outside_jit():
    kernel, x = quantized.quantize(normal(IN, OUT), "int8"), normal(1, IN, seed=1)
    np.testing.assert_allclose(x @ kernel, product(x, kernel), rtol=1e-6)
    assert kernel[...] is kernel and kernel.astype(jnp.bfloat16) is kernel


def test_modules_are_quantised_by_path():
    part = layers.SwiGLU(16, 32, rngs=nnx.Rngs(0))
    got = quantized.quantize_kernels(
        part, "int8", where=lambda path: "down" not in path
    )
    for name in ("gate", "up"):
        kernel = getattr(got, name).kernel[...]
        assert isinstance(kernel, quantized.QuantizedKernel)
    assert got.down.kernel[...] is part.down.kernel[...]
    assert isinstance(part.up.kernel[...], jax.Array)  # the given module is untouched
    x = normal(1, 16)
    expected, y = part(x), jax.jit(lambda part, x: part(x))(got, x)
    np.testing.assert_allclose(y, expected, atol=0.02 * float(jnp.abs(expected).max()))


def test_only_kernels_and_heads_are_touched():
    part = Parts()
    seen = []
    got = quantized.quantize_kernels(
        part, "int8", where=lambda path: seen.append(path) or True
    )
    assert sorted(seen) == ["heads", "linear.kernel", "list.0.kernel"]
    assert isinstance(got.heads[...], quantized.QuantizedKernel)
    for name in ("table", "norm"):
        for a, b in zip(
            jax.tree.leaves(getattr(got, name)), jax.tree.leaves(getattr(part, name))
        ):
            assert a is b
    assert got.linear.bias[...] is part.linear.bias[...]


class Parts(nnx.Module):
    """One of each kind of parameter."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.heads = nnx.Param(normal(3, 8, 8))
        self.linear = layers.Linear(8, 8, bias=True, rngs=rngs)
        self.list = nnx.List([layers.Linear(8, 8, rngs=rngs)])
        self.table = layers.Embed(8, 8, rngs=rngs)
        self.norm = layers.RMSNorm(8, eps=1e-6)


# ---------------------------------------------------------------------- errors


def test_unknown_form():
    with pytest.raises(ValueError, match="got form 'x', expected int8 or float8"):
        quantized.quantize(normal(IN, OUT), "x")


@pytest.mark.parametrize(
    "kernel", [jnp.zeros((2, 2), jnp.int8), jnp.zeros(2)], ids=["integers", "vector"]
)
def test_not_a_kernel(kernel):
    with pytest.raises(ValueError, match=r"expected float \[..., in, out\]"):
        quantized.quantize(kernel, "int8")


def test_quantised_already():
    part = quantized.quantize_kernels(Parts(), "int8", where=lambda path: True)
    with pytest.raises(ValueError, match="got heads quantised already"):
        quantized.quantize_kernels(part, "int8", where=lambda path: True)
    again = quantized.quantize_kernels(part, "int8", where=lambda path: False)
    assert again.heads[...].values is part.heads[...].values


def test_shapes_that_do_not_fit():
    kernel = quantized.quantize(normal(2, IN, OUT), "int8")
    with pytest.raises(ValueError, match=r"expected \[..., in\] @ \[in, out\]"):
        normal(1, IN) @ kernel
    with pytest.raises(ValueError, match=r"expected \[..., in\] @ \[in, out\]"):
        normal(1, IN + 1) @ kernel[0]
    with pytest.raises(IndexError, match="got an index into one kernel"):
        kernel[0][0]
