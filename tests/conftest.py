"""Fixtures that several test files share."""

import functools
import pathlib
import tempfile
from collections.abc import Callable

import jax
import make
import parity
import pytest

from qwen3tts_jax import text


def pytest_configure(config) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # One cache for all tests: many compile the same programs.  Not the user's.
    programs = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    config.add_cleanup(programs.cleanup)
    jax.config.update("jax_compilation_cache_dir", programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_terminal_summary(terminalreporter) -> None:
    if parity.worst:
        terminalreporter.section("largest errors, in standard deviations", sep="-")
    for quantity, error in sorted(parity.worst.items()):
        terminalreporter.line(f"{error:8.1e}  {quantity}")


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
    def write(spec: make.Spec) -> pathlib.Path:
        out = tmp_path_factory.mktemp(spec.name)
        spec.write(out, tokenizer_dir)
        return out

    def get(
        variant: str, size: str = "0.6B", seed: int = 1, *, eos_gain: float = 1.0
    ) -> pathlib.Path:
        return write(make.Spec(variant, size, seed, eos_gain))

    return get


@pytest.fixture(scope="session")
def goldens(tmp_path_factory, checkpoint) -> Callable[[make.Spec], parity.Golden]:
    """Golden values beside their checkpoint: committed ones, or made now."""

    @functools.cache
    def get(spec: make.Spec) -> parity.Golden:
        directory = checkpoint(
            spec.variant, spec.size, spec.seed, eos_gain=spec.eos_gain
        )
        if spec in make.SPECS:
            path = parity.GOLDEN / f"{spec.name}.safetensors"
        else:
            path = tmp_path_factory.mktemp("live") / f"{spec.name}.safetensors"
            make.dump(parity.official_python(), spec, directory, path)
        return parity.Golden.read(path, directory)

    return get


@pytest.fixture
def golden(request, goldens) -> parity.Golden:
    """The golden values that `parity.over` asks for."""
    return goldens(request.param)
