"""One layer of the DiT: attention inside blocks of mel frames, under modulated norms.

Source: DiTDecoderLayer.  A layer attends inside a block, and where the configuration
lists it also to the block before or to the one after; so activations are kept in
blocks, [B, J, T, D] with J blocks of T frames, and no matrix of scores is larger than a
block times what it sees, three blocks at most.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax.config import tokenizer_25hz
from qwen3tts_jax.nn import layers

NORM_EPS = 1e-6


@struct.dataclass
class Window:
    """Some consecutive blocks of mel frames, and what does not change while they form.

    Attributes:
        conditions: float [B, J, T, D], what codes and voice add to the input.
        angles: (cos, sin), float32 [B, J, T, 1, H/2], of the absolute positions.
        valid: bool [B, J, T], the frames that the row has.
        follows: bool [B], whether there is a block before the first.
    """

    conditions: jax.Array
    angles: tuple[jax.Array, jax.Array]
    valid: jax.Array
    follows: jax.Array


class Block(nnx.Module):
    """Attention and MLP, each between a modulated norm and a gate; residual."""

    def __init__(
        self,
        config: tokenizer_25hz.DiTConfig,
        *,
        back: bool,
        ahead: bool,
        rngs: nnx.Rngs,
    ):
        c, width = config, config.heads * config.head_dim
        linear = functools.partial(layers.Linear, bias=True, rngs=rngs)
        self.modulation = linear(c.dim, 6 * c.dim)
        self.query = linear(c.dim, width)
        self.key = linear(c.dim, width)
        self.value = linear(c.dim, width)
        self.out = linear(width, c.dim)
        self.up = linear(c.dim, c.ffn_ratio * c.dim)
        self.down = linear(c.ffn_ratio * c.dim, c.dim)
        self.heads, self.back, self.ahead = c.heads, back, ahead

    def __call__(self, x: jax.Array, modulation: jax.Array, window: Window, past=None):
        """One layer.

        Args:
            x: float [B, J, T, D].
            modulation: float [6, D], of this layer and time.
            past: (keys, values) of the block before the window, each float [B, T, N,
                H]; needed if the layer looks back.
        Returns:
            (float [B, J, T, D], keys and values of the window, each [B, J, T, N, H]).
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            m.reshape(1, 1, 1, -1).astype(x.dtype) for m in modulation
        )
        y = normalize(x) * (1 + scale) + shift
        y, keys, values = self._attend(y, window, past)
        x = x + gate * y
        y = normalize(x) * (1 + mlp_scale) + mlp_shift
        y = self.down(jax.nn.gelu(self.up(y), approximate=True))
        return x + mlp_gate * y, (keys, values)

    def _attend(self, x, window: Window, past):
        shape = (*x.shape[:3], self.heads, -1)
        query, key, value = (
            part(x).reshape(shape) for part in (self.query, self.key, self.value)
        )  # [B, J, T, N, H]
        query, key = rotate(query, window.angles), rotate(key, window.angles)
        past_key, past_value = past if self.back else (None, None)
        visible = self._visible(window.valid, window.follows[:, None])
        y = attend(
            query,
            self._visible(key, past_key),
            self._visible(value, past_value),
            visible,
        )
        return self.out(y.reshape(*x.shape[:3], -1)), key, value

    def _visible(self, x: jax.Array, before: jax.Array | None) -> jax.Array:
        """What the queries of each block see: [B, J, T, ...] -> [B, J, S, ...].

        before: [B, T or 1, ...], the block before the first.  After the last block
        there is nothing: zeros, whose keys are not valid.
        """
        seen = [x]
        if self.back:
            before = jnp.broadcast_to(before, x[:, 0].shape)[:, None]
            seen.insert(0, jnp.concatenate([before, x[:, :-1]], axis=1))
        if self.ahead:
            nothing = jnp.zeros_like(x[:, :1])
            seen.append(jnp.concatenate([x[:, 1:], nothing], axis=1))
        return jnp.concatenate(seen, axis=2)


def in_blocks(x: jax.Array, size: int) -> jax.Array:
    """[B, T, ...] -> [B, J, size, ...], zeros (False) after the end."""
    missing = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)))
    return x.reshape(len(x), -1, size, *x.shape[2:])


def normalize(x: jax.Array) -> jax.Array:
    """LayerNorm without scale and bias; statistics in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + NORM_EPS)).astype(x.dtype)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions on neighbouring pairs, in all heads.  x: float [..., N, H].

    A comment in the official code speaks of the first head only; its code does not.
    """
    cos, sin = (a.astype(x.dtype) for a in angles)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = (even * cos - odd * sin, odd * cos + even * sin)
    return jnp.stack(rotated, axis=-1).reshape(x.shape)


def attend(query, key, value, valid) -> jax.Array:
    """softmax(query key^T / sqrt(H)) value inside each block, float [B, J, T, N, H].

    query: float [B, J, T, N, H]; key, value: float [B, J, S, N, H]; valid: bool [B, J,
    S].  Scores and softmax in float32.
    """
    scores = jnp.einsum(
        "BJTNH,BJSNH->BJNTS", query, key, preferred_element_type=jnp.float32
    )
    scores = scores * query.shape[-1] ** -0.5
    # a finite minimum: a block behind the end sees nothing and must stay finite
    scores = jnp.where(valid[:, :, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("BJNTS,BJSNH->BJTNH", weights, value)
