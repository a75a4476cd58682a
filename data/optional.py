"""Modules that need an optional package, imported when a flag asks for them."""

import importlib

EXTRAS = {  # module -> (package, extra of setup.cfg, what asks for it)
    "data.preparation.g722": ("G722", "data", "a .g722 recording"),
    "data.preparation.dnsmos": ("speechmos", "eval", "--dnsmos"),
    "data.preparation.quality": ("pesq and pystoi", "eval", "--config.figures"),
    "data.preparation.asr": ("faster-whisper", "eval", "--asr"),
    "data.preparation.tfds_source": ("tensorflow-datasets", "tfds", "--tfds"),
    "data.preparation.beam": ("apache-beam", "beam", "--beam"),
}


def load(name: str):
    """The module of that name.

    Raises: ModuleNotFoundError naming the package that is missing and how to get it.
    """
    package, extra, asker = EXTRAS[name]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{asker} needs {package}, which cannot be imported ({error}); "
            f"do: pip install '.[{extra}]'"
        ) from error
