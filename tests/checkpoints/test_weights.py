"""Weights and configurations in and out: exact, strict, whole or not at all, lean.

golden/shapes/*.json.gz list the name and shape of every tensor of the released files:
the state_dict of the official classes of qwen-tts 0.1.1 for the released config.json.
"""

import functools
import gzip
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy

import qwen3tts_jax
from qwen3tts_jax import model, speech_tokenizer
from qwen3tts_jax.checkpoints import hub, random_weights
from qwen3tts_jax.checkpoints import weights as weight_files
from qwen3tts_jax.config import released, tiny, tokenizer_12hz
from qwen3tts_jax.config import tts as configs

MODEL_PARTS = ("talker", "code_predictor", "speaker_encoder")


@pytest.fixture(scope="module")
def directory(checkpoint) -> pathlib.Path:
    return checkpoint("base")


@pytest.fixture
def broken(directory, tmp_path) -> pathlib.Path:
    """A copy to damage."""
    return shutil.copytree(directory, tmp_path / "broken")


def load(path, dtype="float32") -> model.Qwen3TTSModel:
    return model.Qwen3TTSModel.from_pretrained(path, dtype=dtype)


@functools.cache
def abstract() -> dict:
    return model.model_parts(configs.Qwen3TTSConfig.from_hf(tiny.tts_config("base")))


def load_weights(path) -> dict:
    """The language model and speaker encoder alone."""
    return weight_files.load(path, abstract(), dtype=jnp.float32)


def parts(tts: model.Qwen3TTSModel) -> dict:
    lm, codec = tts.language_model, tts.speech_tokenizer
    return dict(
        talker=lm.talker,
        code_predictor=lm.predictor,
        speaker_encoder=tts.speaker_encoder,
        encoder=codec.encoder,
        decoder=codec.decoder,
    )


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, over its shards."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(file)
    return found


# ------------------------------------------------------------------ round trips


def bits(array) -> tuple:
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


