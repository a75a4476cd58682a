"""Write the golden files: tiny random checkpoints, run through the official package.

    QWEN_TTS_PYTHON=/path/to/python python tests/golden/make.py [NAME ...]

QWEN_TTS_PYTHON names a Python with the official package (official.py says what it
needs); what runs this file needs this package, installed.  Each file takes about half a
minute.  Do it again after any change to random_weights.py, tiny.py or the dumpers:
a golden file notes a fingerprint of its checkpoint and its inputs, and the tests refuse
a file whose notes no longer fit.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import safetensors
import safetensors.numpy

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from qwen3tts_jax.checkpoints import random_weights
from qwen3tts_jax.config import tiny

HERE = pathlib.Path(__file__).parent
RECORDING = HERE.parent / "recordings" / "allison_en.flac"
SAMPLING = "sampling"  # a file of its own: its values depend on no weights
TEACHERS = "teachers"  # tiny models of transformers, no checkpoint of ours
LANGUAGE = ("generation", "predictor", "training")
CODEC = ("encode", "decode")
CLONING = ("speaker", "references")
TOLERANCE = 1e-6  # of fingerprints: one rounding of one weight in a thousand


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tiny checkpoint and what to run on it.

    Attributes:
        seed: of the weights and of the inputs.
        eos_gain: how much longer the end token's row of the codec head is, chosen such
            that some row of a batch ends early.
        parts: see dump_official.py.
    """

    variant: str
    size: str
    seed: int
    eos_gain: float = 1.0
    parts: tuple[str, ...] = LANGUAGE

    @property
    def name(self) -> str:
        return f"{self.variant}_{self.size}"

    def write(self, out: pathlib.Path, text_files: pathlib.Path | None = None) -> None:
        variant = self.variant.removesuffix(random_weights.SUFFIX_25HZ)
        single = variant != self.variant
        tts = tiny.tts_config_25hz if single else tiny.tts_config
        codec = _tokenizer_25hz_config() if single else tiny.tokenizer_config()
        random_weights.write(
            out,
            tts(variant, self.size),
            codec,
            seed=self.seed,
            eos_gain=self.eos_gain,
            text_files=text_files,
        )


# A BigVGAN that compiles in a small part of the time, in TTS checkpoints.
QUICK_BIGVGAN = dict(
    upsample_initial_channel=32,
    upsample_rates=[15, 16],
    upsample_kernel_sizes=[17, 18],
    resblock_kernel_sizes=[3],
    resblock_dilation_sizes=[[1, 3, 5]],
)


def _tokenizer_25hz_config() -> dict:
    config = tiny.tokenizer_25hz_config()
    config["decoder_config"]["bigvgan_config"] |= QUICK_BIGVGAN
    return config


# In each of them most rows go on beyond 48 frames, and one row of a batch ends early.
SPECS = (
    Spec("base", "0.6B", 11, 1.4, LANGUAGE + CODEC + CLONING),
    Spec("base", "1.7B", 24, 1.4, LANGUAGE + CODEC + CLONING),
    Spec("custom_voice", "0.6B", 32, 1.4),
    Spec("custom_voice", "1.7B", 43, 1.6),
    Spec("voice_design", "1.7B", 52, 1.4),
    Spec("voice_design", "0.6B", 63, 1.6),  # never released, but must work
    Spec("base_25hz", "0.6B", 15, 1.1, LANGUAGE[:1]),
    Spec("custom_voice_25hz", "1.7B", 28, 1.4, LANGUAGE[:1]),
)


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """A tiny 25 Hz speech tokenizer; see dump_25hz.py.

    Attributes:
        seed: of the weights and of the inputs.
        block: of the DiT, mel frames: the released 32, or the class default.
    """

    name: str
    seed: int
    block: int

    def write(self, out: pathlib.Path) -> None:
        config = tiny.tokenizer_25hz_config()
        config["decoder_config"]["dit_config"]["block_size"] = self.block
        random_weights.write_tokenizer_25hz(out, config, seed=self.seed)


TOKENIZERS_25HZ = (
    TokenizerSpec("tokenizer_25hz_1", 71, 24),
    TokenizerSpec("tokenizer_25hz_2", 82, 32),
)


# ---------------------------------------------------------------- fingerprints


