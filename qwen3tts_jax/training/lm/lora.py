"""LoRA: kernels stay as they are, and products of two thin matrices are trained.

Source: arXiv 2106.09685.  A kernel W [..., in, out] becomes W + alpha/rank * A B, with
A [..., in, rank] drawn and B [..., rank, out] zero, so that training starts at W.
Leading axes (the layers of a stacked Transformer, the predictor's heads) have adapters
of their own.
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

A, B = ":a", ":b"  # after a kernel's path


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which kernels get adapters.

    Attributes:
        rank: columns of A.
        alpha: the product counts alpha / rank.
        targets: patterns over parameter paths.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"got rank {self.rank}, expected at least 1")

    def kernels(self, params: Mapping) -> tuple[str, ...]:
        """The paths that get adapters.

        Raises: ValueError for a target that no matrix matches.
        """
        matrices = [p for p, x in params.items() if re.search(r"(kernel|heads)$", p)]
        idle = [t for t in self.targets if not any(re.search(t, p) for p in matrices)]
        if idle or not self.targets:
            raise ValueError(
                f"got LoRA targets {', '.join(map(repr, idle)) or 'none'}, which no "
                f"kernel matches; paths look like {matrices[0]!r}"
            )
        wanted = "|".join(f"(?:{target})" for target in self.targets)
        return tuple(path for path in matrices if re.search(wanted, path))

    def init(self, params: Mapping, key: jax.Array) -> dict:
        """path:a, path:b -> float32 arrays.  params: path -> array."""
        adapters = {}
        for path in self.kernels(params):
            *lead, rows, columns = params[path].shape
            # a kernel's own key: other targets do not change what it draws
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            shape = (*lead, rows, self.rank)
            adapters[path + A] = jax.random.normal(own, shape) * rows**-0.5
            adapters[path + B] = jnp.zeros((*lead, self.rank, columns))
        return adapters

    def merge(self, params: Mapping, adapters: Mapping) -> dict:
        """path -> array, the adapters' products added in float32."""
        merged = dict(params)
        for name, a in adapters.items():
            if name.endswith(A):
                path = name.removesuffix(A)
                product = a @ adapters[path + B]
                merged[path] = params[path] + self.alpha / self.rank * product
        return merged
