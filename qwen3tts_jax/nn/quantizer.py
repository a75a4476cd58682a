"""Vector quantisation: nearest codewords, residual stacks, and the semantic split.

A codebook is kept as the EMA statistics that training updates, embedding_sum and
cluster_usage, because that is what checkpoints hold; a codeword is their quotient.
Codebooks stay in float32 whatever the dtype of the model.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3tts_jax.nn import layers

USAGE_EPS = 1e-5  # clamp of cluster_usage in the official EuclideanCodebook


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

    def encode(self, x: jax.Array, quantizers: int) -> jax.Array:
        """Codes int32 [B, T, quantizers] of x: float [B, T, D_outer]."""
        usage = jnp.maximum(self.cluster_usage[...][:quantizers], USAGE_EPS)
        books = self.embedding_sum[...][:quantizers] / usage[:, :, None]

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