def fingerprint(directory: pathlib.Path) -> dict:
    """What tells one checkpoint from another.

    Returns:
        "config.json" and "speech_tokenizer/config.json": a digest of the contents;
        each part by the first two words of its official names: mean, standard deviation
        and last element of all its weights.
    """
    found = {}
    for folder in (".", "speech_tokenizer"):
        path = directory / folder / "config.json"
        if not path.exists():  # a speech tokenizer alone
            continue
        values = json.dumps(json.loads(path.read_text("utf-8")), sort_keys=True)
        name = str(path.relative_to(directory))
        found[name] = hashlib.sha256(values.encode()).hexdigest()
        found |= _statistics(directory / folder / "model.safetensors")
    return found


def _statistics(path: pathlib.Path) -> dict[str, list[float]]:
    parts: dict[str, list[np.ndarray]] = {}
    for key, tensor in sorted(safetensors.numpy.load_file(path).items()):
        part = ".".join(key.split(".")[:2])
        parts.setdefault(part, []).append(tensor.astype(np.float64).ravel())
    return {part: summary(np.concatenate(arrays)) for part, arrays in parts.items()}


def summary(array: np.ndarray) -> list[float]:
    return [float(np.mean(array)), float(np.std(array)), float(array[-1])]


def differences(noted: dict, found: dict) -> list[str]:
    """Names whose fingerprints are not the same."""
    return [
        name
        for name in sorted(noted.keys() | found.keys())
        if not _same(noted.get(name), found.get(name))
    ]


def _same(noted, found) -> bool:
    if isinstance(noted, list) and isinstance(found, list):
        return bool(np.allclose(noted, found, rtol=TOLERANCE, atol=TOLERANCE))
    return noted == found


# --------------------------------------------------------------------- dumping


def official_python() -> str | None:
    """A Python with the official package, or None."""
    if found := os.environ.get("QWEN_TTS_PYTHON"):
        return found
    return sys.executable if importlib.util.find_spec("qwen_tts") else None


def run(python: str, script: str, *arguments) -> None:
    """Run a file of this folder; raises RuntimeError with the end of what it said."""
    command = [python, str(HERE / script), *map(str, arguments)]
    # what this Python imports is not for that one
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{script} failed:\n{done.stderr[-4000:]}")


def dump(python: str, spec: Spec, directory: pathlib.Path, out: pathlib.Path) -> None:
    """Write the golden file of the checkpoint that `spec` wrote to `directory`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / "main.safetensors"]
        common = (directory, "--seed", spec.seed, "--out")
        recording = ("--recording", RECORDING) * (CLONING[0] in spec.parts)
        parts = (*recording, "--only", *spec.parts)
        run(python, "dump_official.py", *common, files[0], *parts)
        if recording:
            files.append(pathlib.Path(folder) / "clone.safetensors")
            run(python, "dump_clone.py", *common, files[1])
        _join(files, spec, directory, out)


def dump_tokenizer(
    python: str, spec: TokenizerSpec, directory: pathlib.Path, out: pathlib.Path
) -> None:
    """The same of a 25 Hz speech tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "main.safetensors"
        run(python, "dump_25hz.py", directory, "--seed", spec.seed, "--out", path)
        _join([path], spec, directory, out)


def _join(files: list[pathlib.Path], spec, directory: pathlib.Path, out) -> None:
    """One golden file of what the dumpers wrote and of what tells its checkpoint."""
    arrays, merged = {}, {}
    for path in files:
        with safetensors.safe_open(path, "numpy") as file:
            merged |= json.loads(file.metadata()["notes"])
            arrays |= {key: file.get_tensor(key) for key in file.keys()}
    merged["checkpoint"] = dataclasses.asdict(spec) | {
        "fingerprint": fingerprint(directory)
    }
    text = json.dumps(merged, ensure_ascii=False, sort_keys=True)
    out.write_bytes(safetensors.numpy.save(arrays, metadata={"notes": text}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [TEACHERS, SAMPLING, *(spec.name for spec in (*SPECS, *TOKENIZERS_25HZ))]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}")
    wanted = parser.parse_args().names or names
    python = official_python()
    if not set(wanted) <= set(names) or python is None:
        parser.error(f"expected names of {names}, and QWEN_TTS_PYTHON to be set")
    if TEACHERS in wanted:
        out = HERE / f"{TEACHERS}.safetensors"
        run(python, "dump_teachers.py", "--out", out)
    sampling = dataclasses.replace(SPECS[0], parts=(SAMPLING,))
    specs = (sampling, *SPECS, *TOKENIZERS_25HZ)
    for name, spec in zip(names[1:], specs, strict=True):
        if name not in wanted:
            continue
        out = HERE / f"{name}.safetensors"
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder) / "checkpoint"
            spec.write(directory)
            how = dump_tokenizer if spec in TOKENIZERS_25HZ else dump
            how(python, spec, directory, out)
        print(f"{out.name}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
