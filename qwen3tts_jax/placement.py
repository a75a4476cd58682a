"""What surrounds a computation: device, dtype, precision, padded sizes."""

import jax
import jax.numpy as jnp


def exact():
    """float32 means float32: no TF32 on GPU, no bfloat16 passes on TPU.

    Products of bfloat16 operands are not affected.
    """
    return jax.default_matmul_precision("highest")


def device(device_map: str | None) -> jax.Device | None:
    """The device that "cpu", "cuda:0" or "tpu:1" names; None or "auto": no wish."""
    if device_map in (None, "auto"):
        return None
    platform, _, index = device_map.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"got device_map {device_map!r}, expected one of "
            f"{[f'{d.platform}:{d.id}' for d in jax.devices()]}"
        ) from error


def default_dtype(device: jax.Device | None):
    """float32 on CPU, whose XLA has no fast bfloat16 product; bfloat16 elsewhere."""
    platform = (device or jax.devices()[0]).platform
    return jnp.float32 if platform == "cpu" else jnp.bfloat16


def dtype(dtype, default):
    """A float dtype from its name, numpy's or torch's object, None or "auto"."""
    if dtype in (None, "auto"):
        return default
    name = str(getattr(dtype, "__name__", dtype)).rpartition(".")[2]
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"got dtype {dtype!r}, expected float32, bfloat16 or float16")
    return jnp.dtype(name)


def check_attention(name: str | None) -> None:
    """Raises: ValueError unless `name` is None or an official attention's name."""
    known = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3")
    if name not in known:
        raise ValueError(f"got attn_implementation {name!r}, expected one of {known}")


def bucket(size: int, buckets: tuple[int, ...]) -> int:
    """The first bucket that holds `size`; past the last, `size` itself."""
    return next((b for b in buckets if b >= size), int(size))
