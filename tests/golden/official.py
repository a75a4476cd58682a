"""The official package, imported so that the golden files can be made with it.

Needs an environment of its own: torch 2.13.0 (CPU), transformers 4.57.3, librosa,
soundfile, safetensors, and `pip install --no-deps qwen-tts==0.1.1 torchaudio sox`.

What torchaudio and sox serve (the 25 Hz tokenizer's speaker front end) is not used
here, and either often fails to import, so both may be empty: torchaudio keeps only its
pure Python parts, whose import needs no compiled library.
"""

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import types
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _without_libraries(name: str) -> types.ModuleType:
    """A package that skips its own __init__ but still finds its submodules."""
    found = importlib.util.find_spec(name)
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = list(found.submodule_search_locations) if found else []
    return module


sys.modules["torchaudio"] = _without_libraries("torchaudio")
if shutil.which("sox") is None:
    sys.modules["sox"] = types.ModuleType("sox")

import numpy as np  # noqa: E402
import qwen_tts  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from qwen_tts.core.models import modeling_qwen3_tts  # noqa: E402

SAMPLES_PER_CODE = 960  # at 24 kHz, of the 25Hz codec
NO_CODES = 1024  # ids behind the codes in the talker's vocabulary

transformers.logging.set_verbosity_error()


def load(directory) -> qwen_tts.Qwen3TTSModel:
    """A checkpoint in float32 on the CPU, with the plain text tokenizer.

    `from_pretrained` puts another word pattern into the tokenizer of a local directory
    than into that of a hub name; the models were trained with the latter.
    """
    with _speech_tokenizer_of(pathlib.Path(directory)):
        tts = qwen_tts.Qwen3TTSModel.from_pretrained(
            str(directory), dtype=torch.float32
        )
    plain = transformers.Qwen2TokenizerFast.from_pretrained(directory)
    tts.processor.tokenizer = plain
    return tts


class NoCodec:
    """Stands where the 25Hz speech tokenizer is, which does not load without CAM++.

    What it encodes are codes drawn by the length of the wave; what it decodes is
    silence, since the official model would decode without x-vectors and fail.
    """

    def __init__(self, codes: int):
        self.codes = codes

    def encode(self, waves, sr: int) -> types.SimpleNamespace:
        waves = waves if isinstance(waves, list) else [waves]
        return types.SimpleNamespace(audio_codes=[self._codes(len(w)) for w in waves])

    def _codes(self, samples: int) -> torch.Tensor:
        """[T, 1]: official codes are [T], with which the official model fails."""
        rng = np.random.default_rng(samples)
        shape = (-(-samples // SAMPLES_PER_CODE), 1)
        return torch.from_numpy(rng.integers(self.codes, size=shape))

    def decode(self, encoded: list) -> tuple[list[np.ndarray], int]:
        lengths = [len(e["audio_codes"]) * SAMPLES_PER_CODE for e in encoded]
        return [np.zeros(n, np.float32) for n in lengths], 24000


@contextlib.contextmanager
def _speech_tokenizer_of(directory: pathlib.Path):
    """Loading of a checkpoint with `NoCodec`, if it is a 25Hz one."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    if config["tokenizer_type"].endswith("25hz"):
        codec = NoCodec(config["talker_config"]["vocab_size"] - NO_CODES)
        loader = types.SimpleNamespace(from_pretrained=lambda *_, **__: codec)
        with mock.patch.object(modeling_qwen3_tts, "Qwen3TTSTokenizer", loader):
            yield
    else:
        yield


def versions() -> dict[str, str]:
    """What a golden file notes about what made it."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "qwen_tts": "0.1.1",
    }
