"""CodePredictor: the MTP module.  Given the talker's hidden state and codebook 0 of a
frame, it names codebooks 1..15 of the same frame, one after the other.

Position 0 reads the hidden state, position i the code of codebook i-1; head i-1 at
position i scores codebook i.  Source: arXiv 2601.15621 (MTP module);
Qwen3TTSTalkerCodePredictorModelForConditionalGeneration.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import attention, layers, transformer


class CodePredictor(nnx.Module):
    """A small transformer run afresh for every frame.

    Attributes:
        embedding: [15, V, D_talker], the table of codebook i+1 at i.
        heads: [15, D, V], the kernel that scores codebook i+1 at i.
        projection: D_talker -> D where the widths differ (1.7B), else None.
    """

    def __init__(
        self,
        config: tts.CodePredictorConfig,
        *,
        rngs: nnx.Rngs,
        stacked: bool = False,
    ):
        c = config
        dim, groups = c.transformer.dim, c.code_groups - 1
        normal = jax.random.normal(rngs.params(), (groups, c.vocab_size, c.embed_dim))
        self.embedding = nnx.Param(layers.INITIALIZER_RANGE * normal)
        self.projection = (
            layers.Linear(c.embed_dim, dim, bias=True, rngs=rngs)
            if c.embed_dim != dim
            else None
        )
        self.transformer = transformer.Transformer(
            c.transformer, rngs=rngs, stacked=stacked
        )
        normal = jax.random.normal(rngs.params(), (groups, dim, c.vocab_size))
        self.heads = nnx.Param(layers.INITIALIZER_RANGE * normal)
        self.config = config

    def embed(self, codes: jax.Array) -> jax.Array:
        """Sum of codebooks 1..15: float [..., D_talker] of codes: int [..., 15]."""
        tables = self.embedding[...]
        if codes.ndim > 2:  # many frames: [..., 15, D] would be the largest array
            first = tables[0][codes[..., 0]]
            rest = (tables[1:], jnp.moveaxis(codes[..., 1:], -1, 0))
            return jax.lax.scan(lambda x, of: (x + of[0][of[1]], None), first, rest)[0]
        return tables[jnp.arange(codes.shape[-1])[None], codes].sum(axis=-2)

    def __call__(
        self, hidden: jax.Array, first: jax.Array, codes: jax.Array
    ) -> jax.Array:
        """Teacher-forced scores of codebooks 1..15.

        Args:
            hidden: float [N, D_talker], the talker's hidden state before the frame.
            first: float [N, D_talker], embedding of the frame's codebook 0.
            codes: int [N, 15], codebooks 1..15 of the frame (the last is not read).
        Returns:
            float [N, 15, V].
        """
        groups = jnp.arange(codes.shape[1] - 1)[None]
        later = self.embedding[...][groups, codes[:, :-1]]  # [N, 14, D_talker]
        x = jnp.concatenate([hidden[:, None], first[:, None], later], axis=1)
        length = x.shape[1]
        mask = attention.causal_mask(length)
        y, _ = self.transformer(self._project(x), jnp.arange(length)[None], mask)
        return jnp.einsum("NQD,QDV->NQV", y[:, 1:], self.heads[...].astype(y.dtype))

    def generate(
        self,
        hidden: jax.Array,
        first: jax.Array,
        choose: Callable[[jax.Array, int], jax.Array],
    ) -> jax.Array:
        """Codebooks 1..15 of one frame, each chosen before the next is scored.

        Args:
            hidden, first: float [B, D_talker] as in `__call__`.
            choose: (scores float [B, V], i) -> int32 [B], the choice of codebook i+1.
        Returns:
            int32 [B, 15].
        """
        rows, groups = len(hidden), self.config.code_groups - 1
        caches = self.transformer.init_cache(
            rows, self.config.code_groups, hidden.dtype
        )
        x = jnp.stack([hidden, first], axis=1)  # [B, 2, D_talker]
        y, caches = self._step(x, jnp.int32(0), caches)
        code = choose(self._scores(y, 0), 0)
        codes = jnp.zeros((rows, groups), jnp.int32).at[:, 0].set(code)

        def choose_next(i, carry):
            codes, code, caches = carry
            x = self.embedding[...][i - 1, code][:, None]  # [B, 1, D_talker]
            y, caches = self._step(x, i + 1, caches)
            code = choose(self._scores(y, i), i)
            return codes.at[:, i].set(code), code, caches

        carry = (codes, code, caches)
        return jax.lax.fori_loop(1, groups, choose_next, carry)[0]

    def _step(self, x: jax.Array, start: jax.Array, caches):
        """(hidden after the last of x, caches); x: [B, T, D_talker] from `start` on."""
        positions = (start + jnp.arange(x.shape[1]))[None]
        mask = attention.cache_mask(positions, self.config.code_groups)
        y, caches = self.transformer(self._project(x), positions, mask, caches)
        return y[:, -1], caches

    def _scores(self, y: jax.Array, i) -> jax.Array:
        return y @ self.heads[...][i].astype(y.dtype)

    def _project(self, x: jax.Array) -> jax.Array:
        return x if self.projection is None else self.projection(x)
