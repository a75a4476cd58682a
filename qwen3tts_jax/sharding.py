"""Where every parameter lives on a mesh: one ordered table of rules.

The mesh has the axes data, fsdp, tensor and sequence.  A rule is a pattern over a
parameter's path and the PartitionSpec of its trailing axes; a leading layer axis of a
stacked Transformer stays whole.  The first rule that matches counts; whatever matches
none is replicated, and `REPLICATED` says which paths those may be.
"""

import math
import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qwen3tts_jax.nn import tree

AXES = ("data", "fsdp", "tensor", "sequence")

ROWS = ("data", "fsdp")  # over which the rows of a batch are spread
POSITIONS = "sequence"  # and the positions of a row

RULES = (
    # column-parallel, then row-parallel: one reduction per branch
    (r"attention\.(query|key|value)\.kernel$", ("fsdp", "tensor")),
    (r"attention\.out\.kernel$", ("tensor", "fsdp")),
    (r"mlp\.(gate|up)\.kernel$", ("fsdp", "tensor")),
    (r"mlp\.down\.kernel$", ("tensor", "fsdp")),
    # tables by row, heads by column: both along the vocabulary
    (r"(text|codec)_embedding\.embedding$", ("tensor", "fsdp")),
    (r"codec_head\.kernel$", ("fsdp", "tensor")),
    (r"^embedding$", (None, "tensor", "fsdp")),
    (r"^heads$", (None, "fsdp", "tensor")),
    (r"text_projection\.fc1\.kernel$", ("fsdp", "tensor")),
    (r"text_projection\.fc2\.kernel$", ("tensor", "fsdp")),
    (r"^projection\.kernel$", ("fsdp", "tensor")),
)

# Small, or parts of the codec and the speaker encoder, which are not worth cutting.
REPLICATED = (
    r"(^|\.)(scale|bias|gamma|alpha|beta)$",
    r"^(blocks|upsample|units|first|last|down|pre_conv|first_conv|wave_conv)\b",
    r"^(quantizer|input_proj|output_proj|aggregate|pool|project)\b",
    r"depthwise(_bias)?$",
    # the 25Hz tokenizer: encoder, DiT, BigVGAN
    r"^(conv1|conv2|up|positions|project_positions|marks)\b",
    r"^(time|code_embedding|reference|input|inv_freq|modulation|stages)\b",
)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1) -> Mesh:
    """A mesh over the first data*fsdp*tensor*sequence devices.

    Raises: ValueError if there are fewer devices than that.
    """
    shape = (data, fsdp, tensor, sequence)
    if math.prod(shape) > jax.device_count():
        raise ValueError(
            f"got a mesh of {shape} = {math.prod(shape)} devices, expected at most "
            f"{jax.device_count()}; lower one of {', '.join(AXES)}"
        )
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def named(module, mesh: Mesh):
    """The tree of NamedShardings of a module (or of its eval_shape).

    An axis that does not divide its dimension is left whole.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _fit(spec(tree.leaf_path(path), leaf.ndim), leaf.shape, mesh)
        ),
        module,
    )


def of_batch(mesh: Mesh, ndim: int, *, positions: bool = True) -> NamedSharding:
    """Of an array [B, T, ...]; without positions the second axis stays whole."""
    axes = (ROWS, POSITIONS if positions else None)
    return NamedSharding(mesh, PartitionSpec(*axes[:ndim]))


def spec(path: str, ndim: int) -> PartitionSpec:
    """The PartitionSpec of one parameter; leading axes beyond the rule stay whole."""
    for pattern, axes in RULES:
        if re.search(pattern, path):
            return PartitionSpec(*[None] * (ndim - len(axes)), *axes)
    return PartitionSpec()


def _fit(wanted: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axes = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(wanted, shape)
    ]
    return PartitionSpec(*axes)
