"""Vector quantisation against brute force in numpy."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax.nn import quantizer

SIZE, DIM, OUTER = 11, 3, 5
EMPTY, FAINT = 7, 8  # a codeword without usage, and one with less than the clamp
PLAIN = dict(rtol=1e-5, atol=1e-5)  # float32 against float64


def books(part):
    """Float64 [Q, V, D]: every codeword of a ResidualVQ."""
    usage = np.asarray(part.cluster_usage[...], np.float64)
    total = np.asarray(part.embedding_sum[...], np.float64)
    return total / np.maximum(usage, 1e-5)[:, :, None]


def with_usage(part, seed):
    """The part with uneven usage, some of it clamped, and codewords near 1."""
    rng = np.random.default_rng(seed)
    shape = part.cluster_usage.shape
    usage = rng.uniform(0.2, 3, shape).astype(np.float32)
    usage[:, EMPTY], usage[:, FAINT] = 0, 4e-6
    words = rng.standard_normal((*shape, DIM), np.float32)
    total = words * np.maximum(usage, 1e-5)[:, :, None]
    drawn = dict(cluster_usage=jnp.asarray(usage), embedding_sum=jnp.asarray(total))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: drawn.get(path[0].name, leaf), part
    )


def residual(quantizers=4, seed=0):
    part = contract.random_part(
        lambda: quantizer.ResidualVQ(
            quantizers, size=SIZE, dim=DIM, outer_dim=OUTER, rngs=nnx.Rngs(0)
        ),
        seed,
    )
    return with_usage(part, seed)


def split():
    part = contract.random_part(
        lambda: quantizer.SplitResidualVQ(
            4, semantic=1, size=SIZE, dim=DIM, outer_dim=OUTER, rngs=nnx.Rngs(0)
        )
    )
    parts = dict(semantic=residual(1, seed=1), acoustic=residual(3, seed=2))
    leaves = [leaf for name in sorted(parts) for leaf in jax.tree.leaves(parts[name])]
    return jax.tree.unflatten(jax.tree.structure(part), leaves)


def inputs():
    return jax.random.normal(jax.random.key(3), (2, 40, OUTER))


def brute_encode(part, x):
    """Codes [B, T, Q], by measuring the distance to every codeword."""
    rest = np.asarray(x, np.float64) @ np.asarray(part.input_proj.kernel[...])
    codes = []
    for book in books(part):
        distance = ((rest[:, :, None] - book) ** 2).sum(-1)
        codes.append(distance.argmin(-1))
        rest = rest - book[codes[-1]]
    return np.stack(codes, -1)


def test_nearest_is_brute_force():
    rng = np.random.default_rng(0)
    x, book = rng.standard_normal((2, 50, DIM)), rng.standard_normal((SIZE, DIM))
    expected = ((x[:, :, None] - book) ** 2).sum(-1).argmin(-1)
    codes = quantizer.nearest(jnp.asarray(x), jnp.asarray(book))
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, expected)


def test_nearest_takes_the_first_at_an_exact_tie():
    book = jnp.asarray([[4.0, 4.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [1.0, 0.0]])
    x = jnp.asarray([[[0.0, 0.0], [2.0, 0.0], [-1.0, -1.0], [-2.0, 0.0]]])
    # four at the same distance, two equal codewords, two neighbours, one alone
    np.testing.assert_array_equal(quantizer.nearest(x, book), [[1, 1, 2, 3]])


def test_each_level_quantises_what_is_left():
    part, x = residual(), inputs()
    codes = jax.jit(type(part).encode, static_argnums=2)(part, x, 4)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, brute_encode(part, x))


def test_fewer_levels_are_the_first_ones():
    part, x = residual(), inputs()
    np.testing.assert_array_equal(part.encode(x, 2), brute_encode(part, x)[:, :, :2])


def test_decode_sums_the_codewords():
    part = residual()
    codes = np.random.default_rng(0).integers(0, SIZE, (2, 9, 4))
    codes[0, 0], codes[0, 1] = EMPTY, FAINT  # where the division is clamped
    for levels in (1, 4):
        words = sum(books(part)[q][codes[:, :, q]] for q in range(levels))
        expected = words @ np.asarray(part.output_proj.kernel[...], np.float64)
        y = part.decode(jnp.asarray(codes[:, :, :levels]))
        np.testing.assert_allclose(y, expected, **PLAIN)


def test_an_unused_codeword_is_clamped():
    """0 / 0 would be NaN; the official clamp makes it 0 / 1e-5."""
    part = residual()
    empty = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (path[0].name != "embedding_sum"), part
    )
    codes = jnp.full((1, 1, 4), EMPTY)
    np.testing.assert_array_equal(empty.decode(codes), np.zeros((1, 1, OUTER)))
    assert np.isfinite(part.decode(codes)).all()


def test_split_puts_semantic_codes_first():
    """Both stacks read the same input: the acoustic one no residual of the other."""
    part, x = split(), inputs()
    halves = [brute_encode(p, x) for p in (part.semantic, part.acoustic)]
    codes = part.encode(x, 4)
    np.testing.assert_array_equal(codes, np.concatenate(halves, -1))
    np.testing.assert_array_equal(part.encode(x, 2), codes[:, :, :2])
    expected = part.semantic.decode(codes[:, :, :1])
    expected = expected + part.acoustic.decode(codes[:, :, 1:])
    np.testing.assert_allclose(part.decode(codes), expected, **PLAIN)
