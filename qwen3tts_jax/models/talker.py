"""Talker: the dual-track LM.  Text and codec embeddings are added, position by
position; a Qwen3 stack reads them; a head names codebook 0 of the next frame.

Source: arXiv 2601.15621 (dual-track architecture);
Qwen3TTSTalkerForConditionalGeneration.
"""

import jax
from flax import nnx

from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import layers, transformer


class TextProjection(nnx.Module):
    """fc2(silu(fc1(x))): text embeddings [..., D_text] to [..., D]."""

    def __init__(self, text_dim: int, dim: int, *, rngs: nnx.Rngs):
        self.fc1 = layers.Linear(text_dim, text_dim, bias=True, rngs=rngs)
        self.fc2 = layers.Linear(text_dim, dim, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.silu(self.fc1(x)))


class Talker(nnx.Module):
    """The language model over frames; codebook 0 is its vocabulary."""

    def __init__(
        self, config: tts.TalkerConfig, *, rngs: nnx.Rngs, stacked: bool = False
    ):
        c = config
        dim = c.transformer.dim
        self.text_embedding = layers.Embed(c.text_vocab_size, c.text_dim, rngs=rngs)
        self.text_projection = TextProjection(c.text_dim, dim, rngs=rngs)
        self.codec_embedding = layers.Embed(c.vocab_size, dim, rngs=rngs)
        self.transformer = transformer.Transformer(
            c.transformer, rngs=rngs, stacked=stacked
        )
        self.codec_head = layers.Linear(dim, c.vocab_size, rngs=rngs)
        self.config = config

    def embed_text(self, ids: jax.Array) -> jax.Array:
        """Float [..., D] of text ids: int [...]."""
        return self.text_projection(self.text_embedding(ids))

    def embed_codec(self, ids: jax.Array) -> jax.Array:
        """Float [..., D] of codec ids (codebook 0, marks, languages, speakers)."""
        return self.codec_embedding(ids)

    def __call__(self, x, positions, mask, caches=None):
        """Hidden states after the last norm.

        Args:
            x: float [B, T, D], sum of the two tracks' embeddings.
            positions: int [B, T]; mask: bool [B, T, S]; caches: see `Transformer`.
        Returns:
            (float [B, T, D], caches).
        """
        return self.transformer(x, positions, mask, caches)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of the next codebook-0 id: float [..., V] of hidden [..., D]."""
        return self.codec_head(hidden)
