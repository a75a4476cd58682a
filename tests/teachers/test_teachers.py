"""Teachers against transformers (golden/dump_teachers.py), and what features promise.

The golden values are of tiny random weights; under `-m oracle` of ones made now.
"""

import functools
import json
import pathlib
import struct

import jax
import make
import numpy as np
import parity
import pytest
import safetensors
import safetensors.numpy

from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.models.tokenizer_25hz import encoder, features
from qwen3tts_jax.teachers import ctranslate2, targets, wavlm, whisper

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "teachers.safetensors"
SCRIPT = "dump_teachers.py"
CLOSE = 2e-5  # standard deviations: float32 sums in another order
MEL_CLOSE = 1e-4  # absolute, of values about 1: the logarithm of faint bins
FRESH_SEED = parity.FRESH_SEED


@pytest.fixture(
    scope="module",
    params=["committed", pytest.param("live", marks=pytest.mark.oracle)],
)
def golden(request, tmp_path_factory):
    """(arrays, notes) of the committed file, or of one that transformers makes now."""
    path = GOLDEN
    if request.param == "live":
        path = tmp_path_factory.mktemp("live") / GOLDEN.name
        make.run(parity.official_python(), SCRIPT, "--seed", FRESH_SEED, "--out", path)
    with safetensors.safe_open(path, "numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}
        return arrays, json.loads(file.metadata()["notes"])


def weights(golden, kind: str) -> dict[str, np.ndarray]:
    prefix = f"{kind}/weights/"
    found = {k: v for k, v in golden[0].items() if k.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in found.items()}


def rows(golden, kind: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(waves [2, W] with NaN behind the shorter one, lengths, states of each)."""
    arrays = golden[0]
    pcm = [arrays[f"{kind}/row{i}"] for i in range(2)]
    waves = np.full((2, len(pcm[0])), np.nan, np.float32)
    for wave, row in zip(waves, pcm):
        wave[: len(row)] = row / np.float32(2**15)
    lengths = np.int32([len(row) for row in pcm])
    return waves, lengths, [arrays[f"{kind}/row{i}/states"] for i in range(2)]


def states(part, module, waves, lengths) -> list[np.ndarray]:
    """Every state of a batch, [B, T, D], and behind them the default; one program."""
    layers = [*range(module.config.layers + 1), None]

    @jax.jit
    def run(module, waves, lengths):
        return [part.hidden(module, waves, lengths, layer=i) for i in layers]

    return [np.asarray(state) for state in run(module, waves, lengths)]


# ------------------------------------------------------------------------ WavLM


def write_wavlm(golden, kind: str, out: pathlib.Path, changes=None) -> pathlib.Path:
    """A directory as transformers writes it, some arrays changed or (None) left out."""
    arrays = weights(golden, kind) | (changes or {})
    arrays = {key: value for key, value in arrays.items() if value is not None}
    safetensors.numpy.save_file(arrays, out / wavlm.FILE)
    for name, key in (("config", "config"), ("preprocessor_config", "processor")):
        (out / f"{name}.json").write_text(json.dumps(golden[1][f"{kind}/{key}"]))
    return out


@pytest.fixture(scope="module", params=["base", "large"])
def wavlm_case(request, golden, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    config, module = wavlm.load(write_wavlm(golden, request.param, out))
    waves, lengths, theirs = rows(golden, request.param)
    return request.param, config, lengths, states(wavlm, module, waves, lengths), theirs


def test_wavlm_is_that_of_transformers(wavlm_case):
    """Each row of a padded batch as transformers has it alone: all states."""
    kind, config, lengths, ours, theirs = wavlm_case
    assert ours[0].shape[1] == config.steps(max(lengths))
    for i, expected in enumerate(theirs):
        steps = config.steps(int(lengths[i]))
        assert expected.shape[:2] == (config.layers + 1, steps)
        for state, found in zip(expected, ours):
            found = found[i, :steps]
            parity.assert_close(f"WavLM {kind} states", found, state, CLOSE)


def test_wavlm_default_is_the_average_of_all_states(wavlm_case):
    *every, average = wavlm_case[3]
    np.testing.assert_allclose(average, np.mean(every, axis=0), atol=1e-5)


def test_wavlm_takes_both_names_of_weight_norm(golden, tmp_path):
    prefix = f"{wavlm.POSITION_CONV}."
    arrays, changes = weights(golden, "base"), {}
    for old, new in zip(*wavlm.WEIGHT_NORM):
        changes |= {prefix + new: None, prefix + old: arrays[prefix + new]}
    folders = [tmp_path / name for name in ("old", "new")]
    for folder, change in zip(folders, (changes, {})):
        folder.mkdir()
        write_wavlm(golden, "base", folder, change)
    old, new = (wavlm.load(folder)[1] for folder in folders)
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_wavlm_buckets_are_those_of_transformers(golden):
    theirs = golden[0]["buckets"]  # of distances -900 to 900
    length = len(theirs) // 2 + 1
    ours = wavlm.relative_buckets(length, 320, 800)
    np.testing.assert_array_equal(ours[0], theirs[length - 1 :])
    np.testing.assert_array_equal(ours[-1], theirs[:length])
    assert ours.max() == 319


def test_wavlm_refuses_what_it_is_not(golden, tmp_path):
    bad = {"encoder.layer_norm.weight": None, "lm_head.weight": np.ones(3, np.float32)}
    bad["feature_projection.projection.bias"] = np.ones(3, np.float32)
    write_wavlm(golden, "base", tmp_path, bad)
    with pytest.raises(ValueError, match="3 problems") as error:
        wavlm.load(tmp_path)
    for word in ("missing: encoder.layer_norm", "unexpected: lm_head", "mis-shaped"):
        assert word in str(error.value)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= dict(model_type="hubert", add_adapter=True)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="(?s)'hubert'.*add_adapter"):
        wavlm.load(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        wavlm.load(tmp_path)


# ---------------------------------------------------------------------- Whisper

CODES = {
    np.dtype(v): k for k, v in ctranslate2.DTYPES.items() if k != ctranslate2.BFLOAT16
}


def text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def ct2_bytes(
    arrays, spec="WhisperSpec", version=ctranslate2.VERSION, aliases=()
) -> bytes:
    """A model.bin."""
    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", CODES[array.dtype], array.nbytes) + array.tobytes()
    pairs = b"".join(text(alias) + text(name) for alias, name in aliases)
    return out + struct.pack("<I", len(aliases)) + pairs


def whisper_arrays(golden, dtype=np.float32) -> dict[str, np.ndarray]:
    """The golden weights by CTranslate2's names."""
    w, out = weights(golden, "whisper"), {}
    out["encoder/num_heads"] = np.int16(2)
    out["encoder/position_encodings/encodings"] = w["embed_positions.weight"]

    def put(name, key, kinds=("weight", "bias")):
        for kind, word in zip(kinds, ("weight", "bias")):
            out[f"encoder/{name}/{kind}"] = w[f"{key}.{word}"]

    norm = ("gamma", "beta")
    put("conv1", "conv1"), put("conv2", "conv2"), put("layer_norm", "layer_norm", norm)
    for i in range(2):
        ours, theirs = f"layer_{i}", f"layers.{i}"
        put(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm", norm)
        put(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
        put(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm", norm)
        put(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
        put(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
        parts = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
        joined = f"encoder/{ours}/self_attention/linear_0"
        out[f"{joined}/weight"] = np.concatenate([w[f"{p}.weight"] for p in parts])
        bias = [w.get(f"{p}.bias", np.zeros(16, np.float32)) for p in parts]
        out[f"{joined}/bias"] = np.concatenate(bias)
    scalar = {k: v for k, v in out.items() if not v.ndim}
    return {k: v.astype(dtype) for k, v in out.items()} | scalar


@pytest.fixture(scope="module")
def whisper_dir(golden, tmp_path_factory):
    out = tmp_path_factory.mktemp("whisper")
    others = {"decoder/embeddings/weight": np.ones((3, 2), np.int8)}
    aliases = [("decoder/projection/weight", "decoder/embeddings/weight")]
    data = ct2_bytes(whisper_arrays(golden) | others, aliases=aliases)
    (out / whisper.FILE).write_bytes(data)
    return out


@pytest.fixture(scope="module")
def whisper_case(golden, whisper_dir):
    config, module = whisper.load(whisper_dir)
    waves, lengths, theirs = rows(golden, "whisper")
    return config, module, states(whisper, module, waves, lengths), theirs


def test_whisper_is_that_of_transformers(whisper_case):
    config, _, ours, theirs = whisper_case
    assert config == whisper.Config(16, 2, 24, 2, 50)
    for i, expected in enumerate(theirs):
        assert len(expected) == config.layers + 1
        for state, found in zip(expected, ours):
            parity.assert_close("Whisper states", found[i], state, CLOSE)


def test_whisper_default_is_the_last_state_unscaled(whisper_case):
    _, module, (*_, last, plain), _ = whisper_case
    np.testing.assert_allclose(plain.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(plain.std(-1), 1, atol=1e-3)
    scale, bias = (np.asarray(p[...]) for p in (module.norm.scale, module.norm.bias))
    np.testing.assert_allclose(plain * scale + bias, last, atol=1e-5)


def test_whisper_mel_is_that_of_transformers(golden):
    waves, lengths, _ = rows(golden, "whisper")
    log_mel = functools.partial(features.log_mel, bins=80)
    ours = jax.jit(log_mel)(np.nan_to_num(waves))
    for mel, length in zip(ours, lengths):
        theirs = golden[0][f"whisper/mel{length}"]
        np.testing.assert_allclose(mel, theirs, atol=MEL_CLOSE)


def test_sinusoids_are_those_of_whisper(golden):
    theirs = weights(golden, "whisper")["embed_positions.weight"]
    np.testing.assert_allclose(encoder.sinusoids(*theirs.shape), theirs, atol=2e-5)


def test_whisper_refuses_lengths_and_layers(whisper_dir):
    _, module = whisper.load(whisper_dir)
    for samples in (0, 321, 51 * 320):
        with pytest.raises(ValueError, match=f"got {samples} samples"):
            whisper.hidden(module, np.zeros((1, samples), np.float32), np.int32([1]))
    for layer in (3, -1, True, "last"):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            targets.Teacher.open("whisper", whisper_dir, layer)


def test_a_bad_model_bin_is_named(golden, tmp_path):
    arrays = whisper_arrays(golden)
    whole = ct2_bytes(arrays)
    lost = {k: v for k, v in arrays.items() if "layer_1/ffn" not in k}
    gone = {k: v for k, v in arrays.items() if k != "encoder/num_heads"}
    scaled = arrays | {"encoder/conv1/weight_scale": np.ones(2, np.float32)}
    cases = {
        "is empty": b"",
        "got binary version 5, expected 6": ct2_bytes(arrays, version=5),
        "ends after 9 bytes": whole[:9],
        f"ends after {len(whole) // 2} bytes": whole[: len(whole) // 2],
        "3 bytes are left over": whole + b"abc",
        "stands for 'nothing'": ct2_bytes({}, aliases=[("a", "nothing")]),
        "unknown type 99": whole.replace(b"num_heads\0\0\2", b"num_heads\0\0\x63"),
        "has 2 bytes, expected 1": whole.replace(
            b"num_heads\0\0\2", b"num_heads\0\0\1"
        ),
        "got a TransformerSpec": ct2_bytes(arrays, spec="TransformerSpec"),
        "quantised": ct2_bytes(scaled),
        "missing: encoder/layer_1/ffn/linear_0/weight": ct2_bytes(lost),
        "lack 'encoder/num_heads'": ct2_bytes(gone),
    }
    for message, data in cases.items():
        (tmp_path / whisper.FILE).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            whisper.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="model.bin"):
        whisper.load(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_smaller_floats_are_widened(golden, tmp_path, monkeypatch, dtype):
    arrays = whisper_arrays(golden)
    name = "encoder/conv1/weight"
    exact = arrays[name]
    if dtype == "bfloat16":
        monkeypatch.setitem(CODES, np.dtype("<u2"), ctranslate2.BFLOAT16)
        arrays[name] = (exact.view(np.uint32) >> 16).astype(np.uint16)
    else:
        arrays = whisper_arrays(golden, dtype)
    (tmp_path / whisper.FILE).write_bytes(ct2_bytes(arrays))
    _, module = whisper.load(tmp_path)
    kernel = np.asarray(module.conv1.kernel[...]).transpose(2, 1, 0)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, exact, rtol=2**-7, atol=1e-6)


# --------------------------------------------------------------------- features


def by_hand(heard: list | None = None) -> targets.Teacher:
    """Its states are the loudness of each 20 ms, and the time in its window."""

    def run(wave, length):
        if heard is not None:
            heard.append((wave, length))
        steps = np.abs(wave.reshape(-1, 320)).mean(-1)
        return np.stack([steps, np.arange(len(steps)) / 100], axis=-1)[None]

    return targets.Teacher("by hand", 2, whisper.TAIL, run)


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 50_000])
def test_one_state_for_each_codec_frame(samples):
    states = by_hand()(noise(samples))
    assert states.shape == (-(-samples // 1920), 2)
    assert states.dtype == np.float16


def test_an_opened_teacher_runs(golden, tmp_path):
    """The pooled average of what `hidden` gives, where states come as released."""
    write_wavlm(golden, "base", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["conv_stride"] = [20, 4, 4]  # 320 samples a state
    (tmp_path / "config.json").write_text(json.dumps(values))
    teacher = targets.Teacher.open("wavlm", tmp_path, 0)
    wave = noise(20 * 1920)
    row = np.zeros((1, 32_000), np.float32)
    row[0, :25_600] = audio_io.resample(wave, 24_000, 16_000)
    _, module = wavlm.load(tmp_path)
    hidden = jax.jit(wavlm.hidden, static_argnames="layer")
    states = np.asarray(hidden(module, row, np.int32([25_680]), layer=0))[0, :80]
    np.testing.assert_allclose(teacher(wave), targets.pool(states), rtol=2e-3)


def test_frames_stand_where_the_sound_is():
    wave = np.zeros(40 * 1920, np.float32)
    wave[20 * 1920 + 480 : 20 * 1920 + 1440] = 0.5
    assert by_hand()(wave)[:, 0].argmax() == 20


def test_states_are_pooled_from_eight():
    steps = np.arange(16, dtype=np.float32)[:, None]
    pooled = targets.pool(steps)[:, 0]
    expected = [np.mean([0, 1, 2, 3, 4, 5]), np.mean(range(2, 10))]
    expected += [np.mean(range(6, 14)), np.mean(range(10, 16))]
    np.testing.assert_allclose(pooled, expected)


@pytest.mark.parametrize("frames", [1, 372, 373, 408, 672, 673, 5000])
def test_windows_cover_a_clip_once(frames):
    found = targets.windows(frames)
    used = []
    for start, stop, first, last in found:
        assert 0 <= start < stop <= frames and stop - start <= targets.WINDOW
        used += range(start * 4 + first, start * 4 + last)
        for end, cut in ((start, first), (stop, 4 * (stop - start) - last)):
            assert cut == (0 if end in (0, frames) else 4 * targets.EDGE)
    assert used == list(range(4 * frames))


def test_a_long_clip_is_heard_in_windows():
    """Nothing is lost or moved at a seam, and the time in the window starts anew."""
    wave = noise(700 * 1920)
    loud, time = by_hand()(wave).astype(np.float32).T
    steps = np.abs(audio_io.resample(wave, 24_000, 16_000).reshape(-1, 320)).mean(-1)
    np.testing.assert_allclose(loud, targets.pool(steps[:, None])[:, 0], rtol=1e-3)
    back = np.flatnonzero(np.diff(time) < 0)
    assert {5 * round(frame / 5) for frame in back} == {335, 635}


def test_padding_of_a_window():
    """It gets 1 s of silence and more up to a multiple of 2 s, 30 s at most."""
    assert targets.bucket(1) == 32_000 and targets.bucket(32_001) == 64_000
    assert targets.bucket(372 * 1280 + 80 + whisper.TAIL) == 480_000
    heard = []
    by_hand(heard)(noise(24_000))
    ((row, length),) = heard
    assert row.shape == (1, 64_000) and length == [13 * 1280 + 80]
    sound = audio_io.resample(noise(24_000), 24_000, 16_000)
    np.testing.assert_array_equal(row[0, :16_000], sound)
    assert not row[0, 16_000:].any()


def test_names_tell_teachers_apart(whisper_dir, golden, tmp_path):
    names = {targets.Teacher.open("wavlm", write_wavlm(golden, "large", tmp_path)).name}
    arrays = weights(golden, "large")
    name = "encoder.layer_norm.bias"
    write_wavlm(golden, "large", tmp_path, {name: arrays[name] + 1})
    names.add(targets.Teacher.open("wavlm", tmp_path).name)
    names |= {targets.Teacher.open("whisper", whisper_dir, i).name for i in (0, 1)}
    assert len(names) == 4
    plain = targets.Teacher.open("whisper", whisper_dir).name
    assert plain.startswith("whisper-16x2-plain-")


@pytest.mark.parametrize("wave", [[], [np.nan], [[0.0]]], ids=["none", "nan", "2d"])
def test_other_waves_are_refused(wave):
    with pytest.raises(ValueError, match="expected finite numbers"):
        by_hand()(np.float32(wave))


def test_states_beyond_float16_are_refused():
    teacher = targets.Teacher("loud", 1, 0, lambda wave, n: wave[:, ::320, None] + 1e6)
    with pytest.raises(ValueError, match="states of loud do not fit into float16"):
        teacher(noise(1920))


def test_other_teachers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'hubert', expected whisper or wavlm"):
        targets.Teacher.open("hubert", tmp_path)
