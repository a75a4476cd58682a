"""Official safetensors <-> our modules, by the key tables of `key_tables.py`.

Loading is strict both ways: every missing, unexpected and mis-shaped tensor is listed
in one error before anything is read.  Each tensor is read, rearranged, cast and put
where it belongs on its own; there are never two copies of the model in memory.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from qwen3tts_jax.checkpoints import key_tables
from qwen3tts_jax.nn import tree as trees

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # as the hub library cuts files
# codebooks, by the last name of their parameters
KEEP_FLOAT32 = (
    *("codewords", "embedding_sum", "cluster_usage", "initialized"),
    "inv_freq",  # of rotary positions
)
READ_THREADS = 4  # NumPy copies without the interpreter's lock
TRANSPOSE_BLOCK = 16  # rows: one cache line of float32; 6 times numpy's own speed


# ---------------------------------------------------------------------- leaves


def abstract(part, config):
    """The shapes of a module, nothing allocated."""
    return jax.eval_shape(lambda: part(config, rngs=nnx.Rngs(0)))


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
    layout: key_tables.Layout
    shape: tuple[int, ...]
    official_shape: tuple[int, ...]


def leaves(module, rules: Iterable[key_tables.Rule]) -> list[Leaf]:
    """Every parameter of a module (or of its eval_shape) with its place in the file."""
    rules = list(rules)
    flat, _ = jax.tree_util.tree_flatten_with_path(module)
    return [_leaf(trees.leaf_path(path), value.shape, rules) for path, value in flat]


def _leaf(path: str, shape: tuple[int, ...], rules: list[key_tables.Rule]) -> Leaf:
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


def load(
    directory: Path,
    parts: Mapping[str, tuple],
    *,
    dtype,
    shardings: Mapping | None = None,
    device: jax.Device | None = None,
    weights: str = WEIGHTS,
) -> dict:
    """Fill modules from an official directory.

    Args:
        directory: holds model.safetensors, or an index and its shards.
        parts: name -> (abstract module from `jax.eval_shape`, its rules); together they
            must account for every tensor in the directory.
        dtype: of the parameters; codebooks stay float32.
        shardings: name -> tree of shardings like the module's (`sharding.named`).
        device: without shardings, where to put everything; None for the default.
        weights: the file, if it is another one.
    Returns:
        name -> module.
    Raises:
        FileNotFoundError: no weights; ValueError: a file that is not whole, or tensors
            that are missing, unexpected or mis-shaped (all of them listed).
    """
    files = _index(Path(directory), weights)
    plan = {name: leaves(module, rules) for name, (module, rules) in parts.items()}
    _check(Path(directory), files, [leaf for part in plan.values() for leaf in part])
    loaded = {}
    with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
        for name, (module, _) in parts.items():
            values, tree = jax.tree.flatten(module)
            places = (
                jax.tree.leaves(shardings[name])
                if shardings
                else [device] * len(values)
            )
            read = functools.partial(_read_leaf, files=files, dtype=dtype)
            values = list(pool.map(read, plan[name], places))
            loaded[name] = jax.tree.unflatten(tree, values)
    return loaded


def names(directory: Path) -> set[str]:
    """The official names of all tensors in a directory; raises what `load` raises."""
    return set(_index(Path(directory)))


@dataclasses.dataclass(frozen=True)
class _Entry:
    file: Path
    shape: tuple[int, ...]


def _index(directory: Path, weights: str = WEIGHTS) -> dict[str, _Entry]:
    """Official name -> where it is, over one file or the shards of an index."""
    if weights == WEIGHTS and (directory / INDEX).exists():
        try:
            names = set(
                json.loads((directory / INDEX).read_text())["weight_map"].values()
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{directory / INDEX} is not a safetensors index ({error}); "
                "download it again"
            ) from error
        paths = [directory / name for name in sorted(names)]
    else:
        paths = [directory / weights]
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
    problems = [
        f"missing: {key} {expected[key]}" for key in sorted(expected.keys() - files)
    ]
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


def _read_leaf(leaf: Leaf, place, *, files: dict[str, _Entry], dtype) -> jax.Array:
    keep = leaf.path.rpartition(".")[2] in KEEP_FLOAT32
    value = _aligned_empty(leaf.shape, np.float32 if keep else jnp.dtype(dtype))
    rows = value if leaf.stacked else value[None]
    for key, row in zip(leaf.keys, rows):
        # opened anew each time: an open map keeps every page it has read in memory
        with safetensors.safe_open(files[key].file, "numpy") as file:
            tensor = file.get_tensor(key)
        _assign(row, leaf.layout.to_ours(tensor, row.shape))
    return jax.device_put(value, place)


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
