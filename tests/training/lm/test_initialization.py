"""Training starts from official weights, or from a Qwen3 text model's layers."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import parity
import pytest
import safetensors.numpy

from qwen3tts_jax import model
from qwen3tts_jax.checkpoints import hub, weights
from qwen3tts_jax.config import tiny, tts
from qwen3tts_jax.nn import attention, tree
from qwen3tts_jax.training.lm import initialization, params


def config_of(directory) -> tts.Qwen3TTSConfig:
    return tts.Qwen3TTSConfig.from_hf(hub.read_json(directory / "config.json"))


# ---------------------------------------------------------------- official weights


@pytest.mark.parametrize("variant", ["base", "custom_voice"])
def test_official_weights_are_those_of_the_file(checkpoint, variant):
    """Stacked, and as float32 exactly what the file has in bfloat16."""
    path = checkpoint(variant)
    made = initialization.from_official(path, config_of(path))
    rules = {n: pair[1] for n, pair in model.model_parts(config_of(path)).items()}
    modules = dict(talker=made.talker, code_predictor=made.predictor)
    if variant == "base":
        modules["speaker_encoder"] = made.speaker_encoder
    else:
        assert made.speaker_encoder is None
    found = safetensors.numpy.load_file(path / weights.WEIGHTS)
    seen = set()
    for name, module in modules.items():
        for leaf, value in zip(
            weights.leaves(module, rules[name]), jax.tree.leaves(module)
        ):
            assert value.dtype == np.float32
            rows = np.asarray(value) if leaf.stacked else np.asarray(value)[None]
            for key, row in zip(leaf.keys, rows, strict=True):
                official = leaf.layout.to_official(row)
                np.testing.assert_array_equal(official, found[key].astype(np.float32))
                seen.add(key)
    assert seen == found.keys()
    up = made.talker.transformer.layers.mlp.up.kernel
    assert up.shape == (3, 64, 96)  # stacked


def test_official_weights_of_another_size_are_one_error(checkpoint):
    config = tts.Qwen3TTSConfig.from_hf(tiny.tts_config("base", "1.7B"))
    with pytest.raises(ValueError, match="do not fit its config.json") as caught:
        initialization.from_official(checkpoint("base"), config)
    assert "talker.code_predictor.small_to_mtp_projection.weight" in str(caught.value)


# ------------------------------------------------------------------- a text model


def text_config(size: str = "1.7B") -> dict:
    """config.json of a tiny Qwen3 text model, with the layers of the tiny talker."""
    talker = tiny.tts_config("base", size)["talker_config"]
    names = (
        *("attention_bias", "head_dim", "hidden_act", "hidden_size"),
        *("intermediate_size", "num_attention_heads", "num_hidden_layers"),
        *("num_key_value_heads", "rms_norm_eps", "rope_theta", "use_sliding_window"),
    )
    return {name: talker[name] for name in names} | dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        rope_scaling=None,
        tie_word_embeddings=True,
        vocab_size=500,
    )


def text_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Source: Qwen3ForCausalLM of transformers 4.57."""
    dim, ffn, head = (
        config[n] for n in ("hidden_size", "intermediate_size", "head_dim")
    )
    queries = head * config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (queries, dim),
        "self_attn.k_proj": (keys, dim),
        "self_attn.v_proj": (keys, dim),
        "self_attn.o_proj": (dim, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (ffn, dim),
        "mlp.up_proj": (ffn, dim),
        "mlp.down_proj": (dim, ffn),
        "input_layernorm": (dim,),
        "post_attention_layernorm": (dim,),
    }
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], dim),
        "model.norm.weight": (dim,),
    }
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{n}.weight": s for n, s in layer.items()}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], dim)
    return shapes


def write_text_model(path, config: dict) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    tensors = {
        name: draw.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in text_shapes(config).items()
    }
    path.mkdir()
    safetensors.numpy.save_file(tensors, path / weights.WEIGHTS)
    (path / "config.json").write_text(json.dumps(config))
    return tensors


@pytest.fixture(scope="module")
def official(checkpoint):
    """official(size) -> parts to fill, read once."""

    @functools.cache
    def get(size: str) -> params.Parts:
        path = checkpoint("base", size)
        return initialization.from_official(path, config_of(path))

    return get


