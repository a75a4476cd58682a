"""What speech tokenizers of both frame rates have in common: waves in, files out."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.checkpoints import hub, weights
from qwen3tts_jax.nn import tree


class SpeechTokenizer:
    """A codec with its files; a subclass has the modules, and encodes and decodes."""

    def __init__(self, config, *, hf_config: dict, source: Path | None):
        """hf_config: what config.json holds; source: its directory."""
        self.config, self._hf_config, self._source = config, hf_config, source

    @staticmethod
    def parts(config) -> dict[str, tuple]:
        """name of an attribute -> (abstract module, its key table)."""
        raise NotImplementedError

    def _waves(self, audios: Any, sr: int | None) -> list[np.ndarray]:
        """Float32 [W] each, at the rate of the encoder, of what `encode` takes."""
        many = isinstance(audios, list | tuple) and not _is_pair(audios)
        return [
            audio_io.load(_with_rate(a, sr), rate=self.config.input_sample_rate)
            for a in (audios if many else [audios])
        ]

    def save_pretrained(self, save_directory: str | Path, *, dtype=None) -> None:
        """Write the official layout; the directory appears whole or not at all."""
        with hub.new_directory(Path(save_directory)) as out:
            self._save(out, dtype)

    def _save(self, out: Path, dtype) -> None:
        parts = self.parts(self.config)
        modules = {name: (getattr(self, name), parts[name][1]) for name in parts}
        weights.save(out, modules, dtype=dtype)
        hub.write_json(out / "config.json", self._hf_config)
        hub.copy_side_files(self._source, out)

    def get_input_sample_rate(self) -> int:
        return self.config.input_sample_rate

    def get_output_sample_rate(self) -> int:
        return self.config.output_sample_rate


def fingerprint_of(config, module, **facts) -> str:
    """16 hex digits, a hash of a configuration, facts and parameters as float32.

    Neither the order in which parameters were read nor their dtype counts, as long as
    float32 holds the same values.
    """
    state = hashlib.blake2b(
        repr((config, sorted(facts.items()))).encode(), digest_size=8
    )
    values = {
        tree.leaf_path(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(module)
    }
    for path in sorted(values):
        value = np.asarray(values[path]).astype("<f4")
        state.update(f"{path} {value.shape}".encode())
        state.update(np.ascontiguousarray(value))
    return state.hexdigest()


def _with_rate(source, sr: int | None):
    return (source, sr) if isinstance(source, np.ndarray) else source


def _is_pair(value) -> bool:
    """Whether a value is one (array, rate)."""
    return isinstance(value, tuple) and len(value) == 2 and np.isscalar(value[1])
