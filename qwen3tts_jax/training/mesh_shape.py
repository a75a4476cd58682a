"""How many devices a configuration puts along each axis of the mesh."""

import math

from qwen3tts_jax import sharding

MOST_FSDP = 16  # devices, where the mesh leaves it open


def fit(mesh, devices: int, *, rows: int, parts: int = 1) -> dict[str, int]:
    """config.compute.mesh with what is open filled in; the rows are cut in `parts`.

    Left open, fsdp takes up to 16: more cut no memory that matters, and at 64 XLA turns
    the gathering of weights into all-reduces (seen in steps compiled for TPUs).

    Raises: ValueError if it does not use all devices, or cuts the rows unevenly.
    """
    shape = {axis: mesh[axis] for axis in sharding.AXES}
    left = devices // (shape["tensor"] * shape["sequence"])
    if shape["fsdp"] == -1:
        known = left if shape["data"] == -1 else left // shape["data"]
        shape["fsdp"] = math.gcd(known, MOST_FSDP) if shape["data"] == -1 else known
    if shape["data"] == -1:
        shape["data"] = left // shape["fsdp"]
    if math.prod(shape.values()) != devices:
        raise ValueError(
            f"got config.compute.mesh {shape}, expected a product of {devices} devices"
        )
    cut = shape["data"] * shape["fsdp"] * parts
    if rows % cut:
        raise ValueError(
            f"got {rows} rows, expected a multiple of data * fsdp * accumulate = {cut}"
        )
    return shape