@pytest.mark.parametrize("shard_bytes", [None, 3_000_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_export_import_changes_no_bit(
    directory, tmp_path, monkeypatch, dtype, shard_bytes
):
    if shard_bytes:
        monkeypatch.setattr(weight_files, "MAX_SHARD_BYTES", shard_bytes)
    first = load(directory, dtype)
    first.save_pretrained(tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("model-*"))
    assert (tmp_path / "out" / weight_files.INDEX).exists() == bool(shards)
    assert len(shards) > 2 if shard_bytes else not shards
    again = load(tmp_path / "out", dtype)
    for name, part in parts(first).items():
        old, new = jax.tree.leaves(part), jax.tree.leaves(parts(again)[name])
        assert [bits(leaf) for leaf in old] == [bits(leaf) for leaf in new], name
    assert first.config == again.config
    assert first.speech_tokenizer.config == again.speech_tokenizer.config
    assert first.generate_defaults == again.generate_defaults


def test_export_gives_back_every_tensor(directory, tmp_path):
    """Language model bfloat16, codec float32, as in the official files."""
    load(directory, "bfloat16").save_pretrained(tmp_path / "out")
    load(directory).save_pretrained(tmp_path / "cast", dtype="bfloat16")
    for folder in (".", model.SPEECH_TOKENIZER):
        theirs = tensors(directory / folder)
        assert theirs
        for out in ("out", "cast"):
            ours = tensors(tmp_path / out / folder)
            assert ours.keys() == theirs.keys()
            for key, tensor in theirs.items():
                assert bits(ours[key]) == bits(tensor), key


def test_export_has_every_file(directory, tmp_path):
    load(directory).save_pretrained(tmp_path / "out")

    def files(path):
        return sorted(str(p.relative_to(path)) for p in path.rglob("*"))

    assert files(tmp_path / "out") == files(directory)
    for name in files(directory):
        if name.endswith((".json", ".txt")):
            ours, theirs = (tmp_path / "out" / name), directory / name
            if name.endswith(".json"):
                assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
            else:
                assert ours.read_bytes() == theirs.read_bytes()


def test_tokenizer_export_alone(directory, tmp_path):
    codec = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(
        directory / model.SPEECH_TOKENIZER
    )
    codec.save_pretrained(tmp_path / "out")
    theirs = tensors(directory / model.SPEECH_TOKENIZER)
    ours = tensors(tmp_path / "out")
    assert {k: bits(v) for k, v in ours.items()} == {
        k: bits(v) for k, v in theirs.items()
    }
    qwen3tts_jax.Qwen3TTSTokenizer.from_pretrained(tmp_path / "out")


def test_codebooks_stay_float32(directory, tmp_path):
    """Their entries are sums over clamped counts: bfloat16 would blur codewords."""
    codec = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(
        directory / model.SPEECH_TOKENIZER, dtype="bfloat16"
    )
    codec.save_pretrained(tmp_path / "out")
    codec.save_pretrained(tmp_path / "cast", dtype="bfloat16")
    theirs = tensors(directory / model.SPEECH_TOKENIZER)
    books = [key for key in theirs if re.search("usage|embed_sum|embedding_sum", key)]
    assert len(books) == 2 * (16 + 32)
    for out in ("out", "cast"):
        ours = tensors(tmp_path / out)
        for key, tensor in theirs.items():
            if key in books:
                assert bits(ours[key]) == bits(tensor), key
            elif not key.endswith("initialized"):
                assert ours[key].dtype == jnp.bfloat16, key


# ------------------------------------------------------------------- strictness


def rewrite(path: pathlib.Path, change) -> None:
    values = safetensors.numpy.load_file(path)
    change(values)
    safetensors.numpy.save_file(values, path)


def test_every_misfit_is_listed_in_one_error(broken):
    gone = ["talker.model.layers.1.mlp.up_proj.weight", "speaker_encoder.fc.bias"]
    gone.append("talker.code_predictor.lm_head.7.weight")
    extra = ["talker.model.layers.3.mlp.up_proj.weight", "lm_head.weight"]
    bent = {"talker.codec_head.weight": (64, 3072), "speaker_encoder.fc.weight": (64,)}

    def change(values):
        for name in gone:
            del values[name]
        values |= {name: np.zeros(3, np.float32) for name in extra}
        values |= {name: np.zeros(s, np.float32) for name, s in bent.items()}

    rewrite(broken / weight_files.WEIGHTS, change)
    with pytest.raises(ValueError) as caught:
        load_weights(broken)
    lines = str(caught.value).splitlines()
    assert "do not fit" in lines[0] and "(7 problems)" in lines[0]
    assert sum("missing: " in line for line in lines) == len(gone)
    assert sum("unexpected: " in line for line in lines) == len(extra)
    assert sum("mis-shaped: " in line for line in lines) == len(bent)
    for name in (*gone, *extra, *bent):
        assert sum(name in line for line in lines) == 1, name
    (line,) = [line for line in lines if "codec_head" in line]
    assert "got (64, 3072), expected (3072, 64)" in line


def test_a_codec_that_does_not_fit(broken):
    path = broken / model.SPEECH_TOKENIZER / weight_files.WEIGHTS
    rewrite(path, lambda values: values.pop("decoder.pre_conv.conv.bias"))
    with pytest.raises(ValueError, match="missing: decoder.pre_conv.conv.bias"):
        load(broken)


@pytest.mark.parametrize("keep", [0, 7, 1000, 0.5, -1])
def test_a_truncated_file(broken, keep):
    path = broken / weight_files.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match="not a whole safetensors file.*download"):
        load_weights(broken)


def test_a_missing_shard(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_SHARD_BYTES", 3_000_000)
    rules = {name: rules for name, (_, rules) in abstract().items()}
    loaded = load_weights(directory)
    weight_files.save(tmp_path, {name: (loaded[name], rules[name]) for name in loaded})
    shards = sorted(path.name for path in tmp_path.glob("model-*"))
    index = json.loads((tmp_path / weight_files.INDEX).read_text())
    assert set(index["weight_map"].values()) == set(shards)
    size = sum(tensor.nbytes for tensor in tensors(tmp_path).values())
    assert index["metadata"]["total_size"] == size
    (tmp_path / shards[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"missing: .*{re.escape(shards[1])}"):
        load_weights(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / shards[1])
    load_weights(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index(tmp_path, text):
    (tmp_path / weight_files.INDEX).write_text(text)
    with pytest.raises(
        ValueError, match=f"{weight_files.INDEX} is not a safetensors index"
    ):
        load_weights(tmp_path)


FILES = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    weight_files.WEIGHTS,
    f"{model.SPEECH_TOKENIZER}/config.json",
    f"{model.SPEECH_TOKENIZER}/{weight_files.WEIGHTS}",
)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(broken, name):
    (broken / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(pathlib.Path(name).name)):
        load(broken)


@pytest.mark.parametrize(
    "name", [n for n in FILES if n.endswith("config.json")] + ["vocab.json"]
)
@pytest.mark.parametrize("text", ["", '{"a": ', "[1, 2]"])
def test_broken_json(broken, name, text):
    (broken / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(name.rpartition("/")[2])):
        load(broken)


def test_a_name_that_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint directory"):
        load(tmp_path / "nothing")


# ------------------------------------------------------------- needed of config


TABLES = ("codec_language_id", "spk_id", "spk_is_dialect")  # of names: any will do


def paths(values: dict, *above: str):
    """Every (key, key ...) that leads to a field in a tree of objects."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict) and key not in TABLES:
            yield from paths(value, *above, key)


def without(values: dict, path: tuple[str, ...], *put) -> dict:
    """A deep copy that lacks `path`, or has the one value `put` there."""
    values = json.loads(json.dumps(values))
    holder = values
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    if put:
        (holder[path[-1]],) = put
    return values


TALKER = """hidden_size intermediate_size num_hidden_layers num_attention_heads
num_key_value_heads head_dim rope_theta rms_norm_eps vocab_size
num_code_groups""".split()
IDS = """text_vocab_size text_hidden_size max_position_embeddings codec_pad_id
codec_bos_id codec_eos_token_id codec_think_id codec_nothink_id codec_think_bos_id
codec_think_eos_id codec_language_id spk_id spk_is_dialect""".split()
TOP = """tts_model_type tts_model_size tokenizer_type tts_pad_token_id tts_bos_token_id
tts_eos_token_id talker_config speaker_encoder_config""".split()
STACK = """hidden_size intermediate_size num_hidden_layers num_attention_heads
num_key_value_heads head_dim rope_theta layer_scale_initial_scale codebook_dim
codebook_size num_quantizers upsampling_ratios""".split()
DECODER = "rms_norm_eps sliding_window latent_dim decoder_dim upsample_rates".split()
ENCODER = """norm_eps num_filters kernel_size last_kernel_size residual_kernel_size
num_residual_layers dilation_growth_rate compress num_semantic_quantizers
max_position_embeddings""".split()
NEEDED = {
    "tts": {
        *((name,) for name in TOP),
        *(("talker_config", name) for name in TALKER + IDS),
        ("talker_config", "code_predictor_config"),
        *(("talker_config", "code_predictor_config", name) for name in TALKER),
        ("speaker_encoder_config", "enc_dim"),
        ("speaker_encoder_config", "sample_rate"),
    },
    "codec": {
        ("encoder_config",),
        ("decoder_config",),
        ("encoder_valid_num_quantizers",),
        ("input_sample_rate",),
        ("output_sample_rate",),
        ("encode_downsample_rate",),
        ("decode_upsample_rate",),
        *(("decoder_config", name) for name in STACK + DECODER),
        *(("encoder_config", name) for name in STACK + ENCODER),
    },
}
READERS = {
    "tts": (configs.Qwen3TTSConfig, lambda: released.tts_config("0.6B", "base")),
    "codec": (tokenizer_12hz.Tokenizer12HzConfig, released.tokenizer_12hz_config),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_needed_field_that_is_missing_is_named(kind):
    """Whatever is not needed may go, and then changes nothing."""
    reader, make = READERS[kind]
    values, named = make(), set()
    for path in paths(values):
        try:
            config = reader.from_hf(without(values, path))
        except ValueError as error:
            assert f"config.json.{'.'.join(path)}: missing" in str(error)
            named.add(path)
        else:
            assert config == reader.from_hf(values), path
    assert NEEDED[kind] <= named, NEEDED[kind] - named


@pytest.mark.parametrize("kind", READERS)
def test_a_needed_field_of_the_wrong_kind_is_named(kind):
    reader, make = READERS[kind]
    for path in NEEDED[kind]:
        with pytest.raises(ValueError) as caught:
            reader.from_hf(without(make(), path, [[]]))
        assert f"config.json.{'.'.join(path)}: got [[]]" in str(caught.value)


def test_all_missing_fields_are_named_at_once():
    values = without(released.tts_config("0.6B", "base"), ("tts_pad_token_id",))
    values = without(values, ("talker_config", "codec_pad_id"))
    with pytest.raises(ValueError) as caught:
        configs.Qwen3TTSConfig.from_hf(values)
    for name in ("tts_pad_token_id", "talker_config.codec_pad_id"):
        assert f"config.json.{name}: missing" in str(caught.value)


# ---------------------------------------------------------------- whole or never


@pytest.mark.parametrize("at", ["weights", "codec", "json"])
def test_nothing_is_left_of_a_failed_export(directory, tmp_path, monkeypatch, at):
    tts, calls = load(directory), []

    def full(*_, **__):
        calls.append(1)
        if at != "codec" or len(calls) == 2:  # the codec is the second file
            raise OSError("No space left on device")
        return save(*_, **__)

    save = safetensors.numpy.save_file
    if at == "json":
        monkeypatch.setattr(hub, "write_json", full)
    else:
        monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        tts.save_pretrained(tmp_path / "out")
    assert calls and not list(tmp_path.iterdir())


def test_an_export_never_overwrites(directory, tmp_path):
    tts, out = load(directory), tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        tts.save_pretrained(out)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious"]
    with pytest.raises(FileNotFoundError, match="no directory"):
        tts.save_pretrained(tmp_path / "absent" / "out")
    (out / "precious").unlink()
    tts.save_pretrained(out)  # an empty directory will do


# ------------------------------------------------------------------- real sizes


def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    text = gzip.decompress((parity.GOLDEN / "shapes" / f"{name}.json.gz").read_bytes())
    return {key: tuple(shape) for key, shape in json.loads(text).items()}


def our_shapes(parts: dict) -> dict[str, tuple[int, ...]]:
    leaves = [
        leaf
        for module, rules in parts.values()
        for leaf in weight_files.leaves(module, rules)
    ]
    names = [key for leaf in leaves for key in leaf.keys]
    assert len(names) == len(set(names))
    return {key: leaf.official_shape for leaf in leaves for key in leaf.keys}


@pytest.mark.parametrize("variant", ["base", "custom_voice", "voice_design"])
@pytest.mark.parametrize("size", released.SIZES)
def test_names_and_shapes_of_real_sizes(variant, size):
    # VoiceDesign has the tensors of CustomVoice
    name = "base" if variant == "base" else "custom_voice"
    config = configs.Qwen3TTSConfig.from_hf(released.tts_config(size, variant))
    ours = our_shapes(model.model_parts(config))
    assert ours == official_shapes(f"{name}_{size}")


def test_names_and_shapes_of_the_tokenizer():
    config = tokenizer_12hz.Tokenizer12HzConfig.from_hf(
        released.tokenizer_12hz_config()
    )
    ours = our_shapes(speech_tokenizer.tokenizer_parts(config))
    assert ours == official_shapes("tokenizer_12hz")


# ----------------------------------------------------------------------- memory

MEASURE = """
import pathlib, re, sys
import jax, jax.numpy as jnp
from qwen3tts_jax import model
from qwen3tts_jax.config import tts
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.checkpoints import weights

def kilobytes(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", text)[1])

path, dtype = pathlib.Path(sys.argv[1]), jnp.dtype(sys.argv[2])
config = tts.Qwen3TTSConfig.from_hf(hub.read_json(path / "config.json"))
parts = model.model_parts(config)
jax.device_put(jnp.zeros(1)).block_until_ready()
before = kilobytes("VmRSS")
loaded = weights.load(path, parts, dtype=dtype)
jax.block_until_ready(loaded)
peak = 1024 * (kilobytes("VmHWM") - before)
print(peak, sum(leaf.nbytes for leaf in jax.tree.leaves(loaded)))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tokenizer_dir) -> pathlib.Path:
    """Some 100 million weights, shared out much as at 0.6B."""
    config = tiny.tts_config("custom_voice")
    talker = config["talker_config"]
    talker |= dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=8)
    talker["text_hidden_size"] = 256
    talker["code_predictor_config"] |= dict(hidden_size=512, intermediate_size=1024)
    out = tmp_path_factory.mktemp("wide")
    random_weights.write(out, config, tiny.tokenizer_config(), text_files=tokenizer_dir)
    return out


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="not Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_never_holds_the_model_twice(wide, dtype):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(wide), dtype],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert not done.returncode, done.stderr
    peak, weights = map(int, done.stdout.split())
    count = sum(math.prod(s) for s in our_wide_shapes(wide).values())
    assert weights == count * jnp.dtype(dtype).itemsize > 150e6
    parity.worst[f"peak memory over weights, {dtype}"] = peak / weights
    assert peak < 1.3 * weights


def our_wide_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    config = configs.Qwen3TTSConfig.from_hf(hub.read_json(path / "config.json"))
    return our_shapes(model.model_parts(config))
