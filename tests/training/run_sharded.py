"""Trains on 8 simulated devices, each mesh in turn; prints losses and placements."""

import json

import examples
import jax
import numpy as np

from qwen3tts_jax import sharding

STEPS = 3
MESHES = dict(
    one={},
    data=dict(data=8),
    fsdp=dict(fsdp=8),
    fsdp_tensor=dict(fsdp=4, tensor=2),
    fsdp_sequence=dict(fsdp=4, sequence=2),
)


def losses(shape: dict) -> tuple[list[float], dict[str, str]]:
    """The losses of some steps on a mesh, and where every parameter lay after them."""
    recipe = examples.recipe(
        mesh=sharding.make_mesh(**shape), packing=dict(predictor_fraction=0.5)
    )
    places = recipe.shardings()
    state = jax.jit(recipe.init, out_shardings=places)(
        examples.params(), jax.random.key(1)
    )
    step, made = recipe.compiled(), []
    for number in range(STEPS):
        batch = examples.batch(8, seed=number)
        batch = jax.device_put(batch, recipe.batch_shardings(batch))
        state, metrics = step(state, batch)
        made.append(float(metrics["loss"]))
    lie = {path: str(x.sharding.spec) for path, x in state.params.items()}
    for path, x in state.params.items():
        assert x.sharding.is_equivalent_to(places.params[path], x.ndim), path
    moved = examples.params()
    assert all(np.isfinite(np.asarray(x)).all() for x in state.params.values())
    assert any((np.asarray(x) != moved[p]).any() for p, x in state.params.items())
    return made, lie


if __name__ == "__main__":
    assert jax.device_count() == 8
    for name, shape in MESHES.items():
        made, lie = losses(shape)
        print(json.dumps(dict(mesh=name, losses=made, places=lie)), flush=True)
