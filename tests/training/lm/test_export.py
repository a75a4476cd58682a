"""An export is an official checkpoint: bit-exact, whole, with the new voices in it."""

import dataclasses
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy

from qwen3tts_jax import Qwen3TTSModel
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.checkpoints import weights as weight_files
from qwen3tts_jax.config import released, tts
from qwen3tts_jax.training.lm import export, initialization, lora, train_step
from qwen3tts_jax.training.lm import params as parts

SHORT = dict(max_new_tokens=4, seed=3)  # three frames
TABLE = "talker.model.codec_embedding.weight"


def read(path) -> tuple[dict, tts.Qwen3TTSConfig]:
    found = hub.read_json(path / "config.json")
    return found, tts.Qwen3TTSConfig.from_hf(found)


def trained(path) -> parts.Parts:
    return initialization.from_official(path, read(path)[1])


def weights(path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path / weight_files.WEIGHTS)


def voices(count: int = 2) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {
        f"Voice {i}": draw.normal(0, 1, 64).astype(np.float32) for i in range(count)
    }


@pytest.fixture(scope="module")
def base(checkpoint):
    return checkpoint("base")


@pytest.fixture(scope="module")
def custom_voice(base, tmp_path_factory):
    """A fine-tuned Base checkpoint, exported with two voices."""
    out = tmp_path_factory.mktemp("export") / "voices"
    config, _ = read(base)
    export.export(out, trained(base), config, base, speakers=voices())
    return out


def without_names(path) -> Qwen3TTSModel:
    """Without its tables of names, which prompts take from the whole configuration, a
    talker's programs serve all models of its size: that saves compilation."""
    model = Qwen3TTSModel.from_pretrained(path)
    talker = model.language_model.talker
    tables = dict(language_ids=(), speaker_ids=(), speaker_dialects=())
    talker.config = dataclasses.replace(talker.config, **tables)
    return model


# ------------------------------------------------------------------ without voices


