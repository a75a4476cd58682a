"""Vector quantisation against brute force in numpy."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.nn import quantizer, tree

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


# ---------------------------------------------------------------------- training


def quantized(part, x, levels=None):
    levels = jnp.full(len(x), 4) if levels is None else levels
    return part.quantize(x, levels, 4)


def test_training_chooses_the_codes_that_encode_gives():
    part, x = residual(), inputs()
    made = quantized(part, x)
    assert (made.codes == part.encode(x, 4)).all()
    whole = part.output_proj(made.vectors)
    assert jnp.allclose(whole, part.decode(made.codes), **PLAIN)


def test_rows_use_the_codebooks_they_are_told_to():
    part, x = residual(), inputs()
    levels = jnp.arange(len(x)) % 4 + 1
    made = quantized(part, x, levels)
    for row, level in enumerate(levels):
        alone = part.decode(made.codes[row : row + 1, :, : int(level)])
        together = part.output_proj(made.vectors[row : row + 1])
        assert jnp.allclose(together, alone, **PLAIN)


def test_gradient_passes_straight_through_and_reaches_no_codebook():
    part, x = residual(), inputs()

    def total(part, x):
        made = quantized(part, x)
        return (made.vectors * 3).sum() + made.commitment

    def plain(part, x):
        return (part.input_proj(x) * 3).sum() + quantized(part, x).commitment

    (moved, along), (_, expected) = (
        jax.grad(f, argnums=(0, 1))(part, x) for f in (total, plain)
    )
    assert jnp.allclose(along, expected, **PLAIN)
    assert not moved.embedding_sum[...].any() and not moved.cluster_usage[...].any()
    assert jnp.abs(moved.input_proj.kernel[...]).max() > 0.1


def test_commitment_is_the_mean_squared_distance_of_the_codebooks_in_use():
    part, x = residual(), inputs()
    levels = jnp.arange(len(x)) % 4 + 1
    left, total = np.asarray(part.input_proj(x)), []
    codes = np.asarray(part.encode(x, 4))
    for q, book in enumerate(books(part)):
        left = left - book[codes[..., q]]
        total += [left[row] ** 2 for row in range(len(x)) if q < levels[row]]
    assert np.isclose(quantized(part, x, levels).commitment, np.mean(total), rtol=1e-4)


def learnt(part, x, *, first=False, key=0, **settings):
    made = quantized(part, x)
    first = jnp.full((len(books(part)), 1), first)
    settings = quantizer.Learning(**settings)
    key = jax.random.key(key)
    return made, *quantizer.learn(
        part.books(), made, key, first=first, settings=settings
    )


def test_statistics_are_moving_averages():
    part, x = residual(), inputs()
    made, after, replaced = learnt(part, x, decay=0.75, dead=0.0)
    assert not replaced.any()
    for q in range(4):
        counts, sums = np.zeros(SIZE), np.zeros((SIZE, DIM))
        vectors = np.asarray(made.residuals[q]).reshape(-1, DIM)
        for code, vector in zip(np.asarray(made.codes[..., q]).ravel(), vectors):
            counts[code] += 1
            sums[code] += vector
        usage = 0.75 * part.cluster_usage[...][q] + 0.25 * counts
        total = 0.75 * part.embedding_sum[...][q] + 0.25 * sums
        assert np.allclose(after.cluster_usage[q], usage, **PLAIN)
        assert np.allclose(after.embedding_sum[q], total, **PLAIN)


def test_dead_entries_become_vectors_of_the_batch():
    part, x = residual(), inputs()
    made, after, replaced = learnt(part, x, decay=0.99, dead=0.1)
    assert (replaced > 0).all()  # EMPTY, FAINT
    seen = np.asarray(made.residuals[0]).reshape(-1, DIM)
    words = np.asarray(after.codewords()[0])
    for entry in (EMPTY, FAINT):
        assert np.abs(seen - words[entry]).max(axis=1).min() < 1e-5
    again = learnt(part, x, decay=0.99, dead=0.1)[1]
    assert (again.embedding_sum == after.embedding_sum).all()
    other = learnt(part, x, decay=0.99, dead=0.1, key=1)[1]
    assert (other.embedding_sum != after.embedding_sum).any()


def test_books_are_filled_from_data_one_after_the_other():
    done = jnp.zeros((3, 1))
    for count in range(1, 4):
        done = quantizer.ready(done)
        assert done[:, 0].tolist() == [1.0] * count + [0.0] * (3 - count)
    part, x = residual(), inputs()
    made, after, replaced = learnt(part, x, first=True)
    assert (replaced == 1).all()
    words, seen = after.codewords(), made.residuals
    for q in range(4):
        near = jnp.abs(words[q][:, None] - seen[q].reshape(-1, DIM)[None])
        assert near.max(axis=-1).min(axis=-1).max() < 1e-4


def test_perplexity_counts_equally_used_entries():
    usage = jnp.array([[1.0, 1, 1, 1], [2, 2, 0, 0], [1, 0, 0, 0]])
    found = quantizer.Codebooks(jnp.zeros((3, 4, 2)), usage).perplexity()
    assert jnp.allclose(found, jnp.array([4.0, 2.0, 1.0]), rtol=1e-4)


def test_learning_lowers_the_error():
    key = jax.random.key(3)
    mix = jax.random.normal(key, (2, OUTER))
    part = residual()
    done = jnp.zeros((4, 1))

    @jax.jit
    def step(part, done, key):
        x = jax.random.normal(key, (8, 12, 2)) @ mix
        made = part.quantize(x, jnp.full(8, 4), 4)
        after, _ = quantizer.learn(
            part.books(),
            made,
            key,
            first=done == 0,
            settings=quantizer.Learning(0.9, 0.1),
        )
        return after, jnp.mean((made.plain - made.vectors) ** 2)

    errors = []
    for number in range(40):
        after, error = step(part, done, jax.random.fold_in(key, number))
        part = tree.with_leaves(part, dict(vars(after)))
        done = quantizer.ready(done)
        errors.append(float(error))
    assert np.mean(errors[-5:]) < 0.05 * errors[0]


@pytest.mark.parametrize("bad", [dict(decay=1.0), dict(dead=-0.1)])
def test_refuses_settings(bad):
    with pytest.raises(ValueError, match=r"got decay .* expected both in \[0, 1\)"):
        quantizer.Learning(**bad)
