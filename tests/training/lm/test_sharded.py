"""The same training on every mesh, each parameter where its rule says."""

import functools

import examples
import numpy as np

from qwen3tts_jax import sharding
from qwen3tts_jax.training.lm import train_step

CLOSE = 1e-5  # nats; other meshes add float32 numbers in another order
LARGE = 1024  # numbers of a parameter that must be cut
DEVICES = dict(  # mesh -> devices along the axes that cut parameters
    one={},
    data={},
    fsdp=dict(fsdp=8),
    fsdp_tensor=dict(fsdp=4, tensor=2),
    fsdp_sequence=dict(fsdp=4),
)


@functools.cache
def runs() -> dict[str, dict]:
    """mesh -> what run_sharded.py says of it: losses, and how each parameter is cut."""
    return examples.on_simulated_devices("run_sharded.py", 8)


def test_every_mesh_has_the_same_losses():
    assert set(runs()) == set(DEVICES)
    right = runs()["one"]["losses"]
    assert right[1] < right[0]
    for name, run in runs().items():
        np.testing.assert_allclose(
            run["losses"], right, rtol=0, atol=CLOSE, err_msg=name
        )


def test_parameters_are_cut_as_the_rules_say():
    leaves = train_step.flatten(examples.recipe().abstract_parts())
    for path, leaf in leaves.items():
        # rules are over paths inside a part
        axes = list(sharding.spec(path.partition(".")[2], leaf.ndim))
        assert leaf.size < LARGE or {"fsdp", "tensor"} <= set(axes), path
        axes += [None] * (leaf.ndim - len(axes))
        for name, devices in DEVICES.items():
            expected = [devices.get(axis, 1) for axis in axes]
            assert runs()[name]["cut"][path] == expected, (name, path)
