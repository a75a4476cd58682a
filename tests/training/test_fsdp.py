"""Parameters gathered over fsdp: the same numbers, gradients cut as they were."""

import os
import subprocess
import sys

import jax.numpy as jnp
from flax import nnx

from qwen3tts_jax.nn import layers
from qwen3tts_jax.training import fsdp

GATHERED = """
import contract, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from qwen3tts_jax import sharding
from qwen3tts_jax.config import tts as configs
from qwen3tts_jax.models import code_predictor
from qwen3tts_jax.models import talker
from qwen3tts_jax.config import tiny
from qwen3tts_jax.nn import attention
from qwen3tts_jax.training import fsdp
from qwen3tts_jax.training.lm import params

tts = configs.Qwen3TTSConfig.from_hf(tiny.tts_config("base"))
part = contract.random_part(
    lambda: talker.Talker(tts.talker, rngs=nnx.Rngs(0), stacked=True))
ids = np.arange(8 * 6).reshape(8, 6) % 50
positions = jnp.broadcast_to(jnp.arange(6)[None], (8, 6))

def loss(part, ids, gather):
    part = gather(part, but_layers=True)
    x = part.embed_text(ids) + part.embed_codec(ids)
    y, _ = part.transformer(
        x, positions, attention.causal_mask(6), remat="full", gather=gather)
    return jnp.mean(part.logits(y) ** 2)

gradient = jax.jit(jax.value_and_grad(loss), static_argnums=2)
right = gradient(part, ids, fsdp.Gather(None, "float32"))
mesh = sharding.make_mesh(data=2, fsdp=2)
places = sharding.named(part, mesh)
rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
made = gradient(
    jax.device_put(part, places), jax.device_put(ids, rows),
    fsdp.Gather(mesh, "float32"))
cut = 0
for got, expected, place in zip(*map(jax.tree.leaves, (made[1], right[1], places))):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * scale)
    if "fsdp" in place.spec:
        assert got.sharding.shard_shape(got.shape) == place.shard_shape(got.shape)
        cut += 1
# inside Parts, as alone
predictor = contract.random_part(
    lambda: code_predictor.CodePredictor(tts.code_predictor, rngs=nnx.Rngs(0)))
everything = params.Parts(None, predictor, None)
places = params.shardings(everything, mesh)
made_whole = jax.jit(fsdp.Gather(mesh, "float32"))(jax.device_put(everything, places))
for leaf, place in zip(jax.tree.leaves(made_whole), jax.tree.leaves(places)):
    if "fsdp" in place.spec:
        assert leaf.sharding.is_fully_replicated
assert "fsdp" in jax.tree.leaves(places.predictor.embedding)[0].spec

print(float(made[0]), float(right[0]), "cut", cut)
np.testing.assert_allclose(made[0], right[0], rtol=1e-5)
"""


def test_gathered_parameters_give_the_same_losses_and_gradients():
    """A tiny talker on 2 x 2 simulated devices: each gradient stays with its part.

    Then a predictor in Parts: whatever is cut becomes whole, its tables too.
    """
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    env = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", GATHERED], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 12, done.stdout


def test_without_a_mesh_it_only_casts():
    linear = layers.Linear(3, 2, rngs=nnx.Rngs(0))
    made = fsdp.Gather(None, "bfloat16")(linear)
    assert made.kernel[...].dtype == jnp.bfloat16
    assert (made.kernel[...] == linear.kernel[...].astype(jnp.bfloat16)).all()
