"""Vector quantisation: nearest codewords, residual stacks, and the semantic split.

A codebook is kept as the EMA statistics that training updates, embedding_sum and
cluster_usage, because that is what checkpoints hold; a codeword is their quotient.
Codebooks stay in float32 whatever the dtype of the model.

Training: `ResidualVQ.quantize` says what a batch did to each codebook, `learn` moves
the statistics by it.  No gradient reaches a codebook.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax.nn import layers

USAGE_EPS = 1e-5  # clamp of cluster_usage in the official EuclideanCodebook


@struct.dataclass
class Codebooks:
    """The statistics of Q codebooks.

    Attributes:
        embedding_sum: float32 [Q, V, D]; cluster_usage: float32 [Q, V].
    """

    embedding_sum: jax.Array
    cluster_usage: jax.Array

    def codewords(self) -> jax.Array:
        """Float32 [Q, V, D]."""
        return (
            self.embedding_sum / jnp.maximum(self.cluster_usage, USAGE_EPS)[..., None]
        )

    def perplexity(self) -> jax.Array:
        """Float32 [Q]: how many entries, used equally, would be as varied."""
        share = self.cluster_usage / self.cluster_usage.sum(axis=-1, keepdims=True)
        entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=-1)
        return jnp.exp(entropy)


@struct.dataclass
class Quantized:
    """What a residual stack made of a batch in training.

    Attributes:
        vectors: float32 [B, T, D], the sum of the chosen codewords; the gradient goes
            to what was quantised (straight-through).
        plain: float32 [B, T, D], what was quantised.
        codes: int32 [B, T, Q].
        commitment: float32 [], mean squared distance to the chosen codewords.
        residuals: float32 [Q, B, T, D], what each codebook was given.
    """

    vectors: jax.Array
    plain: jax.Array
    codes: jax.Array
    commitment: jax.Array
    residuals: jax.Array


@dataclasses.dataclass(frozen=True)
class Learning:
    """How codebooks follow the data.  Source of the defaults: Mimi (moshi).

    Attributes:
        decay: of the EMA statistics, per step.
        dead: an entry used less than this share of the average is replaced by a vector
            of the batch.
    """

    decay: float = 0.99
    dead: float = 0.1

    def __post_init__(self):
        if not (0 <= self.decay < 1 and 0 <= self.dead < 1):
            raise ValueError(
                f"got decay {self.decay} and dead {self.dead}, expected both in [0, 1)"
            )


def learn(
    books: Codebooks,
    seen: Quantized,
    key: jax.Array,
    *,
    first: jax.Array,
    settings: Learning,
) -> tuple[Codebooks, jax.Array]:
    """(books after a batch, float32 [Q]: share of entries that were replaced).

    Counts and sums are over the whole batch: where its rows lie on many devices, XLA
    adds them up, and as the key is the same everywhere, so are the replacements.

    Args:
        first: bool [Q, 1], which books have no codewords yet: of these every entry is
            taken from the batch; see `ready`.
    """
    levels, size, dim = books.embedding_sum.shape
    vectors = seen.residuals.reshape(levels, -1, dim)  # [Q, N, D]
    codes = jnp.moveaxis(seen.codes, -1, 0).reshape(levels, -1)  # [Q, N]
    ones = jnp.ones(codes.shape, jnp.float32)
    total = jax.vmap(lambda x, index: jnp.zeros((size, *x.shape[1:])).at[index].add(x))
    counts, sums = total(ones, codes), total(vectors, codes)
    keep = settings.decay
    usage = keep * books.cluster_usage + (1 - keep) * counts
    vector_sum = keep * books.embedding_sum + (1 - keep) * sums
    average = usage.mean(axis=-1, keepdims=True)
    average = jnp.where(first, counts.mean(axis=-1, keepdims=True), average)  # [Q, 1]
    dead = first | (usage < settings.dead * average)  # [Q, V]
    drawn = jax.random.randint(key, (levels, size), 0, codes.shape[1])
    taken = jnp.take_along_axis(vectors, drawn[..., None], axis=1)  # [Q, V, D]
    new = Codebooks(
        jnp.where(dead[..., None], taken * average[..., None], vector_sum),
        jnp.where(dead, average, usage),
    )
    return jax.lax.stop_gradient(new), dead.mean(axis=-1, dtype=jnp.float32)


def ready(done: jax.Array) -> jax.Array:
    """Which books have codewords after `learn`: those that had, and the next one.

    What a book is given means nothing before the one above it has codewords, so that
    they are filled one after the other.  done: float32 [Q, 1], 1 or 0.
    """
    above = jnp.concatenate([jnp.ones_like(done[:1]), done[:-1]])
    return jnp.maximum(done, above)


class ResidualVQ(nnx.Module):
    """Q codebooks, each quantising what the ones before it left over.

    Attributes:
        embedding_sum: float32 [Q, V, D]; cluster_usage: float32 [Q, V].
        initialized: float32 [Q, 1], carried for the encoder's checkpoint layout only.
    """

    def __init__(
        self,
        quantizers: int,
        *,
        size: int,
        dim: int,
        outer_dim: int,
        has_initialized: bool = False,
        rngs: nnx.Rngs,
    ):
        normal = jax.random.normal(rngs.params(), (quantizers, size, dim))
        self.embedding_sum = nnx.Param(normal)
        self.cluster_usage = nnx.Param(jnp.ones((quantizers, size)))
        if has_initialized:
            self.initialized = nnx.Param(jnp.ones((quantizers, 1)))
        self.input_proj = layers.Linear(outer_dim, dim, rngs=rngs)
        self.output_proj = layers.Linear(dim, outer_dim, rngs=rngs)

    def books(self) -> Codebooks:
        return Codebooks(self.embedding_sum[...], self.cluster_usage[...])

    def quantize(self, x: jax.Array, levels: jax.Array, quantizers: int) -> Quantized:
        """Quantise in training.

        A codebook that is not initialized yet takes nothing away from what it is given.

        Args:
            x: float [B, T, D_outer].
            levels: int [B], how many codebooks of each row count.  The others are given
                what is left over all the same, so that they learn from every row.
            quantizers: how many there are at most, the first of the stack.
        """
        plain = self.input_proj(x).astype(jnp.float32)
        books = self.books().codewords()[:quantizers]
        if hasattr(self, "initialized"):
            books = books * self.initialized[...][:quantizers, :, None]
        books = jax.lax.stop_gradient(books)

        def level(carry, item):
            residual, total, error = carry
            number, book = item
            codes = nearest(jax.lax.stop_gradient(residual), book)
            chosen = book[codes]
            counts = (number < levels)[:, None, None]  # [B, 1, 1]
            left = residual - chosen
            error = error + jnp.where(counts, left * left, 0.0).sum()
            total = total + jnp.where(counts, chosen, 0.0)
            return (left, total, error), (codes, residual)

        start = (plain, jnp.zeros_like(plain), jnp.float32(0))
        numbers = jnp.arange(len(books))
        (_, total, error), (codes, residuals) = jax.lax.scan(
            level, start, (numbers, books)
        )
        count = jnp.sum(levels) * plain.shape[1] * plain.shape[2]
        return Quantized(
            vectors=plain + jax.lax.stop_gradient(total - plain),
            plain=plain,
            codes=jnp.moveaxis(codes, 0, -1),  # [B, T, Q]
            commitment=error / jnp.maximum(count, 1),
            residuals=jax.lax.stop_gradient(residuals),
        )

    def encode(self, x: jax.Array, quantizers: int) -> jax.Array:
        """Codes int32 [B, T, quantizers] of x: float [B, T, D_outer]."""
        books = self.books().codewords()[:quantizers]

        def level(residual, book):
            codes = nearest(residual, book)
            return residual - book[codes], codes

        residual = self.input_proj(x).astype(jnp.float32)
        _, codes = jax.lax.scan(level, residual, books)
        return jnp.moveaxis(codes, 0, -1)  # [B, T, Q]

    def decode(self, codes: jax.Array) -> jax.Array:
        """Float32 [B, T, D_outer] of codes: int [B, T, q], q <= Q."""
        level = jnp.arange(codes.shape[-1])[None, None]
        # gather first, divide after: never the whole codebook
        vectors = self.embedding_sum[...][level, codes]  # [B, T, q, D]
        usage = self.cluster_usage[...][level, codes]
        vectors = vectors / jnp.maximum(usage, USAGE_EPS)[..., None]
        return self.output_proj(vectors.sum(axis=2))


def nearest(x: jax.Array, book: jax.Array) -> jax.Array:
    """Index of the codeword nearest in Euclidean distance, the first at a tie.

    x: float32 [B, T, D]; book: float32 [V, D]; result: int32 [B, T].
    """
    # |x|^2 is the same for all; highest precision, since TF32 would flip near ties
    dots = jnp.einsum("BTD,VD->BTV", x, book, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.sum(book * book, axis=-1)[None, None] - 2.0 * dots
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


class SplitResidualVQ(nnx.Module):
    """One semantic stack and one acoustic stack side by side on the same input."""

    def __init__(
        self,
        quantizers: int,
        *,
        semantic: int,
        size: int,
        dim: int,
        outer_dim: int,
        has_initialized: bool = False,
        rngs: nnx.Rngs,
    ):
        shared = dict(size=size, dim=dim, outer_dim=outer_dim)
        shared |= dict(has_initialized=has_initialized, rngs=rngs)
        self.semantic = ResidualVQ(semantic, **shared)
        self.acoustic = ResidualVQ(quantizers - semantic, **shared)
        self.semantic_quantizers = semantic

    def encode(self, x: jax.Array, quantizers: int) -> jax.Array:
        """Codes int32 [B, T, quantizers], semantic first, of x: [B, T, D_outer]."""
        semantic = self.semantic.encode(x, self.semantic_quantizers)
        acoustic = self.acoustic.encode(x, quantizers - self.semantic_quantizers)
        return jnp.concatenate([semantic, acoustic], axis=-1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Float32 [B, T, D_outer] of codes: int [B, T, Q]."""
        semantic, acoustic = jnp.split(codes, [self.semantic_quantizers], axis=-1)
        return self.semantic.decode(semantic) + self.acoustic.decode(acoustic)
