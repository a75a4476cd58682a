"""Trains on 8 simulated devices, each mesh in turn; prints losses and placements."""

import json

import examples
import jax
import numpy as np

from qwen3tts_jax import sharding
from qwen3tts_jax.training.lm import train_step

STEPS = 2
MESHES = dict(
    one={},
    data=dict(data=8),
    fsdp=dict(fsdp=8),
    fsdp_tensor=dict(fsdp=4, tensor=2),
    fsdp_sequence=dict(fsdp=4, sequence=2),
)
BATCHES = [examples.batch(8, seed=number) for number in range(STEPS)]


def begin(recipe: train_step.Recipe) -> train_step.TrainState:
    """The first state, the same on every mesh; made on one device, then cut."""
    state = jax.jit(recipe.init)(examples.params(), jax.random.key(1))
    # a step uses its state up: what lies on the first device must be a copy
    return jax.device_put(state, recipe.shardings(), may_alias=False)


def train(shape: dict) -> dict[str, object]:
    """Some steps on a mesh: their losses, and into how many parts each axis of each
    parameter was cut after them."""
    recipe = examples.recipe(
        mesh=sharding.make_mesh(**shape), packing=dict(predictor_fraction=0.5)
    )
    state, step, losses = begin(recipe), recipe.compiled(), []
    before = {path: np.asarray(x) for path, x in state.params.items()}
    for batch in BATCHES:
        batch = jax.device_put(batch, recipe.batch_shardings(batch))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    for path, x in state.params.items():
        assert np.isfinite(x).all() and (np.asarray(x) != before[path]).any(), path
    cut, moments = {p: parts(x) for p, x in state.params.items()}, 0
    for path, x in jax.tree_util.tree_flatten_with_path(state.optimizer)[0]:
        name = getattr(path[-1], "key", None)
        assert name is None or parts(x) == cut[name], path
        moments += name is not None
    assert moments == 2 * len(cut)
    return dict(losses=losses, cut=cut)


def parts(x: jax.Array) -> list[int]:
    shard = x.sharding.shard_shape(x.shape)
    return [whole // part for whole, part in zip(x.shape, shard)]


if __name__ == "__main__":
    assert jax.device_count() == 8
    for name, shape in MESHES.items():
        print(json.dumps(dict(mesh=name) | train(shape)), flush=True)
