"""A 25Hz checkpoint as a user holds it: one codebook, and voices for the codec."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile

import infer
from qwen3tts_jax import Qwen3TTSModel, VoiceClonePromptItem
from qwen3tts_jax.checkpoints import hub, random_weights
from qwen3tts_jax.config import released, tiny
from qwen3tts_jax.config import tts as configs
from qwen3tts_jax.generation import generate, voice_clone
from qwen3tts_jax.training.lm import params

FRAMES, HOP, RATE = 5, 960, 16_000
SHORT = dict(max_new_tokens=FRAMES + 1, seed=3)


@pytest.fixture(scope="module")
def base(checkpoint):
    return Qwen3TTSModel.from_pretrained(checkpoint("base_25hz", "1.7B"))


@pytest.fixture(scope="module")
def custom(checkpoint):
    return Qwen3TTSModel.from_pretrained(checkpoint("custom_voice_25hz", "1.7B"))


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of a checkpoint to damage."""
    out = tmp_path / "broken"
    shutil.copytree(checkpoint("custom_voice_25hz", "1.7B"), out)
    return out


@pytest.fixture(scope="module")
def recording() -> tuple[np.ndarray, int]:
    """0.44 s, 11 codes."""
    t = np.arange(11 * 640) / RATE
    return (0.3 * np.sin(2 * np.pi * (300 - 200 * t) * t)).astype(np.float32), RATE


# ------------------------------------------------------------------------ it speaks


def test_base_clones(base, recording):
    """By x-vector and in context; one of a batch sounds as alone."""
    [only] = base.create_voice_clone_prompt(recording, x_vector_only_mode=True)
    [item] = base.create_voice_clone_prompt(recording, "One, two.")
    assert only.ref_code is None and item.ref_code.shape == (11,)
    assert item.decoder_voice.xvector.shape == (20,)
    assert item.decoder_voice.ref_mel.shape == (44, 80)
    waves, rate, codes = base.generate_voice_clone(
        ["Hello.", "Hi."], voice_clone_prompt=[item, only], return_codes=True, **SHORT
    )
    assert rate == 24000
    for wave, made in zip(waves, codes):
        assert made.shape == (FRAMES, 1) and made.dtype == np.int32
        assert 0 <= made.min() and made.max() < 512  # no id behind the codes
        assert wave.shape == (FRAMES * HOP,) and wave.dtype == np.float32
        assert wave.std() > 0.001
    [alone], _ = base.generate_voice_clone("Hello.", voice_clone_prompt=item, **SHORT)
    np.testing.assert_allclose(alone, waves[0], atol=1e-5)
    column = dataclasses.replace(item, ref_code=item.ref_code[:, None])
    [same], _ = base.generate_voice_clone("Hello.", voice_clone_prompt=column, **SHORT)
    np.testing.assert_array_equal(same, alone)


def test_the_codec_speaks_in_the_voice_that_it_is_given(base, custom, recording):
    """The same codes, another voice."""
    [item] = base.create_voice_clone_prompt(recording, "One, two.")
    codes = np.arange(7)
    waves = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        vector = rng.standard_normal(20).astype(np.float32)
        voice = voice_clone.DecoderVoice(vector, item.decoder_voice.ref_mel)
        other = dataclasses.replace(item, decoder_voice=voice)
        context = voice_clone.codec_state(other, base.speech_tokenizer)
        assert context is voice_clone.codec_state(other, base.speech_tokenizer)
        waves += base.speech_tokenizer.decode([codes], states=[context])[0]
    assert np.abs(waves[0] - waves[1]).max() > 1e-3
    assert sorted(custom.voices.decoder) == custom.get_supported_speakers()


