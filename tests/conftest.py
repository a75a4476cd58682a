"""Fixtures that several test files share."""

import pathlib

import pytest

from qwen3tts_jax import text


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> pathlib.Path:
    """A directory with the real Qwen vocabulary: vocab.json, merges.txt, its config."""
    out = tmp_path_factory.mktemp("text_tokenizer")
    text.write_tokenizer_files(out, text.find_qwen_tiktoken())
    return out
