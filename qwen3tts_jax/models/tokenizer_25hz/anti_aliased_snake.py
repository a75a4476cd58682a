"""Snake at twice the rate, between two filters, for signals that come in chunks.

A row's outermost values go on outside it, before the first filter and, at twice the
rate, before the second one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax.models.tokenizer_25hz import delayed_conv
from qwen3tts_jax.nn import activations

RATE = 2  # up before the snake, down after it
TAPS = 12  # of either filter
HALF_WIDTH = 0.6 / RATE  # of the transition band, where 0.5 is the Nyquist frequency
REACH = 5  # inputs on either side that an output hears through both filters


class AntiAliasedSnakes(nnx.Module):
    """Up by 2, SnakeBeta, down by 2; in float32, each of G signals with its own snake.

    shared: one signal goes through all the snakes.  The state is the last 10 inputs,
    float [B, G or 1, 10, C].  Source: arXiv 2206.04658, section 3.2; TorchActivation1d.
    """

    delay = REACH

    def __init__(self, dim: int, *, groups: int = 1, shared: bool = False):
        self.snakes = nnx.List([activations.SnakeBeta(dim) for _ in range(groups)])
        self.inputs, self.dim = 1 if shared else groups, dim

    def init_state(self, batch: int, dtype=jnp.float32) -> jax.Array:
        return jnp.zeros((batch, self.inputs, 2 * REACH, self.dim), dtype)

    def step(self, signal: delayed_conv.Signal, state: jax.Array):
        """Signal [B, G or 1, T, C] -> (Signal [B, G, T, C], state)."""
        x = jnp.concatenate([state, signal.x], axis=2)
        fine = jax.lax.platform_dependent(
            x.astype(jnp.float32),
            signal.start - state.shape[2],
            signal.end,
            cpu=self._branch,
            default=self._up_at_ends,
        )
        # merged with what follows each snake would be computed six times
        fine = jax.lax.optimization_barrier(fine)
        y = _down(fine).astype(x.dtype)
        return signal.late(y, self.delay), x[:, :, signal.x.shape[2] :]

    def _up(self, x: jax.Array) -> jax.Array:
        """float [B, G or 1, T + 10, C] -> [B, G, 2 T + 10, C], after the snakes.

        The first of them lies half a step behind x[:, :, 2].
        """
        batch, _, _, dim = x.shape
        even, odd = (_filter(x, RATE * KAISER_SINC[k::-2]) for k in (11, 10))
        fine = jnp.stack([odd, even], axis=3).reshape(batch, self.inputs, -1, dim)
        fine = jnp.broadcast_to(fine, (batch, len(self.snakes), *fine.shape[2:]))
        snakes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.snakes)
        return jax.vmap(activations.SnakeBeta.__call__, (0, 1), 1)(snakes, fine)

    def _up_at_ends(self, x: jax.Array, start, end) -> jax.Array:
        """`_up` where each row's outermost values go on outside it, at both rates."""
        fine = self._up(_hold(x, start, end))
        return _hold(fine, RATE * start + 5, RATE * end)

    def _branch(self, x: jax.Array, start, end) -> jax.Array:
        """On a CPU inner chunks skip the ends.

        A branch is a barrier too; XLA for CPUs ignores the other kind (5.9 ns a value
        of x without one, 1.4 with it, on one core).
        """
        outside = (start < 0) | (start + x.shape[2] > end)
        return jax.lax.cond(
            jnp.any(outside),
            self._up_at_ends,
            lambda x, *_: self._up(x),
            x,
            start,
            end,
        )


def kaiser_sinc() -> np.ndarray:
    """The low-pass filter of both directions, float32 [12], of sum 1.

    A sinc that cuts at half the Nyquist frequency under a Kaiser window, whose shape
    follows from length and transition band.  Source: Kaiser's formulas, as in
    scipy.signal.kaiser_atten and kaiser_beta.
    """
    half = TAPS // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * HALF_WIDTH + 7.95  # dB
    assert attenuation > 50, "below it Kaiser has another formula for beta"
    beta = 0.1102 * (attenuation - 8.7)
    time = np.arange(-half, half) + 0.5
    taps = np.kaiser(TAPS, beta) * np.sinc(time / RATE)
    return (taps / taps.sum()).astype(np.float32)


KAISER_SINC = kaiser_sinc()


def _filter(x: jax.Array, taps: np.ndarray) -> jax.Array:
    """Sum of taps[i] x[t + i]: float [B, G, T + n - 1, C] -> [B, G, T, C]."""
    length = x.shape[2] - len(taps) + 1
    return sum(x[:, :, i : i + length] * float(tap) for i, tap in enumerate(taps))


def _down(fine: jax.Array) -> jax.Array:
    """float [B, G, 2 T + 10, C] -> [B, G, T, C]."""
    batch, groups, _, dim = fine.shape
    pairs = fine.reshape(batch, groups, -1, RATE, dim)  # [B, G, T + 5, 2, C]
    odd, even = pairs[:, :, :, 0], pairs[:, :, :, 1]
    return _filter(odd, KAISER_SINC[0::2]) + _filter(even, KAISER_SINC[1::2])


def _hold(x: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """x [B, G, T, C] with each row's first and last value going on outside it."""
    last = x.shape[2] - 1
    index = (
        jnp.clip(delayed_conv.positions(start, last + 1), 0, end[:, None] - 1)
        - start[:, None]
    )
    index = jnp.clip(index, 0, last)  # where the row lies elsewhere: anything
    return jnp.take_along_axis(x, index[:, None, :, None], axis=2)
