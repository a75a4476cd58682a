"""Golden files of the 25 Hz tokenizer, beside the tokenizers that they were made from.

As in `parity.py`; a comparison takes the fixture `golden_25hz`, a `Golden`.
"""

import dataclasses
import functools
import json
import pathlib

import inputs_25hz
import jax.numpy as jnp
import make
import numpy as np
import parity
import pytest

from qwen3tts_jax.checkpoints import parts as parts_25hz
from qwen3tts_jax.checkpoints import weights
from qwen3tts_jax.config import tokenizer_25hz

FRESH = make.TokenizerSpec("live", parity.FRESH_SEED, 24)


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """What the official package made of one tokenizer; see golden/dump_25hz.py.

    Attributes:
        directory: the tokenizer.
    """

    arrays: dict[str, np.ndarray]
    notes: dict
    directory: pathlib.Path

    @classmethod
    def read(cls, path: pathlib.Path, directory: pathlib.Path) -> "Golden":
        arrays, notes = parity.read(path, inputs_25hz.fingerprints)
        parity.check_checkpoint(path, notes, directory)
        return cls(arrays, notes, directory)

    @functools.cached_property
    def config(self) -> tokenizer_25hz.Tokenizer25HzConfig:
        values = json.loads((self.directory / "config.json").read_text("utf-8"))
        return tokenizer_25hz.Tokenizer25HzConfig.from_hf(values)

    @functools.cached_property
    def parts(self) -> dict:
        """encoder, dit and bigvgan, float32."""
        parts = parts_25hz.parts(self.config)
        return weights.load(self.directory, parts, dtype=jnp.float32)

    @property
    def seed(self) -> int:
        """Of the inputs."""
        return self.notes["made_with"]["seed"]


def over():
    """Parametrise a test over every golden file of the 25 Hz tokenizer."""
    committed = [pytest.param(spec, id=spec.name) for spec in make.TOKENIZERS_25HZ]
    live = pytest.param(FRESH, id=f"live_{FRESH.seed}", marks=pytest.mark.oracle)
    return pytest.mark.parametrize("golden_25hz", [*committed, live], indirect=True)
