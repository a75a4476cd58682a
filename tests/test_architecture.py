"""The layers that imports may cross, and other rules that only the source can break."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "qwen3tts_jax"
APPLICATIONS = ("train", "infer", "configs", "data", "eval")  # L5, beside the package

# Imports point down.  A name stands for a module, or for all modules of a package.
LAYERS = (
    ("config",),  # L0: standard library only
    (  # L1: blocks and plumbing
        "audio",
        "checkpoints.hub",
        "checkpoints.key_tables",
        "checkpoints.key_tables_25hz",
        "checkpoints.weights",
        "nn",
        "runtime",
        "sharding",
    ),
    (  # L2: neural parts
        "models.code_predictor",
        "models.speaker_encoder",
        "models.talker",
        "models.tokenizer_12hz",
        "models.tokenizer_25hz",
    ),
    (  # L3: text in, wave out; inside this layer imports point to the left only
        "text.tokenizer",
        "text.incremental",
        "generation.prompt",
        "generation.sampling",
        "models.language_model",
        "generation.generate",
        "checkpoints.parts",
        "codecs.inputs",
        "codecs.xvector",
        "codecs.base",
        "codecs.codec_25hz",
        "speech_tokenizer",
        "generation.voice_clone",
        "serving.stream",
        "serving.engine",
        "serving.session",
        "model",
        "serving.warmup",
        "checkpoints.random_weights",
        "metrics",
    ),
    ("serving", "teachers", "training"),  # L4: these never import each other
)
ORDERED, SEPARATE = LAYERS[3], LAYERS[4]

MAX_LINES = 450
LONGER = {  # file -> why it is one file
    "qwen3tts_jax/model.py": "the official class with all its methods",
    "tests/test_infer.py": "every flag and every refusal of one program",
    "tests/test_purity.py": "how to call every method of every module",
    "tests/checkpoints/test_weights.py": "every way in which a checkpoint can be wrong",
}
TORCH = (
    "tests/golden/",
    "eval/benchmarks/worker_official.py",
    "eval/benchmarks/worker_faster.py",
)  # where the official package runs
LAZY = {  # file -> why it imports inside a function
    "data/optional.py": "packages for some sources and scorers are optional",
    "eval/benchmarks/latency.py": "matplotlib is optional (extra eval)",
    "eval/learning_curves.py": "matplotlib is optional (extra eval)",
    "eval/run.py": "judges, Opus and pictures are optional (extra eval)",
    "eval/benchmarks/report.py": "matplotlib is optional (extra eval)",
    "qwen3tts_jax/codecs/xvector.py": "onnxruntime is optional (extra onnx)",
    "eval/benchmarks/streams.py": "speechmos is optional (extra eval)",
}
GENERATED = ("build", "dist", "out", "shared")  # folders that are no source


def is_source(path: pathlib.Path) -> bool:
    parts = path.relative_to(ROOT).parts
    hidden = any(part.startswith((".", "__pycache__")) for part in parts)
    built = parts[0] in GENERATED or any(part.endswith(".egg-info") for part in parts)
    return path.is_file() and not hidden and not built


FILES = sorted(path for path in ROOT.rglob("*") if is_source(path))
PYTHON = [path for path in FILES if path.suffix == ".py"]
LIBRARY = [path for path in PYTHON if path.is_relative_to(ROOT / PACKAGE)]
SHIPPED = [
    path
    for path in PYTHON
    if path.relative_to(ROOT).parts[0].removesuffix(".py") in (PACKAGE, *APPLICATIONS)
]


def short(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def name_of(path: pathlib.Path) -> str:
    """The module's name inside the package, as nn.layers; "" for the package itself."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in LIBRARY}


def imports(path: pathlib.Path):
    """(line, dotted name) of every import in a file."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def internal(path: pathlib.Path):
    """(line, module of the package) of all that a file imports from it."""
    for line, name in imports(path):
        if name.split(".")[0] == PACKAGE:
            yield line, name.removeprefix(PACKAGE).removeprefix(".")


def entry(module: str) -> str:
    """The name under which LAYERS has a module: its own, or that of its package."""
    parts = module.split(".")
    names = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
    return next((n for n in names if any(n in layer for layer in LAYERS)), module)


def layer(module: str) -> int:
    """The layer's number; -1 if no layer has the module."""
    return next((i for i, names in enumerate(LAYERS) if entry(module) in names), -1)


def is_folder(path: pathlib.Path) -> bool:
    """A package that holds modules alone, in more than one layer."""
    body = [node for node in parse(path).body if not isinstance(node, ast.Expr)]
    return path.name == "__init__.py" and not body