OURS = {
    "attention.query.kernel": "self_attn.q_proj",
    "attention.key.kernel": "self_attn.k_proj",
    "attention.value.kernel": "self_attn.v_proj",
    "attention.out.kernel": "self_attn.o_proj",
    "attention.query_norm.scale": "self_attn.q_norm",
    "attention.key_norm.scale": "self_attn.k_norm",
    "mlp.gate.kernel": "mlp.gate_proj",
    "mlp.up.kernel": "mlp.up_proj",
    "mlp.down.kernel": "mlp.down_proj",
    "attention_norm.scale": "input_layernorm",
    "mlp_norm.scale": "post_attention_layernorm",
}


def by_path(module) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(module)
    return {tree.leaf_path(path): np.asarray(leaf) for path, leaf in flat}


@pytest.mark.parametrize("tied", [True, False])
def test_layers_and_embedding_come_from_the_text_model(tmp_path, official, tied):
    """1.7B: the widths agree.  All else stays as it was."""
    before = official("1.7B")
    config = text_config() | dict(tie_word_embeddings=tied)
    tensors = write_text_model(tmp_path / "text", config)
    made, notes = initialization.from_qwen3_text(before, tmp_path / "text")
    new, old = by_path(made.talker), by_path(before.talker)
    for name, key in OURS.items():
        expected = [tensors[f"model.layers.{i}.{key}.weight"].T for i in range(3)]
        np.testing.assert_array_equal(
            new.pop(f"transformer.layers.{name}"), np.stack(expected), name
        )
    norm = new.pop("transformer.norm.scale")
    np.testing.assert_array_equal(norm, tensors["model.norm.weight"])
    table = new.pop("text_embedding.embedding")
    np.testing.assert_array_equal(table[:500], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(table[500:], old["text_embedding.embedding"][500:])
    assert new.keys() == {
        *("codec_embedding.embedding", "codec_head.kernel"),
        *(f"text_projection.fc{i}.{n}" for i in (1, 2) for n in ("kernel", "bias")),
    }
    for name, value in new.items():
        np.testing.assert_array_equal(value, old[name], name)
    assert made.predictor is before.predictor
    assert made.speaker_encoder is before.speaker_encoder
    assert notes == [
        f"took 3 layers and the last norm from {tmp_path / 'text'}",
        "took 500 rows of the text embedding",
    ]


def test_a_text_embedding_of_another_width_is_kept_and_said(tmp_path, official):
    """0.6B: Qwen3-0.6B is 1024 wide, the text embedding 2048."""
    before = official("0.6B")
    config = text_config("0.6B") | dict(rope_theta=10000.0, rms_norm_eps=1e-5)
    write_text_model(tmp_path / "text", config)
    made, notes = initialization.from_qwen3_text(before, tmp_path / "text")
    new, old = by_path(made.talker), by_path(before.talker)
    same = {name for name in old if np.array_equal(new[name], old[name])}
    assert "text_embedding.embedding" in same
    assert not [name for name in same if name.startswith("transformer.")]
    assert made.talker.config == before.talker.config
    assert notes[1:] == [
        "their rope_theta is 10000: kept ours, 1e+06",
        "their norm_eps is 1e-05: kept ours, 1e-06",
        "kept the random text embedding: theirs is 64 wide, ours 32",
    ]


def test_a_larger_vocabulary_is_cut(tmp_path, official):
    before = official("1.7B")
    size = before.talker.config.text_vocab_size
    tensors = write_text_model(
        tmp_path / "text", text_config() | dict(vocab_size=size + 3)
    )
    made, notes = initialization.from_qwen3_text(before, tmp_path / "text")
    table = np.asarray(made.talker.text_embedding.embedding[...])
    np.testing.assert_array_equal(table, tensors["model.embed_tokens.weight"][:size])
    assert notes[-1] == f"took {size} rows of the text embedding"


BAD_TEXT = [
    (dict(architectures=["LlamaForCausalLM"]), "no Qwen3 text.*got.*Llama.*Qwen3For"),
    (dict(attention_bias=True), "attention_bias: got True"),
    (dict(rope_scaling=dict(rope_type="yarn", factor=4.0)), "rope_scaling: got.*yarn"),
    (
        dict(hidden_size=128, num_hidden_layers=4),
        r"\(dim: got 128, expected 64; layers: got 4, expected 3\); take the Qwen3",
    ),
]


@pytest.mark.parametrize("changes, message", BAD_TEXT)
def test_another_text_model_is_an_error(tmp_path, official, changes, message):
    write_text_model(tmp_path / "text", text_config() | changes)
    with pytest.raises(ValueError, match=message):
        initialization.from_qwen3_text(official("1.7B"), tmp_path / "text")


def test_a_missing_field_is_an_error(tmp_path, official):
    config = text_config()
    del config["architectures"], config["vocab_size"]
    write_text_model(tmp_path / "text", text_config())
    (tmp_path / "text" / "config.json").write_text(json.dumps(config))
    message = "architectures: missing.*vocab_size: missing"
    with pytest.raises(ValueError, match=message):
        initialization.from_qwen3_text(official("1.7B"), tmp_path / "text")


def test_weights_that_do_not_fit_are_listed_in_one_error(tmp_path, official):
    tensors = write_text_model(tmp_path / "text", text_config())
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((97, 64), np.float32)
    del tensors["model.norm.weight"]
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((96, 64), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "text" / weights.WEIGHTS)
    with pytest.raises(ValueError, match=r"\(3 problems\)") as caught:
        initialization.from_qwen3_text(official("1.7B"), tmp_path / "text")
    for words in (
        "missing: model.norm.weight",
        "unexpected: model.layers.3.mlp.up_proj.weight",
        "mis-shaped: model.layers.1.mlp.up_proj.weight: got (97, 64), expected (96,",
    ):
        assert words in str(caught.value)


def test_no_weights_is_an_error(tmp_path, official):
    write_text_model(tmp_path / "text", text_config())
    (tmp_path / "text" / weights.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="weights are missing"):
        initialization.from_qwen3_text(official("1.7B"), tmp_path / "text")


SHARDED = """
import sys
from pathlib import Path
import jax, numpy as np
from qwen3tts_jax import sharding
from qwen3tts_jax.config import tts
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.training.lm import params
from qwen3tts_jax.training.lm import initialization

path, text = map(Path, sys.argv[1:])
config = tts.Qwen3TTSConfig.from_hf(hub.read_json(path / "config.json"))
mesh = sharding.make_mesh(fsdp=2, tensor=2)
cut = initialization.from_official(path, config, mesh)
cut, _ = initialization.from_qwen3_text(cut, text)
whole = initialization.from_official(path, config)
whole, _ = initialization.from_qwen3_text(whole, text)
places = params.shardings(params.abstract(config), mesh)
leaves = map(jax.tree.leaves, (cut, whole, places))
for a, b, place in zip(*leaves, strict=True):
    assert a.sharding.is_equivalent_to(place, a.ndim), (a.shape, a.sharding)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
up = cut.talker.transformer.layers.mlp.up.kernel[...]
print(up.sharding.shard_shape(up.shape), len(up.sharding.device_set))
"""


def test_weights_go_where_they_belong_on_a_mesh(tmp_path, checkpoint):
    write_text_model(tmp_path / "text", text_config())
    arguments = [str(checkpoint("base", "1.7B")), str(tmp_path / "text")]
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[0] == "(3, 32, 48) 4"


RUN_TEXT = """
import sys
import numpy as np
import torch
import transformers

path, out = sys.argv[1:]
model = transformers.Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32)
ids = torch.arange(40).reshape(2, 20) * 7 % 500
with torch.no_grad():
    made = model.model(input_ids=ids)
np.savez(out, ids=ids.numpy(), hidden=made.last_hidden_state.numpy())
"""


@pytest.mark.oracle
def test_the_layers_compute_what_the_text_model_computes(tmp_path, official):
    """transformers' own Qwen3, on the same weights."""
    write_text_model(tmp_path / "text", text_config())
    arguments = [str(tmp_path / name) for name in ("text", "out.npz")]
    done = subprocess.run(
        [parity.official_python(), "-c", RUN_TEXT, *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = np.load(tmp_path / "out.npz")
    made, _ = initialization.from_qwen3_text(official("1.7B"), tmp_path / "text")
    x = made.talker.text_embedding(theirs["ids"])
    mask = attention.causal_mask(20)
    hidden, _ = made.talker.transformer(x, np.arange(20)[None], mask)
    parity.assert_close("text hidden", hidden, theirs["hidden"], parity.CLOSE)
