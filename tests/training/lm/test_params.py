"""Parts: random where they belong, stacked, and the same model as the modules apart."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from qwen3tts_jax import model
from qwen3tts_jax.checkpoints import weights
from qwen3tts_jax.config import released, tiny, tts
from qwen3tts_jax.generation import generate
from qwen3tts_jax.nn import tree as trees
from qwen3tts_jax.training.lm import params

CONFIG = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("custom_voice"))


@pytest.mark.parametrize(
    "size, variant",
    [
        *[(size, "base") for size in released.SIZES],
        *[("0.6B", "custom_voice"), ("1.7B", "voice_design")],
    ],
)
def test_shapes_are_those_of_the_checkpoint(size, variant):
    """As many numbers as the official layout, and every one of them has its key."""
    config = tts.Qwen3TTSConfig.from_hf(released.tts_config(size, variant))
    made, official = params.abstract(config), model.model_parts(config)
    assert (made.speaker_encoder is not None) == (variant == "base")
    pairs = dict(talker=made.talker, code_predictor=made.predictor)
    if variant == "base":
        pairs["speaker_encoder"] = made.speaker_encoder
    keys = [
        {
            key
            for name, module in modules.items()
            for leaf in weights.leaves(module, official[name][1])
            for key in leaf.keys
        }
        for modules in (pairs, {name: pair[0] for name, pair in official.items()})
    ]
    assert keys[0] == keys[1]
    whole = [pair[0] for pair in official.values()]
    assert count(made) == sum(count(module) for module in whole)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def made() -> params.Parts:
    return params.init(CONFIG, jax.random.key(1))


def test_random_parts_are_as_wide_as_the_configuration_says(made):
    flat, _ = jax.tree_util.tree_flatten_with_path(made)
    seen = set()
    for path, leaf in flat:
        name, values = trees.leaf_path(path), np.asarray(leaf)
        assert values.dtype == np.float32
        kind = name.rpartition(".")[2]
        if kind in ("kernel", "embedding", "heads"):
            # 0.02 is initializer_range of the released configurations
            few = 4 * 0.02 / np.sqrt(2 * values.size)  # four standard errors
            assert abs(values.std() - 0.02) < few + 1e-4, name
            assert abs(values.mean()) < 4 * 0.02 / np.sqrt(values.size), name
        else:
            assert (values == (kind == "scale")).all(), name
        seen.add(kind)
    assert seen == {"kernel", "embedding", "heads", "scale", "bias"}
    layers = np.asarray(made.talker.transformer.layers.mlp.up.kernel[...])
    assert layers.shape == (3, 64, 96)
    assert not np.array_equal(layers[0], layers[1])


def test_one_seed_one_model(made):
    again = params.init(CONFIG, jax.random.key(1))
    other = params.init(CONFIG, jax.random.key(2))
    heads = [np.asarray(p.predictor.heads[...]) for p in (made, again, other)]
    assert (heads[0] == heads[1]).all() and not (heads[0] == heads[2]).any()


def test_lm_is_what_generation_takes(made):
    assert isinstance(made.lm, generate.LanguageModel)
    assert made.lm.talker is made.talker and made.lm.predictor is made.predictor
    frame = made.lm.embed_frame(np.zeros((2, 16), np.int32))
    assert frame.shape == (2, 64) and np.isfinite(frame).all()


SHARDED = """
import sys
import jax, numpy as np
from qwen3tts_jax import sharding
from qwen3tts_jax.config import tts
from qwen3tts_jax.config import tiny
from qwen3tts_jax.training.lm import params

config = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("custom_voice"))
mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
cut = params.init(config, jax.random.key(1), mesh)
places = params.shardings(params.abstract(config), mesh)
for leaf, place in zip(jax.tree.leaves(cut), jax.tree.leaves(places), strict=True):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.shape, leaf.sharding)
up = cut.talker.transformer.layers.mlp.up.kernel[...]
assert up.sharding.shard_shape(up.shape) == (3, 32, 48), up.sharding
np.savez(sys.argv[1], *map(np.asarray, jax.tree.leaves(cut)))
assert len(up.sharding.device_set) == 4
"""


def test_every_leaf_is_made_where_it_belongs(request, tmp_path, made):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    tests = str(request.config.rootpath / "tests")
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path / "cut.npz")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cut = np.load(tmp_path / "cut.npz")
    for name, leaf in zip(cut.files, jax.tree.leaves(made), strict=True):
        # the same bits drawn; what is done with them may be fused in another way
        np.testing.assert_allclose(cut[name], leaf, rtol=1e-6)