def may_import(importer: str, target: str) -> bool:
    if layer(importer) != layer(target):
        return layer(target) < layer(importer)
    tops = [entry(name) for name in (importer, target)]
    if layer(importer) == LAYERS.index(ORDERED):
        return ORDERED.index(tops[1]) < ORDERED.index(tops[0])
    if layer(importer) == LAYERS.index(SEPARATE):
        return tops[0] == tops[1]
    return True


# --------------------------------------------------------------------- imports


def test_every_module_has_a_layer():
    bad = [name for name in MODULES if name and layer(name) < 0]
    assert [name for name in bad if not is_folder(MODULES[name])] == []


def test_modules_are_imported_not_their_contents():
    """So that a call site says where a thing comes from; the public names excepted."""
    bad = [
        f"{short(path)}:{line} {target}"
        for path in SHIPPED
        if path != MODULES[""]
        for line, target in internal(path)
        if target not in MODULES
    ]
    assert not bad, "\n".join(bad)


def test_imports_point_down():
    bad = [
        f"{short(path)}:{line} imports {target}"
        for name, path in MODULES.items()
        if name
        for line, target in internal(path)
        if target in MODULES and not may_import(name, target)
    ]
    assert not bad, "\n".join(bad)


def test_the_library_does_not_know_the_applications():
    bad = [
        f"{short(path)}:{line} imports {name}"
        for path in LIBRARY
        for line, name in imports(path)
        if name.split(".")[0] in APPLICATIONS
    ]
    assert not bad, "\n".join(bad)


def test_configurations_need_the_standard_library_only():
    bad = [
        f"{short(path)}:{line} imports {name}"
        for module, path in MODULES.items()
        if layer(module) == 0
        for line, name in imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names
        and layer(name.removeprefix(f"{PACKAGE}.")) != 0
    ]
    assert not bad, "\n".join(bad)


def test_there_are_no_import_cycles():
    graph = {
        name: [target for _, target in internal(path) if target in MODULES]
        for name, path in MODULES.items()
    }
    finished, cycles = set(), []

    def visit(name, trail):
        if name in trail:
            cycles.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in finished:
            for target in graph[name]:
                visit(target, [*trail, name])
            finished.add(name)

    for name in graph:
        visit(name, [])
    assert not cycles, "\n".join(cycles)


def test_imports_stand_at_the_top():
    bad = []
    for path in SHIPPED:
        if short(path) in LAZY:
            continue
        for function in ast.walk(parse(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                bad += [
                    f"{short(path)}:{node.lineno}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.Import | ast.ImportFrom)
                    or ast.unparse(node).startswith(
                        ("importlib.import_", "__import__(")
                    )
                ]
    assert not bad, "\n".join(bad)


def test_torch_is_the_official_packages_alone():
    bad = [
        f"{short(path)}:{line}"
        for path in PYTHON
        if not short(path).startswith(TORCH)
        for line, name in imports(path)
        if name.split(".")[0] in ("torch", "torchaudio", "qwen_tts")
    ]
    assert not bad, "\n".join(bad)


# ------------------------------------------------------------------ source text


def test_public_things_have_docstrings():
    bad = []
    for path in SHIPPED:
        tree = parse(path)
        if tree.body and not ast.get_docstring(tree):
            bad.append(short(path))
        if path not in LIBRARY:
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                public = not node.name.startswith("_") and node.name != "main"
                if public and not ast.get_docstring(node):
                    bad.append(f"{short(path)}:{node.lineno} {node.name}")
    assert not bad, "\n".join(bad)


def test_files_are_short():
    long = {
        short(path)
        for path in PYTHON
        if len(path.read_text("utf-8").splitlines()) > MAX_LINES
    }
    bad = sorted(long - set(LONGER))
    assert not bad, "\n".join(["split these, or say in LONGER why not:", *bad])


def test_ruff_finds_nothing():
    for task in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *task, "."]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_drawer_for_odds_and_ends():
    assert [short(path) for path in FILES if path.stem in ("utils", "util")] == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b(TODO|FIXME|XXX)\b",
        # a path of somebody's machine; not one inside an address or a longer path
        r"(?<![\w.~)}-])/(tmp|home|root|Users)/",
    ],
    ids=["unfinished", "machine"],
)
def test_source_text_is_free_of(pattern):
    bad = []
    for path in FILES:
        if path == pathlib.Path(__file__):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a recording or an array
        bad += [
            f"{short(path)}:{i} {line.strip()[:80]}"
            for i, line in enumerate(text.splitlines(), 1)
            if re.search(pattern, line)
        ]
    assert not bad, "\n".join(bad)
