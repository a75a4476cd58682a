"""The codec as it learns: what it is trained for, and what it makes of a batch.

The generator is the 12Hz encoder, its split RVQ and the decoder, learning on crops of
waves; `train_step` holds the step.

Source: arXiv 2601.15621 names the losses (GAN, multi-scale mel, a teacher for codebook
0); weights and schedules are those of open codecs, see configs/codec.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax.config import tokenizer_12hz
from qwen3tts_jax.models.tokenizer_12hz import decoder as decoders
from qwen3tts_jax.models.tokenizer_12hz import encoder as encoders
from qwen3tts_jax.nn import layers, quantizer, tree
from qwen3tts_jax.training.codec import discriminators
from qwen3tts_jax.training.codec import losses as codec_losses

STACKS = ("semantic", "acoustic")
HEARD = ("mel", "adversarial", "feature")  # losses of the wave
OWN = ("commitment", "semantic")  # losses of the quantiser
TRAINED = ("all", "decoder")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the generator is trained for.

    Attributes:
        weights: of HEARD and OWN; 0 leaves a loss out.
        kind: of the adversarial loss, hinge | lsgan.
        discriminators: their widths; they rest where nothing adversarial has a weight.
        balancer: None weights the losses; else their gradients at the wave.
        scales: of the mel distance.
        learning: of the codebooks.
        dropout: probability that a row uses only the first 1..Q codebooks.
        bypass: ... that a row is not quantised at all (Mimi).
        teacher_dim: width of the teacher of codebook 0; 0 without one.
        heard: frames of each crop that become sound, drawn anew each time; 0: all.
            Encoder, quantiser and transformers learn from longer crops than the costly
            rest could.
        train: all | decoder (codes stay what they are).
    """

    weights: tuple[tuple[str, float], ...]
    discriminators: discriminators.Config
    kind: str = "hinge"
    balancer: codec_losses.Balancer | None = None
    scales: codec_losses.MelScales = codec_losses.MelScales()
    learning: quantizer.Learning = quantizer.Learning()
    dropout: float = 0.5
    bypass: float = 0.5
    teacher_dim: int = 0
    heard: int = 0
    train: str = "all"

    def __post_init__(self):
        if set(dict(self.weights)) != {*HEARD, *OWN}:
            raise ValueError(
                f"got weights of {', '.join(dict(self.weights))}, expected those of "
                f"{', '.join((*HEARD, *OWN))}"
            )
        if (self.weight("semantic") > 0) != (self.teacher_dim > 0):
            raise ValueError(
                f"got a semantic weight of {self.weight('semantic')} and a teacher of "
                f"width {self.teacher_dim}; give both or none (data.teacher)"
            )
        if self.train not in TRAINED:
            raise ValueError(
                f"got train {self.train!r}, expected {' or '.join(TRAINED)}"
            )

    def weight(self, name: str) -> float:
        return dict(self.weights)[name]

    @property
    def adversarial(self) -> bool:
        return self.weight("adversarial") > 0 or self.weight("feature") > 0


@struct.dataclass
class Parts:
    """Everything that is trained.

    Attributes:
        projection: codebook 0's vectors -> the teacher's; None without a teacher.
    """

    encoder: encoders.Encoder
    decoder: decoders.Decoder
    projection: layers.Linear | None
    discriminators: discriminators.Discriminators


@struct.dataclass
class Reconstruction:
    """What the generator makes of a batch.

    Attributes:
        wave, real: float32 [B, H*1920], the frames that became sound, and the original.
        commitment, semantic: float32 [].
        quantized: of each of STACKS; None where codes are frozen.
    """

    wave: jax.Array
    real: jax.Array
    commitment: jax.Array
    semantic: jax.Array
    quantized: dict[str, quantizer.Quantized] | None


def build(
    config: tokenizer_12hz.Tokenizer12HzConfig, settings: Settings, key: jax.Array
) -> Parts:
    """Random float32 parts."""
    keys = jax.random.split(key, 4)
    projection = None
    if settings.teacher_dim:
        inner, rngs = config.encoder.codebook_dim, nnx.Rngs(keys[2])
        projection = layers.Linear(inner, settings.teacher_dim, bias=True, rngs=rngs)
    return Parts(
        encoder=encoders.Encoder(config.encoder, rngs=nnx.Rngs(keys[0])),
        decoder=decoders.Decoder(config.decoder, rngs=nnx.Rngs(keys[1])),
        projection=projection,
        discriminators=discriminators.Discriminators(
            settings.discriminators, rngs=nnx.Rngs(keys[3])
        ),
    )


