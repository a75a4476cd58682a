"""Parameters that each device keeps a part of, made whole just before they are used.

Left to itself, XLA's partitioner keeps the weights cut and gathers the activations of
the whole batch instead: a step that needs 2 GB a device then asks for 60 (seen in steps
compiled for 16 TPUs).  So the gathering is said here: parameters are cast, then
gathered over the axis fsdp; their gradients come back cut, by one reduce-scatter.
"""

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen3tts_jax import sharding
from qwen3tts_jax.nn import tree
from qwen3tts_jax.training.lm import params

AXIS = "fsdp"
STACK = ".layers."  # in the path of a parameter of a Transformer's layers


@dataclasses.dataclass(frozen=True)
class Gather:
    """Casts and gathers.  Without a mesh, or where fsdp is 1, casts alone.

    Attributes:
        mesh: with the axes of `sharding.AXES`, or None.
        dtype: of the computation: what is sent is of this size.
    """

    mesh: Mesh | None
    dtype: str

    def __call__(self, module, *, but_layers: bool = False):
        """The module in `dtype`, whole along fsdp; other axes stay cut.

        module: `Parts`, one of them, or a block of one.
        but_layers: leave the layers of a stacked Transformer cut and as they are: they
        are gathered one by one, by its call with `gather=this`.
        """
        if self.mesh is None:
            return jax.tree.map(lambda leaf: leaf.astype(self.dtype), module)

        def made(path, leaf, place):
            if but_layers and STACK in f".{tree.leaf_path(path)}":
                return leaf
            return self._whole(leaf.astype(self.dtype), place)

        # rules are over paths inside a part
        is_all = isinstance(module, params.Parts)
        named = params.shardings if is_all else sharding.named
        places = named(module, self.mesh)
        return jax.tree_util.tree_map_with_path(made, module, places)

    def _whole(self, leaf: jax.Array, cut: NamedSharding) -> jax.Array:
        if AXIS not in cut.spec:
            return leaf
        axes = (None if axis == AXIS else axis for axis in cut.spec)
        whole = NamedSharding(self.mesh, PartitionSpec(*axes))
        # sent after the cast, not before it
        return _gather(jax.lax.with_sharding_constraint(leaf, cut), cut, whole)


_gather = jax.custom_vjp(
    lambda x, cut, whole: jax.lax.with_sharding_constraint(x, whole),
    nondiff_argnums=(1, 2),
)
_gather.defvjp(
    lambda x, cut, whole: (_gather(x, cut, whole), None),
    # the gradient would be whole as well: each device needs the sum of its part alone
    lambda cut, whole, _, gradient: (jax.lax.with_sharding_constraint(gradient, cut),),
)
