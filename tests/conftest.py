"""Fixtures that several test files share."""

import functools
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import jax
import make
import numpy as np
import parity
import parity_25hz
import pytest
import text_files
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from qwen3tts_jax.text import tokenizer as text_tokenizer

MANY_MAPPINGS = 20_000  # of memory; Linux allows 65,530
# Compiling is most of what the tests do: they take a fraction of the time with programs
# that are optimised little (fixture `optimized`) or not at all, in child processes too.
# README.md, "Tests", says how to run them as users have them.
XLA_FLAGS = "--xla_backend_optimization_level=1"
if jax.__version_info__ < (0, 11):  # later ones have no such option
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
PLAIN = "jax_disable_most_optimizations"
# Begun first, so that no process of pytest -n is left alone with one at the end.
LONGEST = ("test_real_speech.py", "test_engine.py", "test_generate.py", "test_train.py")


def pytest_configure(config) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    plain = os.environ.setdefault(PLAIN.upper(), "1")
    jax.config.update(PLAIN, plain == "1")
    # The tests of a file share models and trained runs: each file in one process.
    if config.getoption("dist", None) == "load":
        config.option.dist, config.option.loadscopereorder = "loadfile", False
    # One cache for all tests: many compile the same programs.  Not the user's.
    if not hasattr(config, "workerinput"):
        programs = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        config.add_cleanup(programs.cleanup)
        config.programs = programs.name
    else:  # a process of pytest -n
        config.programs = config.workerinput["programs"]
    jax.config.update("jax_compilation_cache_dir", config.programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_collection_modifyitems(items) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["programs"] = node.config.programs


def pytest_sessionfinish(session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["worst"] = parity.worst


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    for quantity, error in getattr(node, "workeroutput", {}).get("worst", {}).items():
        parity.worst[quantity] = max(parity.worst.get(quantity, 0.0), error)


def pytest_terminal_summary(terminalreporter) -> None:
    if parity.worst:
        terminalreporter.section("largest errors, in standard deviations", sep="-")
    for quantity, error in sorted(parity.worst.items()):
        terminalreporter.line(f"{error:8.1e}  {quantity}")


@pytest.fixture(scope="module")
def optimized():
    """For tests whose programs run long: they are optimised a little."""
    jax.config.update(PLAIN, False)
    yield
    jax.config.update(PLAIN, os.environ[PLAIN.upper()] == "1")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs before a process has more mappings than Linux allows:
    XLA crashes there.  The programs that are needed again are in the cache on disk."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MANY_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> pathlib.Path:
    """A directory with the real Qwen vocabulary: vocab.json, merges.txt, its config."""
    out = tmp_path_factory.mktemp("text_tokenizer")
    text_tokenizer.write_tokenizer_files(out, text_tokenizer.find_qwen_tiktoken())
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


@pytest.fixture(scope="session")
def goldens_25hz(
    tmp_path_factory,
) -> Callable[[make.TokenizerSpec], parity_25hz.Golden]:
    """The same of 25 Hz speech tokenizers."""

    @functools.cache
    def get(spec: make.TokenizerSpec) -> parity_25hz.Golden:
        folder = tmp_path_factory.mktemp(spec.name)
        directory, path = folder / "tokenizer", folder / "golden.safetensors"
        spec.write(directory)
        if spec in make.TOKENIZERS_25HZ:
            path = parity.GOLDEN / f"{spec.name}.safetensors"
        else:
            make.dump_tokenizer(parity.official_python(), spec, directory, path)
        return parity_25hz.Golden.read(path, directory)

    return get


@pytest.fixture
def golden_25hz(request, goldens_25hz) -> parity_25hz.Golden:
    """The golden values that `parity_25hz.over` asks for."""
    return goldens_25hz(request.param)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    return text_tokenizer.TextTokenizer.from_directory(tokenizer_dir)


@pytest.fixture(scope="session")
def whole_dir(tokenizer_dir, tmp_path_factory):
    """tokenizer.json alone: another word pattern, truncation on, trimmed offsets."""
    out = tmp_path_factory.mktemp("whole")
    parts = {
        name: (tokenizer_dir / name).read_text("utf-8") for name in text_files.FILES
    }
    merges = [tuple(m.split(" ")) for m in parts["merges.txt"].splitlines()[1:]]
    backend = tokenizers.Tokenizer(models.BPE(json.loads(parts["vocab.json"]), merges))
    added = json.loads(parts["tokenizer_config.json"])["added_tokens_decoder"]
    backend.add_tokens([tokenizers.AddedToken(**token) for token in added.values()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    backend.save(str(out / "tokenizer.json"))
    return out


@pytest.fixture
def broken_dir(tokenizer_dir, tmp_path):
    """A copy to damage."""
    for name in text_files.FILES:
        shutil.copy(tokenizer_dir / name, tmp_path)
    return tmp_path


@pytest.fixture
def compiled(caplog):
    """compiled() -> a line for each program compiled in the test so far."""
    caplog.set_level(logging.WARNING, logger="jax")

    def names():
        done = [r.getMessage() for r in caplog.records]
        return [m for m in done if m.startswith("Finished XLA compilation")]

    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(np.float32(1))
        assert len(names()) == 1  # this version of jax still says so
        caplog.clear()
        yield names