@dataclasses.dataclass(frozen=True)
class Generator:
    """How a batch goes through encoder, quantiser and decoder.

    Attributes:
        dtype: of the computation; codebooks stay in float32.
    """

    config: tokenizer_12hz.Tokenizer12HzConfig
    settings: Settings
    dtype: str

    def __call__(
        self, parts: Parts, batch: dict, key: jax.Array | None
    ) -> Reconstruction:
        """Reconstruct.

        batch: wave float32 [B, W], W a multiple of 1920; with a teacher also
            teacher float [B, W/1920, D] and frames int32 [B], how many of them count.
        key: draws which rows use few codebooks, and which none; None: all use all.
        """
        wave = batch["wave"]
        length = jnp.full(len(wave), wave.shape[1], jnp.int32)
        encoder, decoder = self._cast(parts.encoder), self._cast(parts.decoder)
        frozen = self.settings.train == "decoder"
        x = encoder.embed(wave.astype(self.dtype), length)
        if frozen:
            codes = encoder.quantizer.encode(x, self.config.quantizers)
            vectors, made = decoder.quantizer.decode(codes), None
            commitment = semantic = jnp.float32(0)
        else:
            made, levels, plain = self._quantize(encoder, x, key)
            vectors = sum(
                getattr(decoder.quantizer, name).output_proj(
                    jnp.where(plain[:, None, None], q.plain, q.vectors)
                )
                for name, q in made.items()
            )
            # each codebook counts the same
            commitment = (
                made["semantic"].commitment
                + made["acoustic"].commitment * (self.config.quantizers - 1)
            ) / self.config.quantizers
            semantic = self._semantic(parts, made["semantic"], batch)
        state = decoder.init_state(len(wave), decoder.dtype)
        x, *_ = decoder.contextualize(vectors.astype(self.dtype), state)
        x, wave = self._part(x, wave, key)
        fake, *_ = decoder.synthesize(x, state)
        return Reconstruction(fake, wave, commitment, semantic, made)

    def _part(self, x: jax.Array, wave: jax.Array, key) -> tuple[jax.Array, jax.Array]:
        """The frames of each row that are heard, and their samples."""
        count, hop = self.settings.heard, self.config.samples_per_frame
        if key is None or not count:
            return x, wave
        key = jax.random.fold_in(key, 1)
        start = jax.random.randint(key, (len(x),), 0, x.shape[1] - count + 1)

        def cut(x, wave, start):
            return (
                jax.lax.dynamic_slice_in_dim(x, start, count),
                jax.lax.dynamic_slice_in_dim(wave, start * hop, count * hop),
            )

        return jax.vmap(cut)(x, wave, start)

    def _cast(self, module):
        """A part in the dtype of the computation; codebooks stay in float32."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: (
                x if "quantizer" in tree.leaf_path(path) else x.astype(self.dtype)
            ),
            module,
        )

    def _quantize(self, encoder: encoders.Encoder, x: jax.Array, key):
        """(Quantized of each stack, codebooks of each row, rows left as they are)."""
        rows, most = len(x), self.config.quantizers
        levels = jnp.full(rows, most)
        plain = jnp.zeros(rows, bool)
        if key is not None:
            drop, count, bypass = jax.random.split(key, 3)
            few = jax.random.randint(count, (rows,), 1, most + 1)
            drawn = jax.random.uniform(drop, (rows,)) < self.settings.dropout
            levels = jnp.where(drawn, few, levels)
            plain = jax.random.uniform(bypass, (rows,)) < self.settings.bypass
        books = encoder.quantizer
        made = dict(
            semantic=books.semantic.quantize(x, jnp.ones_like(levels), 1),
            acoustic=books.acoustic.quantize(x, levels - 1, most - 1),
        )
        return made, levels, plain

    def _semantic(self, parts: Parts, made: quantizer.Quantized, batch: dict):
        if parts.projection is None:
            return jnp.float32(0)
        valid = jnp.arange(made.codes.shape[1])[None] < batch["frames"][:, None]
        return codec_losses.distillation(
            parts.projection(made.vectors), batch["teacher"].astype(jnp.float32), valid
        )
