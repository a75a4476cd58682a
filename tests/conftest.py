"""Fixtures that several test files share."""

import functools
import pathlib
from collections.abc import Callable

import pytest
import tiny

from qwen3tts_jax import random_checkpoint, text


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> pathlib.Path:
    """A directory with the real Qwen vocabulary: vocab.json, merges.txt, its config."""
    out = tmp_path_factory.mktemp("text_tokenizer")
    text.write_tokenizer_files(out, text.find_qwen_tiktoken())
    return out


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer_dir) -> Callable[..., pathlib.Path]:
    """checkpoint(variant, size="0.6B", seed=1): a tiny random one, written once."""

    @functools.cache
    def write(variant: str, size: str, seed: int) -> pathlib.Path:
        out = tmp_path_factory.mktemp(f"{size}_{variant}")
        random_checkpoint.write(
            out,
            tiny.tts_config(variant, size),
            tiny.tokenizer_config(),
            seed=seed,
            text_files=tokenizer_dir,
        )
        return out

    def get(variant: str, size: str = "0.6B", seed: int = 1) -> pathlib.Path:
        return write(variant, size, seed)

    return get
