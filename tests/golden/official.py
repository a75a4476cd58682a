"""The official package, imported so that the golden files can be made with it.

Needs an environment of its own: torch 2.13.0 (CPU), transformers 4.57.3, librosa,
soundfile, safetensors, and `pip install --no-deps qwen-tts==0.1.1 torchaudio sox`.

What torchaudio and sox serve (the 25 Hz tokenizer's speaker front end) is not used
here, and either often fails to import, so both may be empty: torchaudio keeps only its
pure Python parts, whose import needs no compiled library.
"""

import importlib.machinery
import importlib.util
import os
import shutil
import sys
import types

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

import qwen_tts  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()


def load(directory) -> qwen_tts.Qwen3TTSModel:
    """A checkpoint in float32 on the CPU, with the plain text tokenizer.

    `from_pretrained` puts another word pattern into the tokenizer of a local directory
    than into that of a hub name; the models were trained with the latter.
    """
    tts = qwen_tts.Qwen3TTSModel.from_pretrained(str(directory), dtype=torch.float32)
    plain = transformers.Qwen2TokenizerFast.from_pretrained(directory)
    tts.processor.tokenizer = plain
    return tts