def test_custom_voice(custom):
    call = dict(text="Hello there.", language="English", **SHORT)
    waves = {}
    for speaker in ("Ryan", "vivian"):
        [waves[speaker]], rate = custom.generate_custom_voice(speaker=speaker, **call)
        assert waves[speaker].shape == (FRAMES * HOP,)
    [again], _ = custom.generate_custom_voice(speaker="RYAN", **call)
    np.testing.assert_array_equal(again, waves["Ryan"])
    assert not np.array_equal(waves["Ryan"], waves["vivian"])
    for speaker in ("nobody", None):
        with pytest.raises(ValueError, match="speaker.*expected one of aiden"):
            custom.generate_custom_voice(speaker=speaker, **call)


def test_weights_of_one_byte(custom):
    lm = custom.language_model.quantized("int8")
    assert lm.is_quantized and lm.predictor is None


def test_the_guard_counts_seconds(base):
    assert base.config.frame_rate == 25.0
    assert generate.guard_frames(17, 25.0) == 2 * generate.guard_frames(17)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("variant", ["base_25hz", "custom_voice_25hz"])
def test_export_round_trip_is_exact(checkpoint, base, custom, tmp_path, variant):
    source = checkpoint(variant, "1.7B")
    tts = Qwen3TTSModel.from_pretrained(source, dtype="bfloat16")
    tts.save_pretrained(tmp_path / "out")
    names = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    made = tmp_path / "out"
    assert names == sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
    for name in names:
        if name.name == hub.VOICES:  # the order of its metadata is left to chance
            ours, theirs = (
                voice_clone.read_voices(d, tts.config) for d in (made, source)
            )
            for speaker, voice in theirs.decoder.items():
                for field in ("xvector", "ref_mel"):
                    again = getattr(ours.decoder[speaker], field)
                    np.testing.assert_array_equal(again, getattr(voice, field))
        else:
            assert (made / name).read_bytes() == (source / name).read_bytes(), name
    assert ("voices.safetensors" in map(str, names)) == variant.startswith("custom")


def test_configurations():
    for size, dim in (("0.6B", 1024), ("1.7B", 2048)):
        values = released.tts_config_25hz(size, "base")
        config = configs.Qwen3TTSConfig.from_hf(values)
        talker = config.talker
        assert config.code_predictor is None and config.single_codebook
        assert (talker.transformer.dim, talker.code_groups) == (dim, 1)
        assert (talker.vocab_size, talker.codec_eos_id) == (33792, 2150 + 30720)
        assert dict(talker.language_ids)["english"] == 2050 + 30720
    assert values["talker_config"]["position_id_per_seconds"] == 13
    values = tiny.tts_config_25hz("base")
    values["talker_config"]["num_code_groups"] = 16
    with pytest.raises(ValueError, match="num_code_groups: got 16, expected 1"):
        configs.Qwen3TTSConfig.from_hf(values)
    with pytest.raises(ValueError, match="tts_model_type: got 'voice_design'"):
        configs.Qwen3TTSConfig.from_hf(tiny.tts_config_25hz("voice_design"))
    with pytest.raises(ValueError, match="small at 25 Hz"):
        random_weights.tts_config("small", "base_25hz")
    config = configs.Qwen3TTSConfig.from_hf(tiny.tts_config_25hz("base"))
    with pytest.raises(ValueError, match="qwen3_tts_tokenizer_25hz.*not trained"):
        params.abstract(config)


