"""What a training run carries from step to step, and the step itself.

Parameters are kept as one dict, path -> array: names for freeze masks, logs,
checkpoints and stage hand-over, whatever is trained of them.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen3tts_jax import sharding
from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import tree as trees
from qwen3tts_jax.training import fsdp, optimizer
from qwen3tts_jax.training.lm import lora, losses
from qwen3tts_jax.training.lm import params as model_parts

NOT_BY_POSITION = ("x_vector", "mel", "mel_length")  # fields with a voice axis instead


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the key that it does not.

    Attributes:
        step: int32 [], steps done.
        params: path -> float32 array, every parameter of `Parts`.
        adapters: path -> LoRA arrays; empty without LoRA.
        optimizer: optax state over what is trained.
        ema: path -> float32 array, averages of what is trained; may be empty.
        key: PRNG key []; step n draws from fold_in(key, n).
    """

    step: jax.Array
    params: dict
    adapters: dict
    optimizer: optax.OptState
    ema: dict
    key: jax.Array


def flatten(parts: model_parts.Parts) -> dict:
    """Path -> leaf of Parts, or of anything with its structure."""
    flat, _ = jax.tree_util.tree_flatten_with_path(parts)
    return {trees.leaf_path(path): leaf for path, leaf in flat}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that is static in a step.

    Attributes:
        config: of the model.
        optimizer, packing, adapters: settings; adapters None for full training.
        dtype: of the computation; master weights are float32.
        accumulate: parts into which the rows of a step are cut, one after the other.
        mesh: the devices; None for one (`compiled` and `shardings` need a mesh).
    """

    config: tts.Qwen3TTSConfig
    optimizer: optimizer.Optimizer
    packing: losses.Packing
    adapters: lora.LoRA | None = None
    dtype: str = "bfloat16"
    accumulate: int = 1
    mesh: Mesh | None = None

    checked = ("loss", "gradient_norm")  # figures that must be finite

    def __post_init__(self):
        if self.adapters is not None and self.optimizer.freeze:
            raise ValueError(
                f"got freeze {self.optimizer.freeze} with LoRA, expected none: only "
                "adapters are trained; choose them by the LoRA targets"
            )

    @property
    def gather(self) -> fsdp.Gather:
        return fsdp.Gather(self.mesh, self.dtype)

    # ------------------------------------------------------------------ shapes

    def abstract_parts(self) -> model_parts.Parts:
        return model_parts.abstract(self.config)

    def unflatten(self, params: Mapping) -> model_parts.Parts:
        """Parts of path -> leaf."""
        abstract = self.abstract_parts()
        tree = jax.tree.structure(abstract)
        return jax.tree.unflatten(tree, [params[p] for p in flatten(abstract)])

    def trained(self) -> tuple[str, ...]:
        """Paths of the parameters that the optimizer moves; none with LoRA."""
        if self.adapters is not None:
            return ()
        return self.optimizer.trainable(flatten(self.abstract_parts()))

    def shardings(self) -> TrainState:
        """Where each leaf of the state lives on the mesh.

        Moments and averages live where their parameter does.
        """
        params = flatten(model_parts.shardings(self.abstract_parts(), self.mesh))
        whole = NamedSharding(self.mesh, PartitionSpec())
        abstract = jax.eval_shape(self.init, self.abstract_params(), jax.random.key(0))

        def like_parameter(path, leaf):
            name = str(getattr(path[-1], "key", "")) if path else ""
            fits = name in params and leaf.ndim == len(params[name].spec)
            return params[name] if fits else whole

        tree = jax.tree_util.tree_map_with_path(like_parameter, abstract)
        return tree.replace(params=params)

    def abstract(self) -> TrainState:
        """The state's shapes, each with the place where it lives."""
        shapes = jax.eval_shape(self.init, self.abstract_params(), jax.random.key(0))
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            shapes,
            self.shardings(),
        )

    def abstract_params(self) -> dict:
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
            for path, leaf in flatten(self.abstract_parts()).items()
        }

    def batch_shardings(self, batch: Mapping) -> dict:
        """Of [B, ...] arrays: rows over data and fsdp, positions over sequence."""
        return {
            name: sharding.of_batch(
                self.mesh, len(value.shape), positions=name not in NOT_BY_POSITION
            )
            for name, value in batch.items()
        }

    def compiled(self):
        """The step as a jitted function; it gives the state's memory back."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(
            self.step, donate_argnums=0, out_shardings=(self.shardings(), whole)
        )

    # -------------------------------------------------------------------- state

    def init(self, params: dict, key: jax.Array) -> TrainState:
        """The state before the first step.  params: path -> float32 array."""
        adapters_key, key = jax.random.split(key)
        adapters = {}
        if self.adapters is not None:
            adapters = self.adapters.init(params, adapters_key)
        trained = self._subset(params, adapters)
        average = jax.tree.map(jnp.copy, trained) if self.optimizer.ema else {}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            adapters=adapters,
            optimizer=self.optimizer.transform().init(trained),
            ema=average,
            key=key,
        )

    def _subset(self, params: dict, adapters: dict) -> dict:
        return adapters or {path: params[path] for path in self.trained()}

    def model(self, state: TrainState, *, averaged: bool = False) -> model_parts.Parts:
        """The parts that a state stands for, adapters merged, in float32."""
        best = state.ema if averaged and state.ema else None
        if self.adapters is not None:
            params = self.adapters.merge(state.params, best or state.adapters)
        else:
            params = state.params | (best or {})
        return self.unflatten(params)

    # --------------------------------------------------------------------- step

    def step(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        """One update, and what it measured (float32 arrays).

        batch: arrays [B, ...] of `data.loading.packed_rows.pack`; B is a multiple of
            `accumulate`.
        """
        eos = self.config.talker.codec_eos_id
        total = losses.counts(batch, eos, self.packing)
        trained = self._subset(state.params, state.adapters)
        key = jax.random.fold_in(state.key, state.step)
        grads, sums = self._gradients(trained, state.params, batch, total, key)
        transform = self.optimizer.transform()
        updates, moments = transform.update(grads, state.optimizer, trained)
        rate = self.optimizer.learning_rate()(state.step)
        moved = jax.tree.map(lambda x, update: x - rate * update, trained, updates)
        average = state.ema
        if self.optimizer.ema:
            average = optimizer.average(state.ema, moved, self.optimizer.ema)
        has_adapters = self.adapters is not None
        new = state.replace(
            step=state.step + 1,
            params=state.params if has_adapters else state.params | moved,
            adapters=moved if has_adapters else {},
            optimizer=moments,
            ema=average,
        )
        metrics = losses.means(sums, total, self.packing) | dict(
            gradient_norm=optax.tree.norm(grads),
            learning_rate=rate,
            **_work(batch, total),
        )
        return new, metrics

    def score(self, state: TrainState, batch: dict) -> dict:
        """What a batch costs, nothing changed; every frame's predictor is scored."""
        packing = dataclasses.replace(self.packing, predictor_fraction=1.0)
        total = losses.counts(batch, self.config.talker.codec_eos_id, packing)
        parts = self.model(state)
        _, sums = losses.packed(
            parts, batch, total, state.key, packing=packing, gather=self.gather
        )
        return losses.means(sums, total, packing)

    def line(self, values: dict) -> str:
        """The losses of a report, for people."""
        losses = values["cross_entropy"]
        return f"codebook 0 {losses[0]:.4f}, 1..15 {losses[1:].mean():.4f}"

    def _gradients(self, trained, params, batch, total, key):
        """(gradients, Sums) over all rows, a part of them at a time."""

        def loss(trained, rows, key):
            if self.adapters is not None:
                whole = self.adapters.merge(params, trained)
            else:
                whole = params | trained
            parts = self.unflatten(whole)
            return losses.packed(
                parts, rows, total, key, packing=self.packing, gather=self.gather
            )

        gradient = jax.grad(loss, has_aux=True)
        if self.accumulate == 1:
            return gradient(trained, batch, key)

        def add(carry, part):
            rows, number = part
            made = gradient(trained, rows, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, carry, made), None

        parts = {name: self._cut(value) for name, value in batch.items()}
        first = jax.eval_shape(
            gradient, trained, {k: v[0] for k, v in parts.items()}, key
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        numbers = jnp.arange(self.accumulate)
        return jax.lax.scan(add, zeros, (parts, numbers))[0]

    def _cut(self, x: jax.Array) -> jax.Array:
        """[B, ...] -> [A, B / A, ...]; each part takes rows of every device."""
        x = x.reshape(-1, self.accumulate, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0)


def _work(batch: dict, total: losses.Counts) -> dict:
    """What a step's speed and FLOPs are counted from, float32 []."""
    used = batch["segment"] > 0
    seen = jnp.where(used, batch["position"] + 1, 0)  # a position sees itself too
    return dict(
        positions=jnp.sum(used).astype(jnp.float32),
        pairs=jnp.sum(seen.astype(jnp.float32)),
        frames=total.frames,
        chosen=total.chosen,
    )
