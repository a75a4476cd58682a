"""What the encoders of all teachers share: layers with biases, and strict loading."""

from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from qwen3tts_jax.checkpoints import key_tables
from qwen3tts_jax.checkpoints import weights as weight_files
from qwen3tts_jax.nn import conv

AVERAGE = "average"  # of the states before, between and after the layers


def convolve(part: conv.CausalConv1d, x: jax.Array) -> jax.Array:
    """The convolution without padding: float [B, (T - kernel) // stride + 1, out]."""
    return part.step(x[:, part.history :], x[:, : part.history])[0]


def attend(query, key, value, bias=None):
    """softmax(query key^T / sqrt(H) + bias) value, every step seeing every other.

    query, key, value: float [B, T, N, H]; bias: float, of a shape like [B, N, T, S].
    Result: float [B, T, N * H].  Scores and softmax in float32.
    """
    batch, length, heads, head_dim = query.shape
    scores = jnp.einsum(
        "BTNH,BSNH->BNTS",
        query * head_dim**-0.5,
        key,
        preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
    y = jnp.einsum("BNTS,BSNH->BTNH", weights.astype(value.dtype), value)
    return y.reshape(batch, length, heads * head_dim)


def check_layer(layer: int | str, count: int, *others: str) -> None:
    """Raises ValueError unless it is 0 to `count`, "average" or one of `others`."""
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    named = (AVERAGE, *others)
    if layer not in named and not (whole and 0 <= layer <= count):
        raise ValueError(
            f"got layer {layer!r}, expected 0 to {count} (0 is what enters the first "
            f"one) or {' or '.join(map(repr, named))}"
        )


def choose(states: Iterator[jax.Array], layer: int | str) -> jax.Array:
    """State number `layer`, or the average of all; layers after it never run.

    states: what enters the first layer, then what leaves each.
    """
    if layer != AVERAGE:
        return next(state for i, state in enumerate(states) if i == layer)
    states = list(states)
    return sum(states[1:], states[0]) / len(states)


def linear(ours: str, official: str, names=("weight", "bias"), join=".") -> list:
    """Rules of a Linear with a bias."""
    weight, bias = (f"{official}{join}{name}" for name in names)
    return [
        key_tables.Rule(f"{ours}.kernel", weight, key_tables.LINEAR),
        key_tables.Rule(f"{ours}.bias", bias),
    ]


def norm(ours: str, official: str, names=("weight", "bias"), join=".") -> list:
    """Rules of a LayerNorm."""
    scale, bias = (f"{official}{join}{name}" for name in names)
    return [
        key_tables.Rule(f"{ours}.scale", scale),
        key_tables.Rule(f"{ours}.bias", bias),
    ]


def fill(abstract, rules: Iterable[key_tables.Rule], arrays: Mapping, where):
    """The module with its parameters out of `arrays`, float32.

    Args:
        abstract: from `weights.abstract`.
        rules: one for each parameter.
        arrays: official name -> float array.
        where: the file, for messages.
    Raises: ValueError listing all that is missing, unexpected or mis-shaped.
    """
    plan = weight_files.leaves(abstract, rules)
    shapes = {leaf.keys[0]: leaf.official_shape for leaf in plan}
    problems = [f"missing: {key} {shapes[key]}" for key in shapes.keys() - arrays]
    problems += [f"unexpected: {key}" for key in arrays.keys() - shapes.keys()]
    for key in shapes.keys() & arrays.keys():
        kind, shape = arrays[key].dtype, arrays[key].shape
        if shape != shapes[key] or not jnp.issubdtype(kind, jnp.floating):
            problems.append(
                f"mis-shaped: {key}: got {kind} {shape}, expected float {shapes[key]}"
            )
    if problems:
        raise ValueError(
            f"{where} does not hold the encoder that its sizes describe "
            f"({len(problems)} problems):\n  " + "\n  ".join(sorted(problems))
        )
    values = []
    for leaf in plan:
        array = np.asarray(arrays[leaf.keys[0]])
        value = leaf.layout.to_ours(array, leaf.shape)
        values.append(jnp.asarray(np.ascontiguousarray(value, np.float32)))
    return jax.tree.unflatten(jax.tree.structure(abstract), values)
