"""LanguageModel: the talker and the code predictor, and what they read of frames."""

import jax
import jax.numpy as jnp
from flax import struct

from qwen3tts_jax.models import code_predictor, talker
from qwen3tts_jax.nn import quantized


@struct.dataclass
class LanguageModel:
    """The parts that make codes; a single codebook needs no predictor."""

    talker: talker.Talker
    predictor: code_predictor.CodePredictor | None

    @property
    def dtype(self):
        """Of everything between the embeddings and the scores."""
        return self.talker.codec_embedding.embedding[...].dtype

    @property
    def is_quantized(self) -> bool:
        head = self.talker.codec_head.kernel[...]
        return isinstance(head, quantized.QuantizedKernel)

    def quantized(self, form: quantized.Form) -> "LanguageModel":
        """The same with one byte for each weight that every frame reads.

        Norms, embeddings and biases stay as they are; see `nn/quantized.py`.
        """

        def read(path: str) -> bool:
            return path.startswith(("transformer.", "codec_head."))

        parts = dict(talker=quantized.quantize_kernels(self.talker, form, where=read))
        if self.predictor is not None:
            parts["predictor"] = quantized.quantize_kernels(
                self.predictor, form, where=lambda path: True
            )
        return self.replace(**parts)

    def embed_frame(self, codes: jax.Array) -> jax.Array:
        """Sum of a frame's embeddings: float [..., D] of int [..., Q]."""
        first = self.talker.embed_codec(codes[..., 0])
        if self.predictor is None:
            return first
        return first + self.predictor.embed(codes[..., 1:])

    def embed_prompt(self, batch: dict) -> jax.Array:
        """Float [B, P, D] of text, codes, speaker and speaker_at as in `prompt.Batch`:
        both tracks added, zero at padding."""
        x = self.embed_tracks(batch["text"], batch["codes"])
        here = jnp.arange(x.shape[1])[None] == batch["speaker_at"][:, None]
        speaker = batch["speaker"].astype(x.dtype)[:, None]  # [B, 1, D]
        return x + jnp.where(here[..., None], speaker, 0)

    def embed_tracks(self, text: jax.Array, codes: jax.Array) -> jax.Array:
        """Float [B, P, D] of text int [B, P] and codes int [B, P, Q]; -1 is silent."""
        x = self.talker.embed_text(jnp.maximum(text, 0))
        x = jnp.where(text[..., None] >= 0, x, 0)
        first = self.talker.embed_codec(jnp.maximum(codes[..., 0], 0))
        x = x + jnp.where(codes[..., :1] >= 0, first, 0)
        if self.predictor is None:
            return x
        rest = self.predictor.embed(jnp.maximum(codes[..., 1:], 0))
        return x + jnp.where(codes[..., 1:2] >= 0, rest, 0)
