"""What surrounds a computation: device, dtype, precision, padded sizes, programs."""

import os

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

MIN_COMPILE_SECONDS = 0.5  # programs that take less are not worth a file


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


def keep_programs() -> None:
    """Keep compiled programs in the user's cache folder, for the next process.

    Not where the user has said where to keep them (JAX_COMPILATION_CACHE_DIR), or that
    none are to be kept (JAX_ENABLE_COMPILATION_CACHE=false).
    """
    config = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    config.update("jax_compilation_cache_dir", f"{home}/qwen3tts_jax/xla")
    config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    compilation_cache.reset_cache()  # what was compiled before may have closed it
