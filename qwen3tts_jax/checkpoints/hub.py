"""Directories of checkpoints: found here or on the hub, their JSON, side files."""

import contextlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import huggingface_hub

from qwen3tts_jax.checkpoints import weights as weight_files

FAMILY = Path(__file__).parents[1] / "family"  # see `packaged`
VOICES = "voices.safetensors"  # named voices, see generation/voice_clone.py
CONFIGS = ("*.json", "*.txt", VOICES)  # what a hub repository needs besides its weights
MODELS = ("*.safetensors", "*.onnx")  # and these


def packaged() -> Path | None:
    """The checkpoint that comes with the package, the small family trained here.

    None for a package without it.  Its MODEL_CARD.md says from which data it was made,
    how, and what it can do.
    """
    return FAMILY if (FAMILY / "config.json").is_file() else None


def resolve(
    path_or_id: str | Path | None, *, revision: str | None = None, weights: bool = True
) -> Path:
    """The local directory of a checkpoint: a directory, or a hub id to download.

    Args:
        path_or_id: None for the packaged checkpoint.
        weights: False downloads the configuration files alone.
    Raises: FileNotFoundError saying which of them failed.
    """
    if path_or_id is None:
        if not packaged():
            raise FileNotFoundError(
                f"got no checkpoint, and none came with this package ({FAMILY}); give "
                "a directory, or a hub id such as Qwen/Qwen3-TTS-12Hz-0.6B-Base"
            )
        return packaged()
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_id)) or path.exists():
        raise FileNotFoundError(
            f"got {str(path_or_id)!r}, expected a checkpoint directory or a hub id "
            "such as Qwen/Qwen3-TTS-12Hz-0.6B-Base"
        )
    patterns = [*CONFIGS, *MODELS * weights]
    try:
        local = huggingface_hub.snapshot_download(
            str(path_or_id), revision=revision, allow_patterns=patterns
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
    """Write a JSON object as UTF-8, indented by two."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def copy_side_files(source: Path | None, out: Path) -> None:
    """Tokenizer and processor files, which hold no weights."""
    if source is None:
        return
    for path in source.iterdir():
        side = path.suffix in (".json", ".txt") and path.name != weight_files.INDEX
        if path.is_file() and side and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


@contextlib.contextmanager
def new_directory(path: Path):
    """A directory that appears at `path` when the block ends well, else never."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(
            f"{path} is there already and not empty; give another name"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no directory; make it first")
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part.chmod(0o755)
        yield part
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
