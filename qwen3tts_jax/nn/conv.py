"""Causal convolutions over [B, T, C]: `__call__` is `step` from the zero state.

The streaming contract: `part.step(x, state) -> (y, state)`, and steps over any chunking
of a sequence give, joined, what one call over the whole gives.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3tts_jax.nn import layers

CONVNEXT_EPS = 1e-6
CONVNEXT_KERNEL = 7


def _init_kernel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    fan_in = shape[0] * shape[1]
    return jax.random.normal(key, shape) * fan_in**-0.5


class CausalConv1d(nnx.Module):
    """Convolution that sees the past only.

    The state is the last (kernel-1)*dilation+1-stride inputs, float [B, history, C].
    A chunk must be a multiple of the stride long.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, in_dim, out_dim)
        self.kernel = nnx.Param(_init_kernel(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_dim)) if bias else None
        self.stride, self.dilation = stride, dilation
        self.history = (kernel_size - 1) * dilation + 1 - stride

    def init_state(self, batch: int, dtype=jnp.float32) -> jax.Array:
        return jnp.zeros((batch, self.history, self.kernel.shape[1]), dtype)

    def step(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: float [B, T, in] -> (float [B, T/stride, out], state)."""
        x = jnp.concatenate([state, x], axis=1)
        y = self._convolve(x, self.kernel[...].astype(x.dtype))
        if self.bias is not None:
            y = y + layers.per_channel(self.bias, y)
        return y, x[:, x.shape[1] - self.history :]

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Without padding.  x: float [B, history + T, in]."""
        stride, (size, in_dim, _) = self.stride, kernel.shape
        if size % stride == 0 and self.dilation == 1:
            # strides become channels: on a CPU the gradient takes half the time
            x = x[:, : x.shape[1] // stride * stride]  # the rest fills no window
            x = x.reshape(len(x), -1, stride * in_dim)
            kernel = kernel.reshape(size // stride, stride * in_dim, -1)
            stride = 1
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,),
            "VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.step(x, self.init_state(len(x), x.dtype))[0]


class CausalConvTranspose1d(nnx.Module):
    """Upsampling by `stride`; the kernel-stride samples past the end are cut.

    Written as an ordinary causal convolution from which each input frame makes `stride`
    output frames: no zeros are inserted, and the state is the last kernel/stride-1
    inputs.  The kernel is stored in that form, [kernel/stride, in, stride, out].
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_size: int,
        stride: int,
        rngs: nnx.Rngs,
    ):
        if kernel_size % stride:
            raise ValueError(
                f"got kernel_size {kernel_size}, expected a multiple of stride {stride}"
            )
        taps = kernel_size // stride
        normal = jax.random.normal(rngs.params(), (taps, in_dim, stride, out_dim))
        self.kernel = nnx.Param(normal * (taps * in_dim) ** -0.5)
        self.bias = nnx.Param(jnp.zeros(out_dim))
        self.history = taps - 1

    def init_state(self, batch: int, dtype=jnp.float32) -> jax.Array:
        return jnp.zeros((batch, self.history, self.kernel.shape[1]), dtype)

    def step(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: float [B, T, in] -> (float [B, T*stride, out], state)."""
        batch, length, _ = x.shape
        x = jnp.concatenate([state, x], axis=1)
        taps, in_dim, stride, out_dim = self.kernel.shape
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype).reshape(taps, in_dim, stride * out_dim),
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        y = y.reshape(batch, length * stride, out_dim)  # [B, T * stride, out]
        y = y + layers.per_channel(self.bias, y)
        return y, x[:, x.shape[1] - self.history :]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.step(x, self.init_state(len(x), x.dtype))[0]


class ConvNeXtBlock(nnx.Module):
    """Depthwise causal convolution, LayerNorm, wide gelu layer, gamma; residual.

    Source: Qwen3TTSTokenizerV2ConvNeXtBlock.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        shape = (CONVNEXT_KERNEL, 1, dim)
        self.depthwise = nnx.Param(_init_kernel(rngs.params(), shape))
        self.depthwise_bias = nnx.Param(jnp.zeros(dim))
        self.norm = layers.LayerNorm(dim, eps=CONVNEXT_EPS)
        self.up = layers.Linear(dim, 4 * dim, bias=True, rngs=rngs)
        self.down = layers.Linear(4 * dim, dim, bias=True, rngs=rngs)
        self.gamma = layers.LayerScale(dim, initial=1e-6)

    def init_state(self, batch: int, dtype=jnp.float32) -> jax.Array:
        return jnp.zeros((batch, CONVNEXT_KERNEL - 1, self.depthwise.shape[2]), dtype)

    def step(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: float [B, T, D] -> (float [B, T, D], state float [B, 6, D])."""
        length = x.shape[1]
        past = jnp.concatenate([state, x], axis=1)
        kernel = self.depthwise[...].astype(x.dtype)
        y = layers.per_channel(self.depthwise_bias, x)
        for tap in range(CONVNEXT_KERNEL):  # shifted products: no grouped convolution
            y = y + past[:, tap : tap + length] * kernel[tap][None]
        y = jax.nn.gelu(self.up(self.norm(y)), approximate=False)
        return x + self.gamma(self.down(y)), past[:, length:]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.step(x, self.init_state(len(x), x.dtype))[0]
