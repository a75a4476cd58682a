"""What a user holds: official names and results, and one clear error per mistake."""

import base64
import io
import types

import numpy as np
import pytest
import soundfile

from qwen3tts_jax import Qwen3TTSModel, VoiceClonePromptItem
from qwen3tts_jax.audio import io as audio_io

SHORT = dict(max_new_tokens=4, seed=3)  # three frames
RECORDING = "tests/recordings/allison_en.flac"
TRANSCRIPT = (
    "Your call is now first in line and will be answered by the next available "
    "representative."
)


@pytest.fixture(scope="module")
def base(checkpoint):
    return Qwen3TTSModel.from_pretrained(checkpoint("base"))


@pytest.fixture(scope="module")
def custom(checkpoint):
    return Qwen3TTSModel.from_pretrained(checkpoint("custom_voice", "1.7B"))


@pytest.fixture(scope="module")
def recording(request):
    return str(request.config.rootpath / RECORDING)


# ----------------------------------------------------------------- what it returns


def test_custom_voice_returns_waves_rate_and_codes(custom):
    call = dict(text="Hello there.", speaker="Ryan", language="English")
    waves, rate, codes = custom.generate_custom_voice(
        **call, **SHORT, return_codes=True
    )
    again, rate_again = custom.generate_custom_voice(**call, **SHORT)
    other, _ = custom.generate_custom_voice(**call, max_new_tokens=4, seed=4)
    assert rate == rate_again == 24000
    assert waves[0].dtype == np.float32 and waves[0].shape == (3 * 1920,)
    assert codes[0].dtype == np.int32 and codes[0].shape == (3, 16)
    assert (waves[0] == again[0]).all() and not (waves[0] == other[0]).all()


def test_clone_cuts_the_reference_off(base, recording):
    kwargs = dict(ref_audio=recording, ref_text=TRANSCRIPT, **SHORT)
    waves, _, codes = base.generate_voice_clone("Hello.", **kwargs, return_codes=True)
    assert waves[0].shape == (3 * 1920,) and len(codes[0]) == 3
    [item] = base.create_voice_clone_prompt(recording, TRANSCRIPT)
    whole, _ = base.speech_tokenizer.decode([np.concatenate([item.ref_code, codes[0]])])
    after = whole[0][len(item.ref_code) * 1920 :]
    # decoded in chunks of other lengths: float32 sums in another order
    np.testing.assert_allclose(waves[0], after, atol=1e-5)


def test_voice_clone_prompt_as_item_list_and_official_dict(base, recording):
    items = base.create_voice_clone_prompt(recording, TRANSCRIPT)
    assert items[0].icl_mode and not items[0].x_vector_only_mode
    assert items[0].ref_code.shape == (68, 16)  # ceil(5.362 s * 12.5)
    as_dict = dict(
        ref_code=[items[0].ref_code],
        ref_spk_embedding=[items[0].ref_spk_embedding],
        x_vector_only_mode=[False],
        icl_mode=[True],
        ref_text=[TRANSCRIPT],
    )
    results = [
        base.generate_voice_clone("Hello.", voice_clone_prompt=voice, **SHORT)[0][0]
        for voice in (items, items[0], as_dict)
    ]
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()
    without_text = {k: v for k, v in as_dict.items() if k != "ref_text"}
    with pytest.raises(ValueError, match="ref_text"):
        base.generate_voice_clone("Hello.", voice_clone_prompt=without_text, **SHORT)


def test_supported_names(custom, base):
    assert "ryan" in custom.get_supported_speakers()
    assert custom.get_supported_languages()[:2] == ["auto", "chinese"]
    assert "beijing_dialect" not in custom.get_supported_languages()
    assert base.get_supported_speakers() == []


def test_instruct_changes_the_voice_at_1_7b(custom):
    call = dict(text="Hello there.", speaker="Ryan", **SHORT)
    plain, _ = custom.generate_custom_voice(**call)
    told, _ = custom.generate_custom_voice(**call, instruct="Slowly.")
    assert not (plain[0] == told[0]).all()


@pytest.mark.parametrize(
    "dtype", ["bfloat16", types.SimpleNamespace(__name__="x.bfloat16")]
)
def test_dtype_by_name_or_object(checkpoint, dtype):
    path = checkpoint("base")
    model = Qwen3TTSModel.from_pretrained(path, dtype=dtype, device_map="cpu")
    assert model.language_model.talker.codec_head.kernel[...].dtype == "bfloat16"
    assert model.speech_tokenizer.decoder.pre_conv.kernel[...].dtype == "float32"


# ------------------------------------------------------------------ reference audio