def test_random_checkpoint_command(tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(
        random_weights, "write", lambda *args, **_: written.append(args)
    )
    for size in ("tiny", "0.6B"):
        arguments = ["", "--size", size, "--variant", "base_25hz", "--out", "x"]
        monkeypatch.setattr("sys.argv", arguments)
        random_weights.main()
        assert f"random {size} base_25hz" in capsys.readouterr().out
    (_, small, codec), (_, large, large_codec) = written
    assert small["tts_model_type"] == large["tts_model_type"] == "base"
    assert codec["model_type"] == large_codec["model_type"] == small["tokenizer_type"]
    assert codec["speaker_encoder_config"]["enc_dim"] == 20
    assert large_codec["speaker_encoder_config"]["enc_dim"] == 192


# ------------------------------------------------------------------------- mistakes


def test_voices_that_do_not_fit(broken):
    path = broken / hub.VOICES
    config = configs.Qwen3TTSConfig.from_hf(hub.read_json(broken / "config.json"))
    voices = voice_clone.read_voices(broken, config)
    fewer = {k: v for k, v in voices.decoder.items() if k != "ryan"}
    voice_clone.write_voices(broken, voice_clone.Voices(decoder=fewer))
    with pytest.raises(ValueError, match="no ryan/ref_mel, no ryan/xvector"):
        voice_clone.read_voices(broken, config)
    bad = dataclasses.replace(fewer["eric"], xvector=np.full(20, np.nan))
    everybody = voices.decoder | dict(eric=bad)
    voice_clone.write_voices(broken, voice_clone.Voices(decoder=everybody))
    with pytest.raises(ValueError, match="NaN in eric/xvector"):
        voice_clone.read_voices(broken, config)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        voice_clone.read_voices(broken, config)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="voices.safetensors is missing.*25Hz"):
        Qwen3TTSModel.from_pretrained(broken)


def test_the_codec_of_another_frame_rate(checkpoint, broken):
    shutil.rmtree(broken / "speech_tokenizer")
    other = checkpoint("base", "1.7B") / "speech_tokenizer"
    shutil.copytree(other, broken / "speech_tokenizer")
    with pytest.raises(ValueError, match="tokenizer_12hz.*expected.*tokenizer_25hz"):
        Qwen3TTSModel.from_pretrained(broken)


def test_a_voice_without_its_sound(base):
    item = VoiceClonePromptItem(None, np.zeros(64, np.float32), True, False)
    with pytest.raises(ValueError, match="decoder_voice"):
        base.generate_voice_clone("Hi.", voice_clone_prompt=item, **SHORT)


# ------------------------------------------------------------------------- infer.py


def speak(capsys, *arguments) -> dict:
    infer.main([str(a) for a in (*arguments, "--max_frames", 19, "--seed", 3)])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_infer_speaks(checkpoint, recording, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("voice.wav", recording[0], RATE)
    text = ("--text", "Hello there.")
    clone = ("--model", checkpoint("base_25hz", "1.7B"), "--ref_audio", "voice.wav")
    custom = ("--model", checkpoint("custom_voice_25hz", "1.7B"), "--speaker", "ryan")
    clone = (*clone, "--ref_text", "One, two.", "--stream", "--codes_out", "codes.npy")
    last = speak(capsys, *text, *clone)
    assert last["model"] == "25Hz 1.7B Base" and last["frames"] == 19
    assert last["audio_seconds"] == pytest.approx(19 * 0.04)
    assert 0 < last["first_sound_seconds"] <= last["wall_seconds"]
    assert np.load("codes.npy").shape == (19, 1)
    streamed, rate = soundfile.read("out.wav")
    assert rate == 24000 and len(streamed) == 19 * HOP and streamed.std() > 0
    last = speak(capsys, *text, *custom)
    assert last["model"] == "25Hz 1.7B CustomVoice"
    assert len(soundfile.read("out.wav")[0]) == last["frames"] * HOP


def test_infer_refuses(broken, capsys, monkeypatch):
    def load(*_, **__):
        raise AssertionError("the weights were loaded before the error was found")

    monkeypatch.setattr(Qwen3TTSModel, "from_pretrained", load)
    asked = ["--model", str(broken), "--text", "Hello.", "--speaker"]
    with pytest.raises(SystemExit) as stop:
        infer.main([*asked, "nobody"])
    assert stop.value.code == 2 and "speaker 'nobody'" in capsys.readouterr().err
    (broken / hub.VOICES).unlink()
    with pytest.raises(SystemExit) as stop:
        infer.main([*asked, "ryan"])
    assert stop.value.code == 2 and "is missing" in capsys.readouterr().err
