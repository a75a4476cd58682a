"""Official safetensors <-> our modules: names, layouts, and nothing else.

One key table per part says where each of our parameters lives in the official layout.
Loading is strict both ways: every missing, unexpected and mis-shaped tensor is listed in
one error before anything is read.  Each tensor is read, rearranged, cast and put where it
belongs on its own; there are never two copies of the model in memory.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from qwen3tts_jax import config as configs

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # as the hub library cuts files
KEEP_FLOAT32 = ("embedding_sum", "cluster_usage", "initialized")  # codebooks
TRANSPOSE_BLOCK = 16  # rows: one cache line of float32; 6 times numpy's own speed


# -------------------------------------------------------------------- layouts


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is arranged on either side."""

    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]  # (official, our shape)
    to_official: Callable[[np.ndarray], np.ndarray]


def _join_taps(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """ConvTranspose [in, out, taps*stride] -> [taps, in, stride, out], oldest tap first."""
    taps, in_dim, stride, out_dim = shape
    x = x.reshape(in_dim, out_dim, taps, stride)[:, :, ::-1]
    return x.transpose(2, 0, 3, 1)


def _split_taps(x: np.ndarray) -> np.ndarray:
    taps, in_dim, stride, out_dim = x.shape
    x = x.transpose(1, 3, 0, 2)[:, :, ::-1]  # [in, out, taps, stride]
    return x.reshape(in_dim, out_dim, taps * stride)


KEEP = Layout(lambda x, _: x, lambda x: x)
LINEAR = Layout(lambda x, _: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
POINTWISE = Layout(lambda x, _: x[:, :, 0].T, lambda x: x.T[:, :, None])
CONV = Layout(lambda x, _: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0))
CONV_TRANSPOSE = Layout(_join_taps, _split_taps)


# ------------------------------------------------------------------ key tables


@dataclasses.dataclass(frozen=True)
class Rule:
    """`ours` <-> `official`, with * for an index.

    A rule whose `ours` ends in [*] names a parameter with a leading axis that the
    official layout keeps as separate tensors.
    """

    ours: str
    official: str
    layout: Layout = KEEP


def _linear(ours: str, official: str, bias: bool = False) -> list[Rule]:
    rules = [Rule(f"{ours}.kernel", f"{official}.weight", LINEAR)]
    return rules + [Rule(f"{ours}.bias", f"{official}.bias")] * bias


def _conv(ours: str, official: str, bias: bool = True, layout=CONV) -> list[Rule]:
    rules = [Rule(f"{ours}.kernel", f"{official}.weight", layout)]
    return rules + [Rule(f"{ours}.bias", f"{official}.bias")] * bias


def _norm(ours: str, official: str, bias: bool = False) -> list[Rule]:
    rules = [Rule(f"{ours}.scale", f"{official}.weight")]
    return rules + [Rule(f"{ours}.bias", f"{official}.bias")] * bias


def _transformer(official: str, c: configs.TransformerConfig) -> list[Rule]:
    ours, theirs = "transformer.layers.*", f"{official}.layers.*"
    rules = []
    for name, key in dict(query="q", key="k", value="v", out="o").items():
        rules += _linear(f"{ours}.attention.{name}", f"{theirs}.self_attn.{key}_proj")
    bias = c.norm == "layer"
    rules += _norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias)
    rules += _norm(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm", bias)
    if c.mlp == "swiglu":
        for name in ("gate", "up", "down"):
            rules += _linear(f"{ours}.mlp.{name}", f"{theirs}.mlp.{name}_proj")
    else:
        rules += _linear(f"{ours}.mlp.up", f"{theirs}.mlp.fc1")
        rules += _linear(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    if c.qk_norm:
        rules += _norm(f"{ours}.attention.query_norm", f"{theirs}.self_attn.q_norm")
        rules += _norm(f"{ours}.attention.key_norm", f"{theirs}.self_attn.k_norm")
    if c.layer_scale is not None:
        scale = "layer_scale.scale"
        rules += [Rule(f"{ours}.attention_scale.scale", f"{theirs}.self_attn_{scale}")]
        rules += [Rule(f"{ours}.mlp_scale.scale", f"{theirs}.mlp_{scale}")]
    if c.final_norm:
        rules += _norm("transformer.norm", f"{official}.norm", bias)
    return rules


def talker_rules(config: configs.TalkerConfig) -> list[Rule]:
    """Talker: every key under talker., the predictor's apart."""
    model = "talker.model"
    return [
        Rule("text_embedding.embedding", f"{model}.text_embedding.weight"),
        Rule("codec_embedding.embedding", f"{model}.codec_embedding.weight"),
        *_linear("text_projection.fc1", "talker.text_projection.linear_fc1", True),
        *_linear("text_projection.fc2", "talker.text_projection.linear_fc2", True),
        *_linear("codec_head", "talker.codec_head"),
        *_transformer(model, config.transformer),
    ]


def code_predictor_rules(config: configs.CodePredictorConfig) -> list[Rule]:
    part = "talker.code_predictor"
    return [
        Rule("embedding[*]", f"{part}.model.codec_embedding.*.weight"),
        *_linear("heads.*", f"{part}.lm_head.*"),
        *_linear("projection", f"{part}.small_to_mtp_projection", True),
        *_transformer(f"{part}.model", config.transformer),
    ]


def speaker_encoder_rules(config: configs.SpeakerEncoderConfig) -> list[Rule]:
    rules = _conv("first.conv", "speaker_encoder.blocks.0.conv")
    # our block i is the official block i + 1
    for i in range(len(config.channels) - 2):
        ours, official = f"blocks.{i}", f"speaker_encoder.blocks.{i + 1}"
        rules += _conv(f"{ours}.tdnn1.conv", f"{official}.tdnn1.conv")
        rules += _conv(f"{ours}.tdnn2.conv", f"{official}.tdnn2.conv")
        res2net = f"{official}.res2net_block.blocks.*.conv"
        rules += _conv(f"{ours}.res2net.*.conv", res2net)
        rules += _conv(f"{ours}.squeeze", f"{official}.se_block.conv1")
        rules += _conv(f"{ours}.excite", f"{official}.se_block.conv2")
    rules += _conv("aggregate.conv", "speaker_encoder.mfa.conv")
    rules += _conv("pool.tdnn.conv", "speaker_encoder.asp.tdnn.conv")
    rules += _conv("pool.attention", "speaker_encoder.asp.conv")
    return rules + _conv("project", "speaker_encoder.fc")


def _residual_vq(ours: str, official: str, book: str, names: Mapping[str, str]):
    rules = [
        Rule(f"{ours}.{name}[*]", f"{official}.{book}.{key}")
        for name, key in names.items()
    ]
    for name in ("input_proj", "output_proj"):
        key = f"{official}.{name}.weight"
        rules.append(Rule(f"{ours}.{name}.kernel", key, POINTWISE))
    return rules


def tokenizer_12hz_encoder_rules(config: configs.Tokenizer12HzEncoderConfig):
    convs = "encoder.encoder.layers"
    rules = _conv("first", f"{convs}.0.conv")
    span = config.residual_layers + 2  # residual units, ELU, strided convolution
    for i in range(len(config.ratios)):
        start = 1 + i * span
        for j in range(config.residual_layers):
            ours, unit = f"blocks.{i}.units.{j}", f"{convs}.{start + j}.block"
            rules += _conv(f"{ours}.conv1", f"{unit}.1.conv")
            rules += _conv(f"{ours}.conv2", f"{unit}.3.conv")
        rules += _conv(f"blocks.{i}.down", f"{convs}.{start + span - 1}.conv")
    last = 1 + len(config.ratios) * span + 1
    rules += _conv("last", f"{convs}.{last}.conv")
    rules += _conv("down", "encoder.downsample.conv", bias=False)
    names = dict(embedding_sum="embed_sum", cluster_usage="cluster_usage")
    names |= dict(initialized="initialized")
    for name in ("semantic", "acoustic"):
        vq = f"encoder.quantizer.{name}_residual_vector_quantizer"
        rules += _residual_vq(f"quantizer.{name}", vq, "layers.*.codebook", names)
    return rules + _transformer("encoder.encoder_transformer", config.transformer)


def tokenizer_12hz_decoder_rules(config: configs.Tokenizer12HzDecoderConfig):
    rules = _conv("pre_conv", "decoder.pre_conv.conv")
    names = dict(embedding_sum="embedding_sum", cluster_usage="cluster_usage")
    for name, key in dict(semantic="rvq_first", acoustic="rvq_rest").items():
        vq = f"decoder.quantizer.{key}"
        rules += _residual_vq(f"quantizer.{name}", vq, "vq.layers.*._codebook", names)
    part = "decoder.pre_transformer"
    rules += _transformer(part, config.transformer)
    rules += _linear("input_proj", f"{part}.input_proj", True)
    rules += _linear("output_proj", f"{part}.output_proj", True)
    ours, official = "upsample.*", "decoder.upsample.*"
    rules += _conv(f"{ours}.up", f"{official}.0.conv", layout=CONV_TRANSPOSE)
    ours, official = f"{ours}.convnext", f"{official}.1"
    rules += [
        Rule(f"{ours}.depthwise", f"{official}.dwconv.conv.weight", CONV),
        Rule(f"{ours}.depthwise_bias", f"{official}.dwconv.conv.bias"),
        Rule(f"{ours}.gamma.scale", f"{official}.gamma"),
        *_norm(f"{ours}.norm", f"{official}.norm", True),
        *_linear(f"{ours}.up", f"{official}.pwconv1", True),
        *_linear(f"{ours}.down", f"{official}.pwconv2", True),
    ]
    rules += _conv("first_conv", "decoder.decoder.0.conv")
    blocks = len(config.upsample_rates)
    for i in range(blocks):
        ours, official = f"blocks.{i}", f"decoder.decoder.{i + 1}.block"
        rules += _snake(f"{ours}.snake", f"{official}.0")
        rules += _conv(f"{ours}.up", f"{official}.1.conv", layout=CONV_TRANSPOSE)
        for j in range(3):
            unit, key = f"{ours}.units.{j}", f"{official}.{j + 2}"
            rules += _snake(f"{unit}.snake1", f"{key}.act1")
            rules += _snake(f"{unit}.snake2", f"{key}.act2")
            rules += _conv(f"{unit}.conv1", f"{key}.conv1.conv")
            rules += _conv(f"{unit}.conv2", f"{key}.conv2.conv")
    rules += _snake("snake", f"decoder.decoder.{blocks + 1}")
    return rules + _conv("wave_conv", f"decoder.decoder.{blocks + 2}.conv")


def _snake(ours: str, official: str) -> list[Rule]:
    return [Rule(f"{ours}.{name}", f"{official}.{name}") for name in ("alpha", "beta")]


# ---------------------------------------------------------------------- leaves


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters and the official tensors that make it.

    Attributes:
        path: "transformer.layers.3.mlp.up.kernel".
        keys: official names; more than one fill its leading axis.
        shape: ours, whole.
        official_shape: of each official tensor.
    """

    path: str
    keys: tuple[str, ...]
    stacked: bool
    layout: Layout
    shape: tuple[int, ...]
    official_shape: tuple[int, ...]


def leaf_path(key_path) -> str:
    """The dotted name of a parameter from its pytree path."""
    names = [str(getattr(k, "name", getattr(k, "idx", getattr(k, "key", "")))) for k in key_path]
    return ".".join(names[:-1] if names[-1] == "value" else names)


def leaves(module, rules: Iterable[Rule]) -> list[Leaf]:
    """Every parameter of a module (or of its eval_shape) with its place in the file."""
    rules = list(rules)
    flat, _ = jax.tree_util.tree_flatten_with_path(module)
    return [_leaf(leaf_path(path), value.shape, rules) for path, value in flat]


def _leaf(path: str, shape: tuple[int, ...], rules: list[Rule]) -> Leaf:
    for rule in rules:
        indices, stacked = _match(rule.ours, path)
        if indices is None:
            continue
        rows = [(*indices, str(i)) for i in range(shape[0])] if stacked else [indices]
        one = np.broadcast_to(np.int8(0), shape[1:] if stacked else shape)
        return Leaf(
            path,
            tuple(_fill(rule.official, row) for row in rows),
            stacked,
            rule.layout,
            tuple(shape),
            rule.layout.to_official(one).shape,
        )
    raise AssertionError(f"no key table names the parameter {path}")


def _match(ours: str, path: str) -> tuple[tuple[str, ...] | None, bool]:
    """(the indices in `path`, or None; whether its leading axis is an index too)."""
    pattern = ours.removesuffix("[*]")
    match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), path)
    if match:
        return match.groups(), pattern != ours
    if path == pattern.replace("layers.*.", "layers."):  # a stacked Transformer
        return (), True
    return None, False


def _fill(pattern: str, indices: tuple[str, ...]) -> str:
    for index in indices:
        pattern = pattern.replace("*", index, 1)
    return pattern


# ------------------------------------------------------------------------ load


def load(directory: Path, parts: Mapping[str, tuple], *, dtype, shardings=None) -> dict:
    """Fill modules from an official directory.

    Args:
        directory: holds model.safetensors, or an index and its shards.
        parts: name -> (abstract module from `jax.eval_shape`, its rules); together they
            must account for every tensor in the directory.
        dtype: of the parameters; codebooks stay float32.
        shardings: name -> tree of shardings like the module's, or None: one device.
    Returns:
        name -> module.
    Raises:
        FileNotFoundError: no weights; ValueError: a file that is not whole, or tensors
            that are missing, unexpected or mis-shaped (all of them listed).
    """
    files = _index(Path(directory))
    plan = {name: leaves(module, rules) for name, (module, rules) in parts.items()}
    _check(Path(directory), files, [leaf for part in plan.values() for leaf in part])
    loaded = {}
    for name, (module, _) in parts.items():
        _, tree = jax.tree.flatten(module)
        places = (
            jax.tree.leaves(shardings[name]) if shardings else [None] * len(plan[name])
        )
        values = [_read_leaf(l, files, dtype, p) for l, p in zip(plan[name], places)]
        loaded[name] = jax.tree.unflatten(tree, values)
    return loaded


@dataclasses.dataclass(frozen=True)
class _Entry:
    file: Path
    shape: tuple[int, ...]


def _index(directory: Path) -> dict[str, _Entry]:
    """Official name -> where it is, over one file or the shards of an index."""
    if (directory / INDEX).exists():
        try:
            names = set(json.loads((directory / INDEX).read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{directory / INDEX} is not a safetensors index ({error}); "
                "download it again"
            ) from error
        paths = [directory / name for name in sorted(names)]
    else:
        paths = [directory / WEIGHTS]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"weights are missing: {', '.join(missing)}; expected {WEIGHTS} or {INDEX} "
            "with all its shards; download the whole repository"
        )
    entries = {}
    for path in paths:
        try:
            with safetensors.safe_open(path, "numpy") as file:
                for key in file.keys():
                    entries[key] = _Entry(path, tuple(file.get_slice(key).get_shape()))
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}; it has "
                f"{path.stat().st_size} bytes); download it again"
            ) from error
    return entries


def _check(directory: Path, files: dict[str, _Entry], plan: list[Leaf]) -> None:
    expected = {key: leaf.official_shape for leaf in plan for key in leaf.keys}
    problems = [f"missing: {key} {expected[key]}" for key in sorted(expected.keys() - files)]
    problems += [f"unexpected: {key}" for key in sorted(files.keys() - expected)]
    problems += [
        f"mis-shaped: {key}: got {files[key].shape}, expected {shape}"
        for key, shape in sorted(expected.items())
        if key in files and files[key].shape != shape
    ]
    if problems:
        raise ValueError(
            f"the weights in {directory} do not fit its config.json "
            f"({len(problems)} problems):\n  " + "\n  ".join(problems)
        )


def _read_leaf(leaf: Leaf, files: dict[str, _Entry], dtype, sharding) -> jax.Array:
    keep = leaf.path.rpartition(".")[2] in KEEP_FLOAT32
    value = _aligned_empty(leaf.shape, np.float32 if keep else jnp.dtype(dtype))
    rows = value if leaf.stacked else value[None]
    for key, row in zip(leaf.keys, rows):
        # opened anew each time: an open map keeps every page it has read in memory
        with safetensors.safe_open(files[key].file, "numpy") as file:
            tensor = file.get_tensor(key)
        _assign(row, leaf.layout.to_ours(tensor, row.shape))
    return jax.device_put(value, sharding)


def _aligned_empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Uninitialised memory that the CPU back end can adopt without a copy."""
    alignment, dtype = 64, np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


def _assign(out: np.ndarray, value: np.ndarray) -> None:
    """out[...] = value; a large transposed matrix block by block."""
    if value.ndim != 2 or value.flags.c_contiguous:
        out[...] = value
        return
    for start in range(0, value.shape[1], TRANSPOSE_BLOCK):
        block = slice(start, start + TRANSPOSE_BLOCK)
        out[:, block] = value[:, block].T.astype(out.dtype).T


# ------------------------------------------------------------------------ save


def save(directory: Path, parts: Mapping[str, tuple], *, dtype=None) -> None:
    """Write modules as official safetensors, cut into shards where they are large.

    Args:
        directory: must exist.
        parts: name -> (module, its rules).
        dtype: of the floating-point tensors in the file (codebooks stay float32); None
            keeps what the parameters have, which makes load -> save -> load bit-exact.
    """
    tensors = {
        key: tensor
        for module, rules in parts.values()
        for key, tensor in _official_tensors(module, rules, dtype)
    }
    shards = _shards(tensors)
    if len(shards) == 1:
        _write(Path(directory) / WEIGHTS, shards[0])
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write(Path(directory) / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    size = sum(t.nbytes for t in tensors.values())
    index = dict(metadata=dict(total_size=size), weight_map=weight_map)
    (Path(directory) / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _official_tensors(module, rules, dtype) -> Iterable[tuple[str, np.ndarray]]:
    for leaf, value in zip(leaves(module, rules), jax.tree.leaves(module)):
        value = np.asarray(value)
        if dtype is not None and leaf.path.rpartition(".")[2] not in KEEP_FLOAT32:
            value = value.astype(jnp.dtype(dtype))
        for key, row in zip(leaf.keys, value if leaf.stacked else value[None]):
            official = leaf.layout.to_official(row)
            tensor = np.empty(official.shape, official.dtype)
            _assign(tensor, official)
            yield key, tensor


def _shards(tensors: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    shards, size = [{}], 0
    for key in sorted(tensors):
        if shards[-1] and size + tensors[key].nbytes > MAX_SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = tensors[key]
        size += tensors[key].nbytes
    return shards


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        safetensors.numpy.save_file(tensors, part, metadata={"format": "pt"})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)



# ------------------------------------------------------------ directories, JSON

NEEDED = ("*.json", "*.safetensors", "*.txt")  # of a hub repository


def resolve(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: a directory, or a hub id to download.

    Raises: FileNotFoundError saying which of the two failed.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_id)) or path.exists():
        raise FileNotFoundError(
            f"got {str(path_or_id)!r}, expected a checkpoint directory or a hub id such "
            "as Qwen/Qwen3-TTS-12Hz-0.6B-Base"
        )
    try:
        local = huggingface_hub.snapshot_download(
            str(path_or_id), revision=revision, allow_patterns=NEEDED
        )
    except Exception as error:  # the hub library raises network errors of many kinds
        raise FileNotFoundError(
            f"got {str(path_or_id)!r}, which is no directory here and could not be had "
            f"from the hub ({type(error).__name__}: {error}); check the name and the "
            "network, or give a directory"
        ) from error
    return Path(local)


def read_json(path: Path) -> dict:
    """A JSON object from a checkpoint directory."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing; an official checkpoint directory has it: download the "
            "whole repository"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected an object")
    return values


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def copy_side_files(source: Path | None, out: Path) -> None:
    """Tokenizer and processor files, which hold no weights."""
    if source is None:
        return
    for path in source.iterdir():
        side = path.suffix in (".json", ".txt") and path.name != INDEX
        if path.is_file() and side and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


@contextlib.contextmanager
def new_directory(path: Path):
    """A directory that appears under `path` when the block ends well, else not at all."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already and not empty; give another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no directory; make it first")
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part.chmod(0o755)
        yield part
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
