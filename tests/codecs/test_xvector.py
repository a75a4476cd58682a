"""X-vectors: from the official kind of file, from our own model, or from neither."""

import importlib.util
import json
import sys

import inputs_25hz
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3tts_jax.checkpoints import hub, key_tables, random_weights
from qwen3tts_jax.checkpoints import weights as weight_files
from qwen3tts_jax.codecs import xvector
from qwen3tts_jax.config import tiny, tokenizer_25hz, tts
from qwen3tts_jax.models import speaker_encoder
from qwen3tts_jax.models.tokenizer_25hz import features

VALUES = tiny.tokenizer_25hz_config()
CONFIG = tokenizer_25hz.Tokenizer25HzConfig.from_hf(VALUES)
DIM = CONFIG.dit.xvector_dim
CAMPPLUS, OURS = xvector.FILES[xvector.CAMPPLUS], xvector.FILES[xvector.SPEAKER_ENCODER]
ONNX_FLOAT, ONNX_INTS = 1, 7  # TensorProto.FLOAT, AttributeProto.INTS
needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="no onnxruntime"
)


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    return inputs_25hz.waves(3)[inputs_25hz.REFERENCE]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tokenizer with our own model."""
    out = tmp_path_factory.mktemp("tokenizer") / "it"
    random_weights.write_tokenizer_25hz(out, VALUES, seed=5)
    return out


# --------------------------------------------------------------- a graph in ONNX


def field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protocol buffer: a varint, or what has a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    low = value & 127
    return bytes([low | 128]) + varint(value >> 7) if value > 127 else bytes([low])


def node(kind: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    body = b"".join(field(1, name) for name in inputs) + field(2, output)
    return body + field(4, kind) + b"".join(field(5, a) for a in attributes)


def value_info(name: str, *sizes: int | str) -> bytes:
    dims = (field(2 if isinstance(size, str) else 1, size) for size in sizes)
    shape = b"".join(field(1, dim) for dim in dims)
    tensor = field(1, ONNX_FLOAT) + field(2, shape)
    return field(1, name) + field(2, field(1, tensor))


def graph(matrix: np.ndarray) -> bytes:
    """An ONNX model: [1, T, 80] -> the largest of each band, times float32 [80, D]."""
    axes = field(1, "axes") + field(8, 1) + field(20, ONNX_INTS)
    keep = field(1, "keepdims") + field(3, 0) + field(20, 2)
    weights = b"".join(field(1, size) for size in matrix.shape)
    weights += field(2, ONNX_FLOAT) + field(8, "w") + field(9, matrix.tobytes())
    body = field(1, node("ReduceMax", ["feats"], "top", axes, keep))
    body += field(1, node("MatMul", ["top", "w"], "embs"))
    body += field(2, "g") + field(5, weights)
    body += field(11, value_info("feats", 1, "T", matrix.shape[0]))
    body += field(12, value_info("embs", 1, matrix.shape[1]))
    opset = field(1, "") + field(2, 13)
    return field(1, 8) + field(7, body) + field(8, opset)


def matrix(dim: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((80, dim)).astype(np.float32)


# ------------------------------------------------------------------- the official


@needs_onnxruntime
def test_the_official_file_gets_the_official_features(tmp_path, wave):
    """Kaldi's bank of the wave at -6 dBFS, less its mean; made a vector of length 1."""
    (tmp_path / CAMPPLUS).write_bytes(graph(matrix(DIM)))
    vectors = xvector.XVectors.open(tmp_path, CONFIG)
    assert vectors.kind == "campplus"
    vector, mel = vectors.reference(wave)
    bank = features.fbank(features.normalize(wave))
    expected = (bank - bank.mean(0)).max(0) @ matrix(DIM)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert vector.dtype == np.float32
    level = features.reference_mel(features.normalize(wave))
    np.testing.assert_array_equal(mel, level)
    np.testing.assert_array_equal(vectors(wave / 3), vectors(wave / 3))
    np.testing.assert_allclose(vectors(wave / 3), vector, atol=1e-4)  # no level


@needs_onnxruntime
def test_bad_official_files_are_one_clear_error(tmp_path, wave):
    path = tmp_path / CAMPPLUS
    path.write_bytes(graph(matrix(DIM))[:-9])
    with pytest.raises(ValueError, match=f"{CAMPPLUS} is not a whole ONNX model"):
        xvector.XVectors.open(tmp_path, CONFIG)(wave)
    path.write_bytes(graph(matrix(DIM + 1)))
    with pytest.raises(ValueError, match=rf"\[{DIM + 1}\] from campplus.*\[{DIM}\]"):
        xvector.XVectors.open(tmp_path, CONFIG)(wave)


def test_a_missing_package_is_named(tmp_path, wave, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / CAMPPLUS).write_bytes(b"")
    vectors = xvector.XVectors.open(tmp_path, CONFIG)
    with pytest.raises(ModuleNotFoundError, match=r"qwen3tts_jax\[onnx\]"):
        vectors(wave)


# ----------------------------------------------------------------------- our own


def test_our_own_model_hears_the_same_level(directory, wave):
    vectors = xvector.XVectors.open(directory, CONFIG)
    assert vectors.kind == "speaker_encoder"
    vector, mel = vectors.reference(wave)
    config = tts.SpeakerEncoderConfig.from_hf(VALUES[xvector.CONFIG_KEY])
    parts = dict(
        it=(
            weight_files.abstract(speaker_encoder.SpeakerEncoder, config),
            key_tables.speaker_encoder_rules(config),
        )
    )
    loaded = weight_files.load(directory, parts, dtype=jnp.float32, weights=OURS)
    level = features.normalize(wave)
    expected = speaker_encoder.embed_wave(loaded["it"], level, features.RATE)
    expected = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert vector.shape == (DIM,) and len(mel) == len(wave) // features.HOP


def test_the_official_one_comes_first_and_files_travel(directory, tmp_path):
    (tmp_path / OURS).write_bytes((directory / OURS).read_bytes())
    hub.write_json(tmp_path / "config.json", VALUES)
    assert xvector.XVectors.open(tmp_path, CONFIG).kind == "speaker_encoder"
    (tmp_path / CAMPPLUS).write_bytes(b"official")
    both = xvector.XVectors.open(tmp_path, CONFIG)
    assert both.kind == "campplus"
    (tmp_path / "out").mkdir()
    both.save(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [CAMPPLUS]


def test_weights_of_ours_need_a_configuration_that_fits(directory, tmp_path):
    (tmp_path / OURS).write_bytes((directory / OURS).read_bytes())
    values = json.loads(json.dumps(VALUES))
    for width, message in ((DIM + 1, f"got {DIM + 1}, expected {DIM}"), (None, "miss")):
        values[xvector.CONFIG_KEY]["enc_dim"] = width
        if width is None:
            del values[xvector.CONFIG_KEY]
        hub.write_json(tmp_path / "config.json", values)
        with pytest.raises(ValueError, match=message):
            xvector.XVectors.open(tmp_path, CONFIG)


# ----------------------------------------------------------------------- neither


def test_without_a_model_the_error_says_what_to_do(tmp_path, wave):
    vectors = xvector.XVectors.open(tmp_path, CONFIG)
    assert vectors.kind == "none"
    vectors.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"neither {CAMPPLUS} nor {OURS}"):
        vectors(wave)


def test_a_voice_must_be_heard(directory):
    vectors = xvector.XVectors.open(directory, CONFIG)
    with pytest.raises(ValueError, match="799 samples.*at least 800"):
        vectors(np.zeros(799, np.float32))
