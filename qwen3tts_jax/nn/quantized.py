"""QuantizedKernel: a kernel of one byte a weight, in the place of a float one.

Generation reads every weight once per step, so a step takes as long as the reading.  A
QuantizedKernel is the value of an nnx.Param and answers to what is done with kernels,
`x @ param[...].astype(x.dtype)` and `param[...][i]`: the modules stay as they are.
It is for inference; it has no gradient.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from qwen3tts_jax.nn import tree

Form = Literal["int8", "float8"]

DTYPES = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}
LARGEST = {"int8": 127, "float8": 448}  # of what each form can hold
KERNELS = ("kernel", "heads")  # the parameters that are read as a product's right side

# Activations of the integer product: 12 bits, of an int32 sum that must not overflow.
MAX_ACTIVATION = 2047
TINY = float(jnp.finfo(jnp.float32).tiny)  # as a scale: no division by zero

# Products on a CPU, in 10^9 weights a second, inside a loop over 12 kernels; two cores
# that other work shared, so that only the ratios count:
#   rows                                1    2    4    8   32  128
#   float32 kernel                    6.9  4.3  4.1  3.5  2.0  0.7
#   integer_product                  16.2  9.6  5.3  2.6  0.5  0.1
#   blocked_product                    -    -    -   3.4  1.7  0.6
#   whole kernel to float32, product  1.4  1.3  1.2  1.2  0.9  0.5
# for 1024 x 2048; 3072 x 1024 gives the same order.  Tiles of 128 columns were no
# faster than [in, out].
INTEGER_ROWS = 4
PARTS = 8  # of the input axis; 4: slower at one row, 16: slower at many


@struct.dataclass
class QuantizedKernel:
    """values * scale, a kernel [..., in, out]; leading axes can be indexed away.

    Attributes:
        values: int8 or float8_e4m3fn [..., in, out].
        scale: float32 [..., out].
    """

    values: jax.Array
    scale: jax.Array

    def __getitem__(self, index) -> "QuantizedKernel":
        """`...` is the kernel itself, an int (it may be traced) one of a stack."""
        if index is ...:
            return self
        if self.values.ndim < 3:
            raise IndexError(f"got an index into one kernel {self.values.shape}")
        take = _take if isinstance(index, int) else _take_traced
        return QuantizedKernel(take(self.values, index), self.scale[index])

    def astype(self, dtype) -> "QuantizedKernel":
        """Itself: a product has the dtype of its left side."""
        return self

    def dequantize(self, dtype=jnp.float32) -> jax.Array:
        """The kernel that this one stands for, float [..., in, out]."""
        wide = self.values.astype(jnp.float32) * self.scale[..., None, :]
        return wide.astype(dtype)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x @ kernel: float [..., out], in the dtype of x, of float [..., in]."""
        if self.values.ndim != 2 or x.shape[-1:] != self.values.shape[:1]:
            raise ValueError(
                f"got {x.shape} @ {self.values.shape}, expected [..., in] @ [in, out]"
            )
        rows = x.reshape(-1, x.shape[-1])
        # Tied to x, the values are no invariant of the generation loop: XLA would keep
        # them as int32 instead, four times the memory at a tenth of the speed.
        rows, values = jax.lax.optimization_barrier((rows, self.values))
        if values.dtype == jnp.int8:
            cpu = integer_product if len(rows) <= INTEGER_ROWS else blocked_product
            y = jax.lax.platform_dependent(rows, values, cpu=cpu, default=cast_product)
        else:
            y = cast_product(rows, values)
        y = (y * self.scale[None]).astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])


def quantize(kernel: jax.Array, form: Form) -> QuantizedKernel:
    """The nearest kernel of one byte a weight and one scale per output channel.

    Args:
        kernel: float [..., in, out].
        form: "int8", for any machine, or "float8", for GPUs that compute with it.
    """
    if form not in DTYPES:
        raise ValueError(f"got form {form!r}, expected {' or '.join(DTYPES)}")
    if kernel.ndim < 2 or not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(
            f"got {kernel.dtype} {list(kernel.shape)}, expected float [..., in, out]"
        )
    wide = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=-2) / LARGEST[form], TINY)
    values = wide / scale[..., None, :]
    if form == "int8":
        values = jnp.round(values)
    return QuantizedKernel(values.astype(DTYPES[form]), scale)


