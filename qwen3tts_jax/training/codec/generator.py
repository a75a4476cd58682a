"""The codec as it learns: what it is trained for, and what it makes of a batch.

The generator is the 12Hz encoder, its split RVQ and the decoder, learning on crops of
waves, whole or in the pieces of `mel_scaffold`; `train_step` holds the step.

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
from qwen3tts_jax.training.codec import discriminators, mel_scaffold
from qwen3tts_jax.training.codec import losses as codec_losses

STACKS = ("semantic", "acoustic")
HEARD = ("mel", "adversarial", "feature")  # losses of the wave
# losses of the quantiser, and of the stages that make no wave
OWN = ("commitment", "semantic", "size", "log_mel", "distillation")
# What is trained -> the parameters that move, and where the codes come from.
PIECES = {
    "all": r"^(encoder|decoder|projection)\.",
    "decoder": r"^decoder\.",  # codes of the encoder, which stay as they are
    "mel": r"^(scaffold\.(encoder|head)|encoder\.quantizer|decoder)\.",
    "vocoder": r"^(scaffold\.embed|decoder)\.",
    "join": r"^decoder\.",  # codes of the scaffold
    "encoder": r"^encoder\.(?!quantizer\.)",
}
IN_PIECES = ("mel", "vocoder", "join", "encoder")  # those that need a scaffold
# Of a crop's first frames nothing is learnt: what came before them is not there.
LEAD_IN = dict(mel=1, encoder=4)  # frames, at most half of a crop
LEAD_IN_SAMPLES = 1920  # of the waves that a vocoder or decoder makes in pieces


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
        last: whether those are the last frames of the crop, which have all their past
            in it, not a part drawn anywhere.
        train: one of PIECES.
        scaffold: whether there are the parts that training in pieces needs.
        free_steps: first steps in which no row is quantised.
        noise: deviation of what is added to vectors that are not quantised (stage mel),
            so that the decoder learns to live with what quantising will do to them.
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
    last: bool = False
    train: str = "all"
    scaffold: bool = False
    free_steps: int = 0
    noise: float = 0.0

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
        if self.train not in PIECES:
            raise ValueError(
                f"got train {self.train!r}, expected one of {', '.join(PIECES)}"
            )
        if self.train in IN_PIECES and not self.scaffold:
            raise ValueError(
                f"got train {self.train!r} without model.scaffold, expected it: the "
                "stages mel, vocoder, join and encoder train on log mels"
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
        scaffold: see `mel_scaffold`; None where the codec is trained whole.
    """

    encoder: encoders.Encoder
    decoder: decoders.Decoder
    projection: layers.Linear | None
    discriminators: discriminators.Discriminators
    scaffold: mel_scaffold.Scaffold | None = None


@struct.dataclass
class Reconstruction:
    """What the generator makes of a batch.

    Attributes:
        wave, real: float32 [B, H*1920], the frames that became sound, and the original;
            None in the stages that make none.
        losses: of OWN, float32 []; what is not there is not measured.
        quantized: of each of STACKS; None where codes are frozen.
    """

    wave: jax.Array | None
    real: jax.Array | None
    losses: dict[str, jax.Array]
    quantized: dict[str, quantizer.Quantized] | None = None