def test_reference_forms_agree(base, recording, tmp_path):
    wave, rate = audio_io.read(recording)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="WAV", subtype="FLOAT")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    forms = [
        recording,
        (wave, rate),
        (np.stack([wave, wave], axis=1), rate),
        encoded,
        f"data:audio/wav;base64,{encoded}",
    ]
    items = [base.create_voice_clone_prompt(f, TRANSCRIPT)[0] for f in forms]
    for item in items[1:]:
        np.testing.assert_array_equal(item.ref_code, items[0].ref_code)
        np.testing.assert_array_equal(
            item.ref_spk_embedding, items[0].ref_spk_embedding
        )


def test_8_khz_stereo_is_converted(base):
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, (8000, 2))
    [item] = base.create_voice_clone_prompt((wave, 8000), "one second")
    assert item.ref_code.shape == (13, 16)  # 24000 / 1920 = 12.5 frames


BAD_REFERENCES = [
    ((np.zeros(0, np.float32), 24000), "0 samples"),
    ((np.zeros(int(3 * 3600 * 100), np.float32), 100), "10800"),
    ((np.array([0.1, np.nan] * 2000), 24000), "(?i)nan"),
    ((np.zeros(1000, np.float32), 24000), "1000 samples"),
    (np.zeros(24000, np.float32), r"\(array, rate\)"),
    ("no/such/file.wav", "no/such/file.wav"),
    ("ftp://example.com/a.wav", "ftp"),
]


@pytest.mark.parametrize("reference, message", BAD_REFERENCES)
def test_bad_reference_is_one_clear_error(base, reference, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        base.create_voice_clone_prompt(reference, x_vector_only_mode=True)


# --------------------------------------------------------------------------- errors


def test_unknown_option_is_an_error(custom):
    with pytest.raises(TypeError, match="temprature.*temperature"):
        custom.generate_custom_voice("Hello.", "ryan", temprature=0.5)


BAD_CUSTOM = [
    (dict(text="", speaker="ryan"), "at least one word"),
    (dict(text=" \n\t ", speaker="ryan"), "at least one word"),
    (dict(text=[], speaker="ryan"), "at least one"),
    (dict(text="Hi.", speaker="nobody"), "'nobody'.*aiden.*vivian"),
    (dict(text="Hi.", speaker="ryan", language="Klingon"), "'Klingon'.*auto.*russian"),
    (dict(text="Hi.", speaker="ryan", language="beijing_dialect"), "expected one of"),
    (dict(text=["Hi.", "Ho.", "Hu."], speaker=["ryan", "eric"]), "2 of speaker"),
    (dict(text="Hi.", speaker="ryan", top_p=0.0), "top_p=0.0"),
    (dict(text="Hi.", speaker="ryan", temperature=-1.0), "temperature=-1.0"),
    (dict(text="Hi.", speaker="ryan", max_new_tokens=1), "max_new_tokens=1"),
    (dict(text="Hi.", speaker="ryan", max_new_tokens=40000), "32768|positions"),
]


@pytest.mark.parametrize("call, message", BAD_CUSTOM)
def test_bad_request_is_one_clear_error(custom, call, message):
    with pytest.raises(ValueError, match=message):
        custom.generate_custom_voice(**call)


def test_wrong_variant_says_what_this_one_can(custom, base):
    with pytest.raises(ValueError, match="custom_voice.*generate_custom_voice"):
        custom.generate_voice_clone("Hi.", ref_audio="x.wav")
    with pytest.raises(ValueError, match="base.*generate_voice_clone"):
        base.generate_voice_design("Hi.", instruct="a low voice")


def test_clone_without_a_voice_or_a_text(base, recording):
    with pytest.raises(ValueError, match="voice_clone_prompt or ref_audio"):
        base.generate_voice_clone("Hi.")
    with pytest.raises(ValueError, match="ref_text.*x_vector_only_mode"):
        base.generate_voice_clone("Hi.", ref_audio=recording)
    item = VoiceClonePromptItem(None, np.zeros(64, np.float32), False, True, "text")
    with pytest.raises(ValueError, match="ref_code"):
        base.generate_voice_clone("Hi.", voice_clone_prompt=[item])


def test_loading_errors(checkpoint, tmp_path):
    path = checkpoint("base")
    with pytest.raises(ValueError, match="int8.*bfloat16"):
        Qwen3TTSModel.from_pretrained(path, dtype="int8")
    with pytest.raises(ValueError, match="'cuda:7'.*cpu:0"):
        Qwen3TTSModel.from_pretrained(path, device_map="cuda:7")
    with pytest.raises(ValueError, match="'magic'.*sdpa"):
        Qwen3TTSModel.from_pretrained(path, attn_implementation="magic")
    with pytest.raises(FileNotFoundError, match="config.json"):
        Qwen3TTSModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="hub id"):
        Qwen3TTSModel.from_pretrained(tmp_path / "nothing" / "here" / "at all")


def test_export_is_whole_or_absent(base, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        base.save_pretrained(tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="make it first"):
        base.save_pretrained(tmp_path / "no" / "parent")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(base.speech_tokenizer, "_save", fail)
    with pytest.raises(OSError, match="disk full"):
        base.save_pretrained(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
