"""Trains the codec on one and on four devices; prints losses and codebooks."""

import json

import codec_examples as made
import jax
import numpy as np

from qwen3tts_jax import sharding

STEPS, ROWS = 2, 4
MESHES = dict(one={}, data=dict(data=4))


def train(shape: dict) -> dict[str, object]:
    """Losses of each step, and the statistics of the codebooks after the last."""
    recipe = made.recipe(mesh=sharding.make_mesh(**shape), dropout=0.5, bypass=0.25)
    state = jax.device_put(made.start(recipe), recipe.shardings(), may_alias=False)
    losses, step = [], recipe.compiled()
    for number in range(STEPS):
        batch = made.batch(ROWS, seed=number)
        batch = jax.device_put(batch, recipe.batch_shardings(batch))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    books = {p: np.asarray(x) for p, x in state.params.items() if "cluster_usage" in p}
    assert all(x.sharding.is_fully_replicated for x in state.params.values())
    return dict(losses=losses, usage={p: x.tolist() for p, x in books.items()})


if __name__ == "__main__":
    assert jax.device_count() == 4
    for name, shape in MESHES.items():
        print(json.dumps(dict(mesh=name) | train(shape)), flush=True)