@pytest.mark.parametrize("variant", tts.VARIANTS)
def test_unchanged_weights_are_bit_exact(checkpoint, tmp_path, variant):
    """Through float32 and stacked layers, back to the source's bfloat16."""
    size = "1.7B" if variant == "voice_design" else "0.6B"
    source = checkpoint(variant, size)
    config, _ = read(source)
    export.export(tmp_path / "out", trained(source), config, source)
    before, after = weights(source), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype == jnp.bfloat16
        np.testing.assert_array_equal(tensor, after[key], key)
    files = [
        {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
        for path in (source, tmp_path / "out")
    ]
    assert files[0] == files[1] and "preprocessor_config.json" in files[0]
    for name in files[0] - {weight_files.WEIGHTS}:
        same = (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        assert same or hub.read_json(source / name) == hub.read_json(
            tmp_path / "out" / name
        )


def test_float32_keeps_what_training_has_made(base, tmp_path):
    config, _ = read(base)
    made = jax.tree.map(lambda x: x + 1e-5, trained(base))
    export.export(tmp_path / "out", made, config, base, dtype=None)
    again = trained(tmp_path / "out")
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_source_stays_free_to_change(base, tmp_path, checkpoint):
    """Nothing in an export is a link into its source."""
    config, _ = read(base)
    export.export(tmp_path / "out", trained(base), config, base)
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink() and (path.is_dir() or path.stat().st_nlink == 1)


def test_missing_side_files_are_written(base, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    for name in export.DEFAULTS:
        (source / name).unlink()
    config, _ = read(source)
    export.export(tmp_path / "out", trained(source), config, source)
    found = hub.read_json(tmp_path / "out" / "generation_config.json")
    assert found == released.GENERATION_CONFIG
    found = hub.read_json(tmp_path / "out" / "preprocessor_config.json")
    assert found == released.PREPROCESSOR_CONFIG


# --------------------------------------------------------------------- with voices


def test_voices_are_rows_from_3000_on(base, custom_voice):
    config, _ = read(custom_voice)
    talker = config["talker_config"]
    assert talker["spk_id"] == {"voice_0": 3000, "voice_1": 3001}
    assert talker["spk_is_dialect"] == {"voice_0": False, "voice_1": False}
    assert config["tts_model_type"] == "custom_voice"
    assert "speaker_encoder_config" not in config
    before, after = weights(base), weights(custom_voice)
    assert after.keys() == {k for k in before if not k.startswith("speaker_encoder.")}
    for row, vector in zip((3000, 3001), voices().values()):
        np.testing.assert_array_equal(after[TABLE][row], vector.astype(jnp.bfloat16))
    others = np.delete(np.arange(3072), (3000, 3001))
    np.testing.assert_array_equal(after[TABLE][others], before[TABLE][others])
    for key in after.keys() - {TABLE}:
        np.testing.assert_array_equal(after[key], before[key], key)


def test_an_exported_voice_is_the_cloned_voice(base, custom_voice, tmp_path):
    """Frame for frame what Base says when it is given the vector itself."""
    config, _ = read(base)
    exact = tmp_path / "float32"
    export.export(
        exact, trained(base), config, base, speakers=voices(), dtype=jnp.float32
    )
    speaking, cloning = without_names(exact), without_names(base)
    assert speaking.get_supported_speakers() == ["voice_0", "voice_1"]
    said = dict(text="Hello there.", language="English", **SHORT)
    said |= dict(non_streaming_mode=True, return_codes=True)
    waves, rate, codes = speaking.generate_custom_voice(speaker="Voice_1", **said)
    assert rate == 24000 and waves[0].shape == (3 * 1920,)
    item = dict(
        ref_code=[None],
        ref_spk_embedding=[voices()["Voice 1"]],
        x_vector_only_mode=[True],
        icl_mode=[False],
    )
    cloned, _, expected = cloning.generate_voice_clone(voice_clone_prompt=item, **said)
    np.testing.assert_array_equal(codes[0], expected[0])
    np.testing.assert_array_equal(waves[0], cloned[0])
    other = speaking.generate_custom_voice(speaker="voice_0", **said)[2]
    assert not np.array_equal(codes[0], other[0])
    with pytest.raises(ValueError, match="'voice_2'"):
        speaking.generate_custom_voice(speaker="voice_2", **said)


def test_new_voices_join_those_of_a_custom_voice_model(checkpoint, tmp_path):
    """Rows that are taken (3010, 3061, 3065, 3066) are left out."""
    source = checkpoint("custom_voice")
    config, _ = read(source)
    made = export.with_speakers(config, [f"v{i}" for i in range(68)])
    ids = made["talker_config"]["spk_id"]
    assert len(ids) == len(set(ids.values())) == 9 + 68
    assert {n: ids[n] for n in released.SPEAKERS} == released.SPEAKERS
    new = {i for n, i in ids.items() if n not in released.SPEAKERS}
    assert new == set(range(3000, 3072)) - {3010, 3061, 3065, 3066}
    assert made["talker_config"]["spk_is_dialect"]["eric"] == "sichuan_dialect"
    assert config["talker_config"]["spk_id"] == released.SPEAKERS  # left as it was
    assert tts.Qwen3TTSConfig.from_hf(made).variant == "custom_voice"


def test_names_in_any_script(base):
    config, _ = read(base)
    made = export.with_speakers(config, ["Zoë", "小明", "a/b c"])["talker_config"]
    assert list(made["spk_id"]) == ["zoë", "小明", "a_b_c"]


def test_adapters_are_merged(base, tmp_path):
    """What is exported is the model that training has seen."""
    config, _ = read(base)
    before = trained(base)
    params = train_step.flatten(before)
    settings = lora.LoRA(2, 4.0, (r"mlp\.up\.kernel$",))
    adapters = settings.init(params, jax.random.key(0))
    adapters = {name: x + 0.05 for name, x in adapters.items()}
    merged = settings.merge(params, adapters)
    made = jax.tree.unflatten(jax.tree.structure(before), list(merged.values()))
    export.export(tmp_path / "out", made, config, base, dtype=jnp.float32)
    old, new = weights(base), weights(tmp_path / "out")
    path = "talker.transformer.layers.mlp.up.kernel"
    a, b = (np.asarray(adapters[path + end]) for end in (lora.A, lora.B))
    for key, tensor in new.items():
        expected = old[key].astype(np.float32)
        if "mlp.up_proj" in key and "code_predictor" not in key:
            layer = int(key.split("layers.")[1].split(".")[0])
            expected = expected + 2.0 * (a[layer] @ b[layer]).T
            np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)
        elif "mlp.up_proj" not in key:
            np.testing.assert_array_equal(tensor, expected, key)


# -------------------------------------------------------------------------- errors


BAD_VOICES = [
    ({"Ryan": 64}, "got speakers ryan, expected names"),
    ({"A b": 64, "a_b": 64}, "got speakers a_b, expected names.*each once"),
    ({"": 64}, "expected names of letters"),
    ({"!?": 64}, "expected names of letters"),
    ({f"v{i}": 64 for i in range(69)}, "got 69 speakers, expected at most 68"),
    ({"new": 32}, r"shape \(32,\), expected \(64,\)"),
]


@pytest.mark.parametrize("widths, message", BAD_VOICES)
def test_a_bad_voice_is_an_error_and_writes_nothing(
    checkpoint, tmp_path, widths, message
):
    source = checkpoint("custom_voice")
    config, _ = read(source)
    bad = {name: np.zeros(width, np.float32) for name, width in widths.items()}
    with pytest.raises(ValueError, match=message):
        export.export(tmp_path / "out", trained(source), config, source, speakers=bad)
    assert not list(tmp_path.iterdir())


def test_a_voice_that_is_no_number_is_an_error(base, tmp_path):
    config, _ = read(base)
    bad = dict(voice=np.full(64, np.nan))
    with pytest.raises(ValueError, match="finite numbers; make it with the speaker"):
        export.export(tmp_path / "out", trained(base), config, base, speakers=bad)


def test_a_source_without_a_codec_is_an_error(base, tmp_path):
    config, _ = read(base)
    with pytest.raises(FileNotFoundError, match="speech_tokenizer is missing; give"):
        export.export(tmp_path / "out", trained(base), config, tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    config, _ = read(base)
    with pytest.raises(FileExistsError, match="give another name"):
        export.export(tmp_path / "out", trained(base), config, base)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


# ------------------------------------------------------------- the official package


RUN_VOICE = """
import sys

sys.path.insert(0, sys.argv[1])
import numpy as np
import official
import qwen_tts
import torch

model = qwen_tts.Qwen3TTSModel.from_pretrained(sys.argv[2], dtype=torch.float32)
print(model.get_supported_speakers())
torch.manual_seed(0)
waves, rate = model.generate_custom_voice(
    text="Hello there.", language="English", speaker="voice_1", max_new_tokens=6,
    do_sample=False, subtalker_dosample=False)
np.savez(sys.argv[3], wave=waves[0], rate=rate)
"""


@pytest.mark.oracle
def test_the_official_package_speaks_with_an_exported_voice(custom_voice, tmp_path):
    """Greedy, so that both choose the same frames: one wave."""
    python, out = parity.official_python(), tmp_path / "out.npz"
    arguments = [str(p) for p in (parity.GOLDEN, custom_voice, out)]
    done = subprocess.run(
        [python, "-c", RUN_VOICE, *arguments], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-4000:]
    assert "['voice_0', 'voice_1']" in done.stdout
    theirs = np.load(out)
    ours = Qwen3TTSModel.from_pretrained(custom_voice, dtype="float32")
    (wave,), rate = ours.generate_custom_voice(
        "Hello there.",
        "voice_1",
        "English",
        max_new_tokens=6,
        do_sample=False,
        subtalker_dosample=False,
    )
    assert rate == theirs["rate"] and len(wave) == 5 * 1920
    parity.assert_close("wave", wave, theirs["wave"], parity.WAVE_CLOSE)
