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

from qwen3tts_jax import config as configs
from qwen3tts_jax.nn import attention, layers, transformer


class CodePredictor(nnx.Module):
    """A small transformer run afresh for every frame.

    Attributes:
        embedding: [15, V, D_talker], the table of codebook i+1 at i.
        heads: 15 kernels [D, V], the head of codebook i+1 at i.
        projection: D_talker -> D where the widths differ (1.7B), else None.
    """

    def __init__(
        self,
        config: configs.CodePredictorConfig,
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
        # a list, not a stack: XLA reads each head in place
        heads = [layers.Linear(dim, c.vocab_size, rngs=rngs) for _ in range(groups)]
        self.heads = nnx.List(heads)
        self.config = config

    def embed(self, codes: jax.Array) -> jax.Array:
        """Sum of the embeddings of codebooks 1..15: float [..., D_talker], int [..., 15]."""
        groups = jnp.arange(codes.shape[-1])
        groups = groups.reshape((1,) * (codes.ndim - 1) + (-1,))
        return self.embedding[...][groups, codes].sum(axis=-2)

    def __call__(self, hidden: jax.Array, first: jax.Array, codes: jax.Array) -> jax.Array:
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
        scores = [head(y[:, i + 1]) for i, head in enumerate(self.heads)]
        return jnp.stack(scores, axis=1)

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
        size = self.config.code_groups
        caches = self.transformer.init_cache(len(hidden), size, hidden.dtype)
        x = jnp.stack([hidden, first], axis=1)  # [B, 2, D_talker]
        codes, no_pads = [], jnp.zeros(len(hidden), jnp.int32)
        for i, head in enumerate(self.heads):
            start = 0 if i == 0 else i + 1
            positions = jnp.arange(start, i + 2)[None]
            mask = attention.cache_mask(jnp.int32(start), no_pads, x.shape[1], size)
            y, caches = self.transformer(self._project(x), positions, mask, caches)
            codes.append(choose(head(y[:, -1]), i))
            x = self.embedding[...][i][codes[-1]][:, None]
        return jnp.stack(codes, axis=1)

    def _project(self, x: jax.Array) -> jax.Array:
        return x if self.projection is None else self.projection(x)
