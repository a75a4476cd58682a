"""Rotary positions, masks, caches and attention against their definitions."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import attention

CONFIG = tts.TransformerConfig(
    dim=12,
    ffn=16,
    layers=1,
    heads=6,
    kv_heads=2,
    head_dim=4,
    rope_theta=100.0,
    norm_eps=1e-6,
    qk_norm=True,
)
WINDOW = 4
WINDOWED = tts.dataclasses.replace(CONFIG, window=WINDOW)
# float32 against float64, or against float32 sums in another order
PLAIN = dict(rtol=1e-5, atol=1e-5)


def part(config=CONFIG):
    return contract.random_part(
        lambda: attention.Attention(config, rngs=nnx.Rngs(0)), seed=2
    )


def inputs(length, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, length, CONFIG.dim))


def angles(positions):
    """Of positions [T], for every row."""
    positions = jnp.asarray(positions)[None]
    return attention.rope_angles(positions, CONFIG.head_dim, CONFIG.rope_theta)


@jax.jit
def whole(part, x):
    length = x.shape[1]
    mask = attention.causal_mask(length, part.config.window)
    return part(x, angles(jnp.arange(length)), mask)[0]


# -------------------------------------------------------------- positions, masks


def test_rope_is_a_rotation_of_each_pair():
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 5, 8)))
    positions = np.array([[0, 1, 2], [700, 3, 31000]])
    expected = np.zeros(x.shape)
    for b, t, n, i in np.ndindex(2, 3, 5, 4):
        angle = positions[b, t] / 1e6 ** (2 * i / 8)
        first, second = float(x[b, t, n, i]), float(x[b, t, n, i + 4])
        expected[b, t, n, i] = first * np.cos(angle) - second * np.sin(angle)
        expected[b, t, n, i + 4] = second * np.cos(angle) + first * np.sin(angle)
    turned = attention.apply_rope(
        jnp.asarray(x), attention.rope_angles(jnp.asarray(positions), 8, 1e6)
    )
    # float32 angles: half of the spacing of numbers near 31000 is 1e-3
    np.testing.assert_allclose(turned[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(turned[1], expected[1], atol=5e-3)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_causal_mask_is_its_definition(window):
    mask = np.asarray(attention.causal_mask(7, window))
    assert mask.shape == (1, 7, 7)
    for query, key in np.ndindex(7, 7):
        seen = query - key < (7 if window is None else window) and key <= query
        assert mask[0, query, key] == seen


def test_cache_mask_is_its_definition():
    starts = np.array([4, 0, 7])
    positions = starts[:, None] + np.arange(3)[None]
    mask = attention.cache_mask(jnp.asarray(positions), 10)
    assert mask.shape == (3, 3, 10)
    for row, query, slot in np.ndindex(3, 3, 10):
        assert mask[row, query, slot] == (slot <= starts[row] + query)


def test_window_mask_is_its_definition():
    """Slot s of a WindowCache and its extension is position `position - 3 + s`."""
    starts = (0, 2, 9)
    mask = attention.window_mask(jnp.asarray(starts), 5, WINDOW)
    assert mask.shape == (3, 5, WINDOW - 1 + 5)
    for row, query, slot in np.ndindex(3, 5, WINDOW - 1 + 5):
        key = starts[row] - (WINDOW - 1) + slot
        distance = starts[row] + query - key
        assert mask[row, query, slot] == (key >= 0 and 0 <= distance < WINDOW)


# --------------------------------------------------------------------- attention


@pytest.mark.parametrize("length", [1, 5])
def test_attend_is_softmax_per_head(length):
    """Query heads 0, 1, 2 share kv head 0, and 3, 4, 5 share kv head 1."""
    rng = np.random.default_rng(0)
    query = rng.standard_normal((2, length, 6, 4), np.float32)
    key = rng.standard_normal((2, 2, 4, 7), np.float32)
    value = rng.standard_normal((2, 2, 7, 4), np.float32)
    mask = rng.random((2, length, 7)) < 0.6
    mask[:, :, 0] = True  # every query sees something
    expected = np.zeros(query.shape)
    for b, t, n in np.ndindex(2, length, 6):
        keys = key[b, n // 3].T[mask[b, t]].astype(float)
        values = value[b, n // 3][mask[b, t]].astype(float)
        weights = np.exp(keys @ query[b, t, n] / 2)  # sqrt(head_dim) = 2
        expected[b, t, n] = weights @ values / weights.sum()
    y = attention.attend(*map(jnp.asarray, (query, key, value, mask)))
    np.testing.assert_allclose(y, expected, **PLAIN)


@pytest.mark.parametrize("length", [1, 5])
def test_attend_takes_softmax_in_float32(length):
    rng = np.random.default_rng(0)
    shapes = ((1, length, 2, 64), (1, 2, 64, 200), (1, 2, 200, 64))
    narrow = [jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in shapes]
    mask = jnp.ones((1, length, 200), bool)
    y = attention.attend(*narrow, mask)
    assert y.dtype == jnp.bfloat16
    expected = attention.attend(*(a.astype(jnp.float32) for a in narrow), mask)
    scale = np.abs(expected).max()
    # two roundings to 8 bits, of the weights and of the result
    difference = np.abs(np.asarray(y, np.float32) - np.asarray(expected)).max()
    assert difference < 2 * 2**-8 * scale


def test_a_query_that_sees_nothing_stays_finite():
    x = inputs(3)
    y, _ = jax.jit(part())(x, angles(jnp.arange(3)), jnp.zeros((1, 3, 3), bool))
    assert np.isfinite(y).all()


def test_attention_sees_the_past_only():
    contract.check_causal(lambda x: whole(part(), x), inputs(9), at=5, same=5)


def test_attention_sees_its_window_only():
    x = inputs(9)
    same = whole(part(WINDOWED), x)
    far = whole(part(WINDOWED), x.at[:, 2].add(1))
    np.testing.assert_array_equal(same[:, 2 + WINDOW :], far[:, 2 + WINDOW :])
    assert (same[:, 1 + WINDOW] != far[:, 1 + WINDOW]).any()


# ------------------------------------------------------------------------ caches


def step_cached(part, x, cache):
    """Both forms of the index: one for all rows, or one for each."""
    length, size = x.shape[1], cache.values.shape[2]
    start = jnp.broadcast_to(cache.index, len(x))
    positions = start[:, None] + jnp.arange(length)[None]
    rope = attention.rope_angles(positions, CONFIG.head_dim, CONFIG.rope_theta)
    return part(x, rope, attention.cache_mask(positions, size), cache)


def empty_cache(rows: int, size: int, index=0) -> attention.KVCache:
    cache = attention.KVCache.zeros(CONFIG, rows, size, jnp.float32)
    return cache.replace(index=jnp.asarray(index, jnp.int32))


@pytest.mark.parametrize("index", [0, [0, 0]], ids=["one index", "an index a row"])
def test_kv_cache_streams(index):
    """A prefill and steps are chunks too; two slots of the cache stay empty."""
    contract.check_streaming(
        step_cached,
        empty_cache(2, 23, index),
        inputs(21),
        whole,
        part=part(),
        gradients=False,
    )


def test_kv_cache_grows_in_the_middle():
    x, layer, step = inputs(9), part(), jax.jit(step_cached)
    first, cache = step(layer, x[:, :6], empty_cache(2, 6))
    second, cache = step(layer, x[:, 6:], cache.grow(11))
    y = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(y, whole(layer, x), **PLAIN)
    assert cache.keys.shape[3] == cache.values.shape[2] == 11 and int(cache.index) == 9


@pytest.mark.parametrize("padding", [0.0, 1e3])  # finite: see `attend`
def test_rows_stand_at_their_own_steps(padding):
    """Rows of 6, 4 and 1 steps, padded on the right, then two steps more of each.

    What stands in the padding is not seen, and what comes next overwrites it.
    """
    layer, rows, lengths = part(), np.asarray(inputs(8, batch=3)), np.array([6, 4, 1])
    real = np.arange(6)[None, :, None] < lengths[:, None, None]
    x = jnp.asarray(np.where(real, rows[:, :6], padding))
    step = jax.jit(step_cached)
    y, cache = step(layer, x, empty_cache(3, 9, [0, 0, 0]))
    cache, later = cache.replace(index=jnp.asarray(lengths)), []
    for i in range(2):
        following = rows[np.arange(3), lengths + i][:, None]
        out, cache = step(layer, following, cache)
        later.append(out)
    for row, length in enumerate(lengths):
        expected = whole(layer, jnp.asarray(rows[row : row + 1, : length + 2]))[0]
        got = np.concatenate([y[row, :length], *(out[row] for out in later)])
        np.testing.assert_allclose(got, expected, **PLAIN)


def step_windowed(part, x, state):
    position, cache = state
    length = x.shape[1]
    mask = attention.window_mask(position, length, WINDOW)
    positions = position[:, None] + jnp.arange(length)[None]
    rope = attention.rope_angles(positions, CONFIG.head_dim, CONFIG.rope_theta)
    y, cache = part(x, rope, mask, cache)
    return y, (position + length, cache)


def test_window_cache_streams():
    cache = attention.WindowCache.zeros(WINDOWED, 2, jnp.float32)
    state = jnp.zeros(2, jnp.int32), cache
    contract.check_streaming(
        step_windowed, state, inputs(21), whole, part=part(WINDOWED)
    )