def build(
    config: tokenizer_12hz.Tokenizer12HzConfig, settings: Settings, key: jax.Array
) -> Parts:
    """Random float32 parts."""
    keys = jax.random.split(key, 4)
    scaffold = None
    if settings.scaffold:
        rngs = nnx.Rngs(jax.random.fold_in(key, 4))
        scaffold = mel_scaffold.build(config, rngs=rngs)
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
        scaffold=scaffold,
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
        self,
        parts: Parts,
        batch: dict,
        key: jax.Array | None,
        step: jax.Array | int = 0,
    ) -> Reconstruction:
        """Reconstruct.

        batch: wave float32 [B, W], W a multiple of 1920; with a teacher also
            teacher float [B, W/1920, D] and frames int32 [B], how many of them count.
        key: draws which rows use few codebooks, and which none; None: all use all.
        step: int [], of the stage.
        """
        train = self.settings.train
        if train == "vocoder":
            return self._vocoder(parts, batch, key)
        if train == "encoder":
            return self._distil(parts, batch)
        make = self._mels if train == "mel" else self._codec
        return make(parts, batch, key, step)

    def _codec(self, parts: Parts, batch: dict, key, step) -> Reconstruction:
        """Wave -> codes -> wave."""
        wave = batch["wave"]
        decoder, learns = self._cast(parts.decoder), self.settings.train == "all"
        x = self._embed(parts, wave)
        if not learns:
            codes = parts.encoder.quantizer.encode(x, self.config.quantizers)
            vectors, made, losses = decoder.quantizer.decode(codes), None, {}
        else:
            made, levels, plain = self._quantize(parts.encoder, x, key, step)
            vectors = self._vectors(decoder, made, plain, None)
            losses = dict(
                commitment=self._commitment(made),
                semantic=self._semantic(parts, made["semantic"], batch),
            )
        state = decoder.init_state(len(wave), decoder.dtype)
        x, *_ = decoder.contextualize(vectors.astype(self.dtype), state)
        x, wave = self._part(x, wave, key)
        fake, *_ = decoder.synthesize(x, state)
        return self._heard(fake, wave, losses, made, key)

    def _embed(self, parts: Parts, wave: jax.Array) -> jax.Array:
        """What is quantised: the wave's encoder's vectors, or the scaffold's."""
        if self.settings.train == "join":
            return parts.scaffold.encoder(mel_scaffold.log_mel(wave))
        length = jnp.full(len(wave), wave.shape[1], jnp.int32)
        return self._cast(parts.encoder).embed(wave.astype(self.dtype), length)

    def _heard(self, fake, real, losses, made, key) -> Reconstruction:
        """A waveform's reconstruction, in training in pieces without its beginning."""
        skip = LEAD_IN_SAMPLES
        if key is not None and self.settings.scaffold and fake.shape[1] > skip:
            fake, real = fake[:, skip:], real[:, skip:]
        return Reconstruction(fake, real, losses, made)

    def _mels(self, parts: Parts, batch: dict, key, step) -> Reconstruction:
        """Log mels -> codes -> log mels."""
        mel = mel_scaffold.log_mel(batch["wave"])
        decoder = self._cast(parts.decoder)
        x = parts.scaffold.encoder(mel)
        made, _, plain = self._quantize(parts.encoder, x, key, step)
        vectors = self._vectors(decoder, made, plain, key)
        state = decoder.init_state(len(mel), decoder.dtype)
        x, *_ = decoder.contextualize(vectors.astype(self.dtype), state)
        slow = mel_scaffold.Halves.of(self.config.decoder).slow
        x, _ = decoder.upsample_through(x, state, stop=slow)
        wanted = mel_scaffold.stacked(mel)
        frames = vectors.shape[1]
        skip = _lead_in("mel", frames) * wanted.shape[1] // frames
        found = parts.scaffold.head(x)[:, skip:].astype(jnp.float32)
        size = sum(
            jnp.mean(jax.nn.relu(jnp.mean(q.plain**2, axis=(0, 1)) - 1))
            for q in made.values()
        )
        losses = dict(
            log_mel=jnp.mean(jnp.abs(found - wanted[:, skip:])),
            # nothing is near a codeword that is not quantised
            commitment=self._commitment(made) * (1 - jnp.all(plain)),
            semantic=self._semantic(parts, made["semantic"], batch),
            size=size,
        )
        return Reconstruction(None, None, losses, made)

    def _vocoder(self, parts: Parts, batch: dict, key) -> Reconstruction:
        """Log mels -> wave."""
        wave, decoder = batch["wave"], self._cast(parts.decoder)
        mel = mel_scaffold.stacked(mel_scaffold.log_mel(wave))
        state = decoder.init_state(len(wave), decoder.dtype)
        slow = mel_scaffold.Halves.of(self.config.decoder).slow
        x = parts.scaffold.embed(mel.astype(self.dtype))
        fake, *_ = decoder.synthesize(x, state, start=slow)
        return self._heard(fake, wave, {}, None, key)

    def _distil(self, parts: Parts, batch: dict) -> Reconstruction:
        """The wave's encoder against the scaffold's, as their codebooks see them."""
        wave, books = batch["wave"], parts.encoder.quantizer
        wanted = parts.scaffold.encoder(mel_scaffold.log_mel(wave))
        found = self._embed(parts, wave)
        error, skip = jnp.float32(0), _lead_in("encoder", found.shape[1])
        for name in STACKS:
            project = getattr(books, name).input_proj
            one, other = (
                project(x)[:, skip:].astype(jnp.float32) for x in (found, wanted)
            )
            # each stack counts the same, whatever its size
            mean = jnp.mean(other, axis=(0, 1), keepdims=True)
            error += jnp.mean((one - other) ** 2) / jnp.mean((other - mean) ** 2)
        return Reconstruction(None, None, dict(distillation=error / len(STACKS)))

    def _part(self, x: jax.Array, wave: jax.Array, key) -> tuple[jax.Array, jax.Array]:
        """The frames of each row that are heard, and their samples."""
        count, hop = self.settings.heard, self.config.samples_per_frame
        if key is None or not count:
            return x, wave
        if self.settings.last:
            return x[:, -count:], wave[:, -count * hop :]
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

    def _quantize(self, encoder: encoders.Encoder, x: jax.Array, key, step):
        """(Quantized of each stack, codebooks of each row, rows left as they are)."""
        rows, most = len(x), self.config.quantizers
        levels = jnp.full(rows, most)
        plain = jnp.zeros(rows, bool)
        if key is not None:
            drop, count, bypass = jax.random.split(key, 3)
            few = jax.random.randint(count, (rows,), 1, most + 1)
            drawn = jax.random.uniform(drop, (rows,)) < self.settings.dropout
            levels = jnp.where(drawn, few, levels)
            free = jnp.where(step < self.settings.free_steps, 1.0, self.settings.bypass)
            plain = jax.random.uniform(bypass, (rows,)) < free
        books = encoder.quantizer
        made = dict(
            semantic=books.semantic.quantize(x, jnp.ones_like(levels), 1),
            acoustic=books.acoustic.quantize(x, levels - 1, most - 1),
        )
        return made, levels, plain

    def _vectors(self, decoder, made: dict, plain: jax.Array, key) -> jax.Array:
        """What the decoder is given: float32 [B, T, D].  plain: bool [B]."""
        found = []
        for i, (name, one) in enumerate(made.items()):
            whole, vectors = one.plain, one.vectors
            if key is not None and self.settings.noise:
                drawn = jax.random.normal(jax.random.fold_in(key, 2 + i), whole.shape)
                whole = whole + self.settings.noise * drawn
            chosen = jnp.where(plain[:, None, None], whole, vectors)
            found.append(getattr(decoder.quantizer, name).output_proj(chosen))
        return sum(found)

    def _commitment(self, made: dict[str, quantizer.Quantized]) -> jax.Array:
        """Each codebook counts the same."""
        count = self.config.quantizers
        semantic, acoustic = (made[name].commitment for name in STACKS)
        return (semantic + acoustic * (count - 1)) / count

    def _semantic(self, parts: Parts, made: quantizer.Quantized, batch: dict):
        if parts.projection is None:
            return jnp.float32(0)
        valid = jnp.arange(made.codes.shape[1])[None] < batch["frames"][:, None]
        return codec_losses.distillation(
            parts.projection(made.vectors), batch["teacher"].astype(jnp.float32), valid
        )


def _lead_in(stage: str, frames: int) -> int:
    return min(LEAD_IN[stage], frames // 2)