def quantize_kernels(module, form: Form, *, where: Callable[[str], bool]):
    """The module with every kernel quantised whose path is chosen.

    Args:
        module: any; only its parameters named `kernel` and `heads` come into question:
            norms, biases, embeddings and codebooks stay as they are.
        form: see `quantize`.
        where: whether to quantise, of a path such as "layers.3.mlp.up.kernel".  It
            must not choose kernels of convolutions: only products know the new form.
    """

    def change(path, leaf):
        name = tree.leaf_path(path)
        if name.split(".")[-1] not in KERNELS or not where(name):
            return leaf
        if isinstance(leaf, QuantizedKernel):
            raise ValueError(f"got {name} quantised already")
        return quantize(leaf, form)

    return jax.tree_util.tree_map_with_path(
        change, module, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel)
    )


def _take(stack: jax.Array, index) -> jax.Array:
    return stack[index]


def _take_traced(stack: jax.Array, index: jax.Array) -> jax.Array:
    """stack[index]; on a CPU as a copy of its own, which XLA would fuse away.

    A product that itself reads a stack at a traced index does 4.7 Gw/s, with the copy
    18.4.  XLA does not look into a loop, not even into one of a single turn.
    """

    def copy(stack, index):
        empty = jnp.zeros(stack.shape[1:], stack.dtype)
        return jax.lax.fori_loop(index, index + 1, lambda i, _: stack[i], empty)

    return jax.lax.platform_dependent(stack, index, cpu=copy, default=_take)


def largest_activation(in_dim: int) -> int:
    """Bound on integer activations with which a sum over int8 weights fits in int32."""
    return min(MAX_ACTIVATION, (2**31 - 1) // (LARGEST["int8"] * in_dim))


def integer_product(x: jax.Array, values: jax.Array) -> jax.Array:
    """float32 [N, out] of float [N, in] and int8 [in, out], for a CPU and few rows.

    Each row of x becomes integers with a scale of its own: off by at most half of
    max|x| / largest_activation(in).  No row depends on another one.
    """
    in_dim, out_dim = values.shape
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-1, keepdims=True)
    scale = jnp.maximum(largest / largest_activation(in_dim), TINY)
    rows = jnp.round(wide / scale).astype(jnp.int32)
    # Written out, the first sums are one vectorised loop that reads the int8; as one
    # sum, XLA first stores all products (7 instead of 11 Gw/s).  In float32 it would
    # recognise a matrix product and fall back on its plain loops (0.7 Gw/s).
    parts = math.gcd(in_dim, PARTS)
    rows = rows.reshape(len(x), parts, in_dim // parts, 1)
    kernels = values.reshape(1, parts, in_dim // parts, out_dim)
    sums = sum(
        rows[:, part] * kernels[:, part].astype(jnp.int32) for part in range(parts)
    )
    return jnp.sum(sums, axis=1, dtype=jnp.int32).astype(jnp.float32) * scale


def blocked_product(x: jax.Array, values: jax.Array) -> jax.Array:
    """float32 [N, out] of float [N, in] and int8 [in, out], for a CPU and many rows.

    One block of the kernel at a time becomes float and is used out of the cache.
    """
    in_dim, out_dim = values.shape
    parts = math.gcd(in_dim, PARTS)

    def add(y, part):
        x, block = part
        # the barrier keeps the conversion out of the product, which it would spoil
        block = jax.lax.optimization_barrier(block.astype(x.dtype))
        return y + cast_product(x, block), None

    x = jnp.swapaxes(x.reshape(len(x), parts, in_dim // parts), 0, 1)
    blocks = values.reshape(parts, in_dim // parts, out_dim)
    return jax.lax.scan(add, jnp.zeros((x.shape[1], out_dim)), (x, blocks))[0]


def cast_product(x: jax.Array, values: jax.Array) -> jax.Array:
    """float32 [N, out] of float [N, in] and any [in, out], for GPUs and TPUs.

    There XLA converts the values inside the product.
    """
    values = values.astype(x.dtype)
    return jnp.matmul(x, values, preferred_element_type=jnp.float32)
