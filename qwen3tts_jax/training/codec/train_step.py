"""The codec's training step: discriminators and generator, one after the other.

Every loss that hears the wave is pulled back to the wave first, so that they can be
weighted (DAC) or balanced by the size of their gradients (EnCodec, Mimi) before one
backward pass through the generator.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen3tts_jax import sharding
from qwen3tts_jax.config import tokenizer_12hz
from qwen3tts_jax.nn import quantizer
from qwen3tts_jax.nn import tree as trees
from qwen3tts_jax.training import optimizer
from qwen3tts_jax.training.codec import generator as codecs
from qwen3tts_jax.training.codec import initialization as codec_start
from qwen3tts_jax.training.codec import losses as codec_losses
from qwen3tts_jax.training.codec import mel_scaffold

DISCRIMINATORS = r"^discriminators\."
# what no gradient moves: statistics, and two projections that only the other side uses
STILL = (
    r"quantizer\.\w+\.(embedding_sum|cluster_usage|initialized)$"
    r"|^encoder\.quantizer\.\w+\.output_proj|^decoder\.quantizer\.\w+\.input_proj"
)
USED = 0.1  # an entry counts as used above this share of the average usage


@struct.dataclass
class CodecState:
    """Everything that a step changes, and the key that it does not.

    Attributes:
        step: int32 [], steps done.
        params: path -> float32 array, every parameter of `Parts`.
        optimizer, discriminator_optimizer: optax states over what is trained.
        ema: path -> float32 array, averages of the generator; may be empty.
        norms: state of the balancer; empty without one.
        key: PRNG key []; step n draws from fold_in(key, n).
    """

    step: jax.Array
    params: dict
    optimizer: optax.OptState
    discriminator_optimizer: optax.OptState
    ema: dict
    norms: dict
    key: jax.Array


def flatten(parts) -> dict:
    """Path -> leaf of Parts, or of anything with its structure."""
    flat, _ = jax.tree_util.tree_flatten_with_path(parts)
    return {trees.leaf_path(path): leaf for path, leaf in flat}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is static in a step; the trainer's interface: `lm.train_step.Recipe`.

    Attributes:
        config: of the codec.
        optimizer, discriminator_optimizer: settings.
        settings: of the losses and the quantiser.
        dtype: of the generator's computation; master weights are float32.
        mesh: the devices; None for one (`compiled` and `shardings` need a mesh).
    """

    config: tokenizer_12hz.Tokenizer12HzConfig
    optimizer: optimizer.Optimizer
    discriminator_optimizer: optimizer.Optimizer
    settings: codecs.Settings
    dtype: str = "float32"
    mesh: Mesh | None = None

    checked = ("loss", "gradient_norm", "discriminator_gradient_norm")

    # ------------------------------------------------------------------ shapes

    @property
    def generator(self) -> codecs.Generator:
        return codecs.Generator(self.config, self.settings, self.dtype)

    def build(self, key: jax.Array) -> codecs.Parts:
        return codecs.build(self.config, self.settings, key)

    def abstract_parts(self) -> codecs.Parts:
        return jax.eval_shape(self.build, jax.random.key(0))

    def unflatten(self, params: Mapping) -> codecs.Parts:
        """Parts of path -> leaf."""
        abstract = self.abstract_parts()
        tree = jax.tree.structure(abstract)
        return jax.tree.unflatten(tree, [params[p] for p in flatten(abstract)])

    def trained(self) -> tuple[str, ...]:
        """Paths of the generator's parameters that the optimizer moves."""
        piece = self.settings.train
        paths = [
            path
            for path in flatten(self.abstract_parts())
            if re.search(codecs.PIECES[piece], path) and not re.search(STILL, path)
        ]
        if piece in ("mel", "vocoder"):  # half of the decoder each
            halves = mel_scaffold.Halves.of(self.config.decoder)
            fast = piece == "vocoder"
            paths = [
                path
                for path in paths
                if not path.startswith("decoder.") or halves.is_fast(path) == fast
            ]
        return self.optimizer.trainable(paths)

    def judging(self) -> tuple[str, ...]:
        """Paths of the discriminators' parameters."""
        paths = flatten(self.abstract_parts())
        return tuple(path for path in paths if re.search(DISCRIMINATORS, path))

    def abstract_params(self) -> dict:
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
            for path, leaf in flatten(self.abstract_parts()).items()
        }

    def _shapes(self) -> CodecState:
        return jax.eval_shape(self.init, self.abstract_params(), jax.random.key(0))

    def shardings(self) -> CodecState:
        """A codec is small: every device holds all of the state."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda _: whole, self._shapes())

    def abstract(self) -> CodecState:
        """The state's shapes, each with the place where it lives."""
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            self._shapes(),
            self.shardings(),
        )

    def batch_shardings(self, batch: Mapping) -> dict:
        """Of [B, ...] arrays: rows over data and fsdp."""
        return {
            name: sharding.of_batch(self.mesh, len(value.shape), positions=False)
            for name, value in batch.items()
        }

    def compiled(self):
        """The step as a jitted function; it gives the state's memory back."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(
            self.step, donate_argnums=0, out_shardings=(self.shardings(), whole)
        )

    # ------------------------------------------------------------------- state

    def fresh(self, key: jax.Array) -> dict:
        """Path -> random float32 array; the first batch will fill the codebooks."""
        build, scale = jax.random.split(key)
        params = codec_start.scaled(flatten(self.build(build)), scale)
        if self.settings.scaffold:
            params = mel_scaffold.as_filter_bank(params, self.config.decoder)
        return {
            path: jnp.zeros_like(leaf) if path.endswith(".initialized") else leaf
            for path, leaf in params.items()
        }

    def init(self, params: dict, key: jax.Array) -> CodecState:
        """The state before the first step.  params: path -> float32 array."""
        generator = {path: params[path] for path in self.trained()}
        judges = {path: params[path] for path in self.judging()}
        average = jax.tree.map(jnp.copy, generator) if self.optimizer.ema else {}
        balancer = self.settings.balancer
        return CodecState(
            step=jnp.int32(0),
            params=params,
            optimizer=self.optimizer.transform().init(generator),
            discriminator_optimizer=self.discriminator_optimizer.transform().init(
                judges
            ),
            ema=average,
            norms={} if balancer is None else balancer.init(),
            key=key,
        )

    def model(self, state: CodecState, *, averaged: bool = False) -> codecs.Parts:
        """The parts that a state stands for, in float32."""
        return self.unflatten(state.params | (state.ema if averaged else {}))

    # -------------------------------------------------------------------- step

    def step(self, state: CodecState, batch: dict) -> tuple[CodecState, dict]:
        """One update of discriminators and generator, and what it measured.

        batch: see `generator.Generator`.
        """
        draw, replace = jax.random.split(jax.random.fold_in(state.key, state.step))
        generator = {path: state.params[path] for path in self.trained()}

        def generate(generator):
            parts = self.unflatten(state.params | generator)
            made = self.generator(parts, batch, draw, state.step)
            return (made.wave, self._own(made)), made

        (fake, own), back, made = jax.vjp(generate, generator, has_aux=True)
        judged, judges, judge_figures = self._judge(state, made.real, fake)
        wave_gradient, norms, heard = self._hear(state, judged, made.real, fake)
        (gradient,) = back((wave_gradient, jnp.ones_like(own)))
        moved, moments = _update(
            self.optimizer, state.optimizer, gradient, generator, state.step
        )
        average = state.ema
        if self.optimizer.ema:
            # a short memory first: else the beginning would never be forgotten
            decay = jnp.minimum(
                self.optimizer.ema, (1 + state.step) / (10 + state.step)
            )
            average = optimizer.average(state.ema, moved, decay)
        books, book_figures = self._learn(state, made, replace)
        new = state.replace(
            step=state.step + 1,
            params=state.params | judged | moved | books,
            optimizer=moments,
            discriminator_optimizer=judges,
            ema=average,
            norms=norms,
        )
        frames = jnp.float32(batch["wave"].size // self.config.samples_per_frame)
        metrics = heard | made.losses | judge_figures | book_figures
        metrics |= dict(
            loss=own + sum(self.settings.weight(n) * heard[n] for n in heard),
            gradient_norm=optax.tree.norm(gradient),
            learning_rate=self.optimizer.learning_rate()(state.step),
            frames=frames,
            positions=frames,
        )
        return new, metrics

    def _own(self, made: codecs.Reconstruction) -> jax.Array:
        """The weighted losses that do not hear the wave, float32 []."""
        weighted = [self.settings.weight(n) * v for n, v in made.losses.items()]
        return sum(weighted, start=jnp.float32(0))

    def _judge(self, state: CodecState, real: jax.Array, fake: jax.Array):
        """(discriminators after their update, their optimizer's state, figures)."""
        if not self.settings.adversarial:
            figures = dict(discriminator=0.0, discriminator_gradient_norm=0.0)
            figures = {name: jnp.float32(value) for name, value in figures.items()}
            return {}, state.discriminator_optimizer, figures
        before = {path: state.params[path] for path in self.judging()}
        fake = jax.lax.stop_gradient(fake)

        def loss(judges):
            judge = self.unflatten(state.params | judges).discriminators
            return codec_losses.discriminator_loss(
                judge(real)[0], judge(fake)[0], self.settings.kind
            )

        value, gradient = jax.value_and_grad(loss)(before)
        after, moments = _update(
            self.discriminator_optimizer,
            state.discriminator_optimizer,
            gradient,
            before,
            state.step,
        )
        norm = optax.tree.norm(gradient)
        return (
            after,
            moments,
            dict(discriminator=value, discriminator_gradient_norm=norm),
        )

    def _hear(self, state: CodecState, judged: dict, real: jax.Array, fake: jax.Array):
        """(gradient at the wave, the balancer's state, losses of the wave)."""
        s = self.settings
        if fake is None:
            return None, state.norms, {}

        def losses(fake) -> dict:
            found = dict(mel=codec_losses.mel_distance(real, fake, s.scales))
            if s.adversarial:
                judge = self.unflatten(state.params | judged).discriminators
                _, wanted = judge(real)
                scores, features = judge(fake)
                found |= dict(
                    adversarial=codec_losses.generator_loss(scores, s.kind),
                    feature=codec_losses.feature_matching(wanted, features),
                )
            return found

        values, pull = jax.vjp(losses, fake)
        if s.balancer is None:
            weights = {name: jnp.float32(s.weight(name)) for name in values}
            return pull(weights)[0], state.norms, values
        gradients = {}
        for name, weight in s.balancer.weights:
            if weight > 0:
                one = {other: jnp.float32(other == name) for other in values}
                (gradients[name],) = pull(one)
        gradient, norms = s.balancer.balance(state.norms, gradients)
        return gradient, norms, values

    def _learn(self, state: CodecState, made: codecs.Reconstruction, key: jax.Array):
        """(path -> codebooks after the batch, figures about them)."""
        if made.quantized is None:
            return {}, {}
        changed, replaced, perplexity, used = {}, [], [], []
        for name, drawn in zip(codecs.STACKS, jax.random.split(key)):
            seen, path = made.quantized[name], f"quantizer.{name}"
            count = seen.codes.shape[-1]
            done = state.params[f"encoder.{path}.initialized"]
            whole = {
                field: state.params[f"encoder.{path}.{field}"]
                for field in ("embedding_sum", "cluster_usage")
            }
            books, dead = quantizer.learn(
                quantizer.Codebooks(**{f: v[:count] for f, v in whole.items()}),
                seen,
                drawn,
                first=done[:count] == 0,
                settings=self.settings.learning,
            )
            for field, value in whole.items():
                learnt = getattr(books, field)
                changed[f"encoder.{path}.{field}"] = value.at[:count].set(learnt)
                changed[f"decoder.{path}.{field}"] = learnt
            changed[f"encoder.{path}.initialized"] = quantizer.ready(done)
            replaced.append(dead)
            perplexity.append(books.perplexity())
            share = books.cluster_usage / books.cluster_usage.mean(-1, keepdims=True)
            used.append(jnp.mean(share > USED, axis=-1))
        return changed, dict(
            replaced=jnp.concatenate(replaced),
            perplexity=jnp.concatenate(perplexity),
            usage=jnp.concatenate(used),
        )

    def score(self, state: CodecState, batch: dict) -> dict:
        """What a batch costs, with all codebooks and the averaged weights."""
        made = self.reconstruct(state, batch)
        found = dict(made.losses)
        if made.wave is None:
            return found | dict(loss=self._own(made))
        scales = self.settings.scales
        mel = codec_losses.mel_distance(made.real, made.wave, scales)
        return found | dict(loss=mel, mel=mel)

    def reconstruct(self, state: CodecState, batch: dict) -> codecs.Reconstruction:
        """What the averaged generator makes of a batch, with all codebooks."""
        model = self.model(state, averaged=True)
        return self.generator(model, batch, None, state.step)

    def listening(self) -> "Recipe | None":
        """The recipe whose `reconstruct` sounds as this stage's parts do together.

        The whole codec where there is one; None in a stage before any wave is made.
        """
        train = self.settings.train
        if train == "mel":
            return None
        sounds = train if train in ("vocoder", "join") else "all"
        settings = dataclasses.replace(self.settings, train=sounds)
        return dataclasses.replace(self, settings=settings)

    def line(self, values: dict) -> str:
        """The losses of a report, for people."""
        names = (*codecs.HEARD, *codecs.OWN, "discriminator")
        text = ", ".join(f"{n} {values[n]:.4f}" for n in names if n in values)
        if "perplexity" in values:
            text += (
                f", perplexity {values['perplexity'][0]:.0f} and "
                f"{values['perplexity'][1:].mean():.0f}"
            )
        return text


def _update(settings: optimizer.Optimizer, moments, gradient, params: dict, step):
    """(parameters after a step of AdamW, its state)."""
    updates, moments = settings.transform().update(gradient, moments, params)
    rate = settings.learning_rate()(step)
    return jax.tree.map(lambda x, u: x - rate * u, params, updates), moments
