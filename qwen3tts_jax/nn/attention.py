"""Rotary positions, masks, caches and grouped-query attention.

Masks are boolean [B, T, S] and are made once per forward pass by whoever knows the
positions; attention itself serves cached and uncached calls with the same lines.
"""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax import config as configs
from qwen3tts_jax.nn import layers


def rope_angles(
    positions: jax.Array, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), float32 [B, T, H/2], of int positions [B, T].

    The talker's interleaved M-RoPE has three position streams that are always equal in
    speech synthesis; with equal streams it is this plain rotation.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = (1.0 / theta**exponent)[None, None, :]  # [1, 1, H/2]
    angle = positions.astype(jnp.float32)[:, :, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the two halves of every head.  x: float [B, T, N, H]."""
    cos, sin = (a[:, :, None, :].astype(x.dtype) for a in angles)  # [B, T, 1, H/2]
    first, second = jnp.split(x, 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1)


def causal_mask(length: int, window: int | None = None) -> jax.Array:
    """Boolean [1, T, T]: key <= query, and key > query - window where one is given."""
    query = jnp.arange(length)[:, None]
    key = jnp.arange(length)[None, :]
    return _visible(query, key, window)[None]


def cache_mask(index: jax.Array, pads: jax.Array, length: int, size: int) -> jax.Array:
    """Boolean [B, T, S] for `length` queries written at `index` of a cache of `size`.

    pads: int [B], left-padding slots that no query may see.
    """
    query = index + jnp.arange(length)[:, None]
    key = jnp.arange(size)[None, :]
    causal = (key <= query)[None]  # [1, T, S]
    return causal & (jnp.arange(size)[None, :] >= pads[:, None])[:, None, :]


def window_mask(position: jax.Array, length: int, window: int) -> jax.Array:
    """Boolean [1, T, window-1+T], queries from `position` on, after a WindowCache."""
    query = position + jnp.arange(length)[:, None]
    key = position + jnp.arange(1 - window, length)[None, :]
    return (_visible(query, key, window) & (key >= 0))[None]


def _visible(query: jax.Array, key: jax.Array, window: int | None) -> jax.Array:
    causal = key <= query
    return causal if window is None else causal & (key > query - window)


@struct.dataclass
class KVCache:
    """Keys and values of one layer in a buffer of fixed size, filled from slot 0.

    Attributes:
        keys, values: float [B, S, K, H].
        index: int32 [], the next free slot.
    """

    keys: jax.Array
    values: jax.Array
    index: jax.Array

    @classmethod
    def zeros(cls, config: configs.TransformerConfig, batch: int, size: int, dtype):
        shape = (batch, size, config.kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))

    def extend(self, keys: jax.Array, values: jax.Array):
        """(keys, values, cache) with [B, T, K, H] more written at `index`."""
        start = (0, self.index, 0, 0)
        cache = KVCache(
            jax.lax.dynamic_update_slice(self.keys, keys, start),
            jax.lax.dynamic_update_slice(self.values, values, start),
            self.index + keys.shape[1],
        )
        return cache.keys, cache.values, cache

    def grow(self, size: int) -> "KVCache":
        """The same cache with room for `size` slots."""
        pad = ((0, 0), (0, size - self.keys.shape[1]), (0, 0), (0, 0))
        return KVCache(jnp.pad(self.keys, pad), jnp.pad(self.values, pad), self.index)


@struct.dataclass
class WindowCache:
    """The last window-1 keys and values of a layer, float [B, window-1, K, H] each."""

    keys: jax.Array
    values: jax.Array

    @classmethod
    def zeros(cls, config: configs.TransformerConfig, batch: int, dtype):
        shape = (batch, config.window - 1, config.kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def extend(self, keys: jax.Array, values: jax.Array):
        """(keys, values, cache): the old ones before the new, and what to keep."""
        keys = jnp.concatenate([self.keys, keys], axis=1)
        values = jnp.concatenate([self.values, values], axis=1)
        keep = keys.shape[1] - self.keys.shape[1]
        return keys, values, WindowCache(keys[:, keep:], values[:, keep:])


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions and optional q/k normalisation."""

    def __init__(self, config: configs.TransformerConfig, *, rngs: nnx.Rngs):
        heads = config.heads * config.head_dim
        kv_heads = config.kv_heads * config.head_dim
        self.query = layers.Linear(config.dim, heads, rngs=rngs)
        self.key = layers.Linear(config.dim, kv_heads, rngs=rngs)
        self.value = layers.Linear(config.dim, kv_heads, rngs=rngs)
        self.out = layers.Linear(heads, config.dim, rngs=rngs)
        self.config = config
        if config.qk_norm:
            self.query_norm = layers.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.key_norm = layers.RMSNorm(config.head_dim, eps=config.norm_eps)

    def __call__(self, x, angles, mask, cache=None):
        """Attend.

        Args:
            x: float [B, T, D].
            angles: from `rope_angles`, of the T positions.
            mask: bool [B or 1, T, S], S = T or the keys that the cache hands out.
            cache: None, KVCache or WindowCache.
        Returns:
            (float [B, T, D], the extended cache or None).
        """
        c = self.config
        batch, length, _ = x.shape
        query = self.query(x).reshape(batch, length, c.heads, c.head_dim)
        key = self.key(x).reshape(batch, length, c.kv_heads, c.head_dim)
        value = self.value(x).reshape(batch, length, c.kv_heads, c.head_dim)
        if c.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = apply_rope(query, angles), apply_rope(key, angles)
        if cache is not None:
            key, value, cache = cache.extend(key, value)
        y = attend(query, key, value, mask)
        return self.out(y.reshape(batch, length, c.heads * c.head_dim)), cache


def attend(query, key, value, mask):
    """softmax(query key^T / sqrt(H)) value, each kv head shared by N/K query heads.

    query: float [B, T, N, H]; key, value: float [B, S, K, H]; mask: bool [B or 1, T,
        S].
    Result: float [B, T, N, H].  Scores and softmax in float32.  What stands at a masked
    key gets the weight 0 and must be finite: whoever pads puts zeros there.
    """
    batch, length, heads, head_dim = query.shape
    groups = heads // key.shape[2]
    query = query.reshape(batch, length, key.shape[2], groups, head_dim)
    scores = jnp.einsum(
        "BTKGH,BSKH->BKGTS", query, key, preferred_element_type=jnp.float32
    )
    scores = scores * head_dim**-0.5
    # a finite minimum: a row that sees nothing (left padding) must stay finite
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    y = jnp.einsum("BKGTS,BSKH->BTKGH", weights, value)
    return y.reshape(batch, length, heads, head_dim)
