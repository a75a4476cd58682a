"""Every parameter of every part has a place on a mesh, and a sharded load is equal."""

import os
import re
import subprocess
import sys

import jax
import pytest

from qwen3tts_jax import model, sharding, speech_tokenizer
from qwen3tts_jax.checkpoints import parts as parts_25hz
from qwen3tts_jax.config import released, tiny, tokenizer_12hz, tokenizer_25hz, tts
from qwen3tts_jax.nn import tree


def _leaves(parts):
    for name, (module, _) in parts.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(module)[0]:
            yield name, tree.leaf_path(path), leaf


@pytest.mark.parametrize("size", released.SIZES)
def test_every_leaf_matches_a_rule_or_is_listed_as_replicated(size):
    config = tts.Qwen3TTSConfig.from_hf(released.tts_config(size, "base"))
    codec = tokenizer_12hz.Tokenizer12HzConfig.from_hf(released.tokenizer_12hz_config())
    parts = model.model_parts(config) | speech_tokenizer.tokenizer_parts(codec)
    slow = tokenizer_25hz.Tokenizer25HzConfig.from_hf(released.tokenizer_25hz_config())
    parts |= {f"{name}_25hz": part for name, part in parts_25hz.parts(slow).items()}
    ruled = [pattern for pattern, _ in sharding.RULES]
    for name, path, _ in _leaves(parts):
        known = any(re.search(p, path) for p in (*ruled, *sharding.REPLICATED))
        assert known, f"{name}: {path} is neither in RULES nor in REPLICATED"


@pytest.mark.parametrize("size", released.SIZES)
def test_large_language_model_weights_divide_the_mesh(size):
    config = tts.Qwen3TTSConfig.from_hf(released.tts_config(size, "base"))
    shape = dict(data=1, fsdp=4, tensor=4, sequence=1)
    for name, path, leaf in _leaves(model.model_parts(config)):
        if name == "speaker_encoder" or leaf.size < 1_000_000:
            continue
        axes = sharding.spec(path, leaf.ndim)
        cut = [shape[a] for a in axes if a is not None]
        assert cut, f"{name}: {path} {leaf.shape} is not cut at all"
        for axis, dim in zip(axes, leaf.shape):
            assert axis is None or dim % shape[axis] == 0, (path, leaf.shape, axes)


def test_too_many_devices_is_an_error():
    with pytest.raises(ValueError, match=f"at most {jax.device_count()}"):
        sharding.make_mesh(data=jax.device_count() + 1)


SHARDED_LOAD = """
import sys
import jax, numpy as np
from qwen3tts_jax import model, sharding
from qwen3tts_jax.config import tts
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.checkpoints import weights
path = __import__("pathlib").Path(sys.argv[1])
config = tts.Qwen3TTSConfig.from_hf(hub.read_json(path / "config.json"))
parts = model.model_parts(config)
mesh = sharding.make_mesh(fsdp=2, tensor=2)
places = {k: sharding.named(m, mesh) for k, (m, _) in parts.items()}
cut = weights.load(path, parts, dtype="float32", shardings=places)
whole = weights.load(path, parts, dtype="float32")
for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
kernel = cut["talker"].transformer.layers[0].mlp.up.kernel[...]
assert kernel.sharding.shard_shape(kernel.shape) == (32, 48), kernel.sharding
text = cut["talker"].embed_text(np.arange(5))
np.testing.assert_allclose(text, whole["talker"].embed_text(np.arange(5)), atol=1e-5)
print("equal on", len(kernel.sharding.device_set), "devices")
"""


def test_sharded_load_equals_single_device(checkpoint):
    assert tiny.TALKER["hidden_size"] == 64 and tiny.TALKER["intermediate_size"] == 96
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    result = subprocess.run(
        [sys.executable, "-c", SHARDED_LOAD, str(checkpoint("base"))],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "equal on 4 devices" in result.stdout
