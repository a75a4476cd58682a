"""Convolutions that look ahead as causal ones that come late, for signals in chunks.

Every part keeps what it has heard and will need, and a `Signal` says which steps of its
row a chunk holds.  What lies outside the row is zero for a convolution, at both ends
and behind every part, so that a row gives the same whole, in chunks, and in a batch
with longer ones.
"""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax.nn import conv, layers


@struct.dataclass
class Signal:
    """A chunk of each row's signals, and where in the row it lies.

    Attributes:
        x: float [B, G, T, C]; G signals of a row run side by side.
        start: int32 [B], position of the first step; negative before the row begins.
        end: int32 [B], length of the row; steps from there on are outside.
    """

    x: jax.Array
    start: jax.Array
    end: jax.Array

    def late(self, x: jax.Array, delay: int, *, rate: int = 1) -> "Signal":
        """What a part makes of this: `rate` steps for one, `delay` of them late."""
        return Signal(x, rate * self.start - delay, rate * self.end)

    def zeroed(self) -> jax.Array:
        """x with zeros outside the row, whatever was there."""
        position = positions(self.start, self.x.shape[2])
        inside = (position >= 0) & (position < self.end[:, None])
        return jnp.where(inside[:, None, :, None], self.x, 0)


class Upsample(nnx.Module):
    """Transposed convolution; (kernel - rate) / 2 samples are cut at either end.

    One product makes all `kernel` outputs of an input, which are then added where they
    overlap.  The kernel is stored as [in, kernel, out]; the state is the last inputs
    that reach into the next chunk, float [B, history, in].
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, kernel_size: int, rate: int, rngs: nnx.Rngs
    ):
        normal = jax.random.normal(rngs.params(), (in_dim, kernel_size, out_dim))
        self.kernel = nnx.Param(normal * (in_dim * kernel_size / rate) ** -0.5)
        self.bias = nnx.Param(jnp.zeros(out_dim))
        self.rate, self.delay = rate, (kernel_size - rate) // 2
        self.history = -(-kernel_size // rate) - 1

    def init_state(self, batch: int, dtype=jnp.float32) -> jax.Array:
        return jnp.zeros((batch, self.history, self.kernel.shape[0]), dtype)

    def step(self, signal: Signal, state: jax.Array):
        """Signal [B, 1, T, in] -> (Signal [B, 1, T * rate, out], state)."""
        batch, _, length, _ = signal.x.shape
        x = jnp.concatenate([state, signal.zeroed()[:, 0]], axis=1)
        parts = self._parts(x)
        y = sum(  # `age`: in steps, of the input that made it
            parts[:, self.history - age :, age][:, :length]
            for age in range(self.history + 1)
        )
        y = (y + layers.per_channel(self.bias, y)).reshape(batch, 1, -1, y.shape[-1])
        return signal.late(y, self.delay, rate=self.rate), x[:, length:]

    def _parts(self, x: jax.Array) -> jax.Array:
        """What each input adds to the outputs of its own step and of later ones."""
        batch, length, in_dim = x.shape
        _, size, out_dim = self.kernel.shape
        y = x @ self.kernel[...].astype(x.dtype).reshape(in_dim, size * out_dim)
        y = y.reshape(batch, length, size, out_dim)
        missing = (self.history + 1) * self.rate - size
        y = jnp.pad(y, ((0, 0), (0, 0), (0, missing), (0, 0)))
        return y.reshape(batch, length, -1, self.rate, out_dim)  # [B, T, age, rate, C]


class Convs(nnx.Module):
    """Convolutions side by side, causal or "same"; all as late as the widest of them.

    A "same" convolution is a causal one that comes half a kernel late.  shared: one
    signal goes through all of them.  The state is the last inputs, float
    [B, G or 1, history, in].
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_sizes: tuple[int, ...],
        dilations: tuple[int, ...] | None = None,
        causal: bool = False,
        shared: bool = False,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        assert causal or dilations is None
        options = dict(bias=bias, rngs=rngs)
        self.convs = nnx.List(
            [
                conv.CausalConv1d(in_dim, out_dim, kernel_size=k, dilation=d, **options)
                for k, d in zip(kernel_sizes, dilations or (1,) * len(kernel_sizes))
            ]
        )
        ahead = [0 if causal else k // 2 for k in kernel_sizes]
        self.delay = max(ahead)
        self.waits = tuple(self.delay - steps for steps in ahead)
        self.history = max(c.history + w for c, w in zip(self.convs, self.waits))
        self.inputs, self.dim = 1 if shared else len(self.convs), in_dim

    def init_state(self, batch: int, dtype=jnp.float32) -> jax.Array:
        return jnp.zeros((batch, self.inputs, self.history, self.dim), dtype)

    def step(self, signal: Signal, state: jax.Array):
        """Signal [B, G or 1, T, in] -> (Signal [B, G, T, out], state)."""
        x = jnp.concatenate([state, signal.zeroed()], axis=2)
        steps, outputs = signal.x.shape[2], []
        for i, (part, wait) in enumerate(zip(self.convs, self.waits)):
            own, begin = x[:, i % self.inputs], self.history - wait
            past = own[:, begin - part.history : begin]
            outputs.append(part.step(own[:, begin : begin + steps], past)[0])
        y = jnp.stack(outputs, axis=1)
        return signal.late(y, self.delay), x[:, :, steps:]


class Chain(nnx.Module):
    """Parts one after the other."""

    def __init__(self, parts):
        self.parts = nnx.List(parts)

    @property
    def delay(self) -> int:
        """Steps, where no part changes the rate."""
        return sum(part.delay for part in self.parts)

    def init_state(self, batch: int, dtype=jnp.float32):
        return init_states(self.parts, batch, dtype)

    def step(self, signal: Signal, state: tuple):
        return run(self.parts, signal, state)


def init_states(parts, batch: int, dtype) -> tuple:
    """The first states of parts."""
    return tuple(part.init_state(batch, dtype) for part in parts)


def run(parts, signal: Signal, states: tuple) -> tuple[Signal, tuple]:
    """Lead a signal through parts one after the other; (signal, their new states)."""
    after = []
    for part, state in zip(parts, states):
        signal, state = part.step(signal, state)
        after.append(state)
    return signal, tuple(after)


def positions(start: jax.Array, length: int) -> jax.Array:
    """Of the steps of a chunk: int32 [B] -> [B, T]."""
    return start[:, None] + jnp.arange(length)[None]
