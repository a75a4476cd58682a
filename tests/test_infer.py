"""infer.py from its arguments to the files: what it writes, and what it refuses."""

import functools
import io
import json
import os
import pathlib
import signal
import sys
import types
import wave

import jax
import numpy as np
import pytest
import soundfile
from jax.experimental.compilation_cache import compilation_cache

import infer
from qwen3tts_jax import model, runtime
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.checkpoints import hub

ROOT = pathlib.Path(infer.__file__).parent
FRAMES = 4
LAST_KEYS = {
    *("frames", "audio_seconds", "wall_seconds", "rtf", "stop_reason"),
    *("seed", "model", "out"),
}


CACHE_DIR = "jax_compilation_cache_dir"


@pytest.fixture(scope="module", autouse=True)
def cache_home(tmp_path_factory):
    """The user's cache, moved: it also keeps these tests from compiling twice."""
    home = tmp_path_factory.mktemp("cache")
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        yield home
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Each checkpoint is loaded once for all tests."""
    load = functools.cache(model.Qwen3TTSModel.from_pretrained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.Qwen3TTSModel, "from_pretrained", load)
        yield


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> str:
    """0.3 s of a falling tone, 4 frames: enough for a model that knows nothing."""
    path = tmp_path_factory.mktemp("recording") / "voice.flac"
    t = np.arange(4800) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (300 - 200 * t) * t), 16_000)
    return str(path)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*arguments) in an empty folder -> (last line of stdout as JSON, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[dict, str]:
        infer.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        return json.loads(printed.out.splitlines()[-1]), printed.err

    return run


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """refused(*arguments) -> the error line; weights are out of its reach."""
    monkeypatch.chdir(tmp_path)

    def load(*_, **__):
        raise AssertionError("the weights were loaded before the error was found")

    monkeypatch.setattr(model.Qwen3TTSModel, "from_pretrained", load)

    def refused(*arguments) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            infer.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("infer.py: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return refused


@pytest.fixture
def clone(checkpoint, recording):
    """Arguments that clone the recording."""
    return [
        *("--model", checkpoint("base"), "--text", "Hello there."),
        *("--ref_audio", recording, "--ref_text", "Oh."),
    ]


@pytest.fixture
def custom(checkpoint):
    """Arguments that speak with a voice of CustomVoice."""
    return [
        *("--model", checkpoint("custom_voice"), "--text", "Hello there."),
        *("--speaker", "Ryan"),
    ]


def short(*arguments) -> list:
    return [*arguments, "--max_frames", FRAMES, "--seed", 3]


# ------------------------------------------------------------------ it speaks


def check_output(last: dict, path: pathlib.Path, name: str) -> None:
    """The last line of stdout tells the truth about the WAV file."""
    assert set(last) == LAST_KEYS
    with wave.open(str(path)) as file:
        assert file.getframerate() == audio_io.SAMPLE_RATE
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert file.getnframes() == last["frames"] * 1920
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert samples.std() > 0
    assert 1 <= last["frames"] <= FRAMES
    assert last["audio_seconds"] == pytest.approx(last["frames"] * 0.08)
    assert last["rtf"] == pytest.approx(
        last["wall_seconds"] / last["audio_seconds"], abs=0.01
    )
    at_most = "max_frames" if last["frames"] == FRAMES else "eos"
    assert (last["stop_reason"], last["model"]) == (at_most, name)
    assert (last["seed"], last["out"]) == (3, str(path))


def test_base_clones_in_context(run, clone, tmp_path, cache_home):
    last, progress = run(*short(*clone, "--codes_out", "codes"))
    check_output(last, pathlib.Path("out.wav"), "0.6B Base")
    codes = np.load(tmp_path / "codes")
    assert (codes.dtype, codes.shape) == (np.int32, (last["frames"], 16))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes", "out.wav"]
    assert "loading 0.6B Base" in progress
    assert "reference analysed" in progress
    assert f"{last['frames']} frames, 0.3 s, RTF" in progress
    assert jax.config.jax_compilation_cache_dir == f"{cache_home}/qwen3tts_jax/xla"
    assert list((cache_home / "qwen3tts_jax" / "xla").iterdir())


def test_base_clones_by_x_vector(run, clone, tmp_path):
    without_text = clone[:-2]
    last, _ = run(*short(*without_text, "--x_vector_only", "--out", "x.wav"))
    check_output(last, pathlib.Path("x.wav"), "0.6B Base")


def test_custom_voice_repeats_with_its_seed(run, custom, tmp_path):
    out = [tmp_path / f"{i}.wav" for i in range(3)]
    codes = [tmp_path / f"{i}.npy" for i in range(3)]
    for i in range(2):
        last, _ = run(*short(*custom, "--out", out[i], "--codes_out", codes[i]))
        check_output(last, out[i], "0.6B CustomVoice")
    # a later --seed takes the place of the first
    other = short(*custom, "--out", out[2], "--codes_out", codes[2])
    run(*other, "--seed", 4)
    first, second, third = (path.read_bytes() for path in out)
    assert first == second != third
    first, second, third = (path.read_bytes() for path in codes)
    assert first == second != third


def test_voice_design_needs_no_instruction(run, checkpoint, tmp_path):
    (tmp_path / "text").write_text("\ufeffHello there.\n", "utf-8")
    design = ["--model", checkpoint("voice_design"), "--text_file", "text"]
    out = pathlib.Path("out.wav")
    last, _ = run(*short(*design))
    check_output(last, out, "0.6B VoiceDesign")
    plain = out.read_bytes()
    run(*short(*design, "--instruct", "A deep, calm voice.", "--language", "English"))
    assert out.read_bytes() != plain  # and an existing file is replaced


def test_a_seed_is_drawn_and_told(run, custom):
    first, _ = run(*custom, "--max_frames", 1)
    second, _ = run(*custom, "--max_frames", 1)
    assert first["seed"] != second["seed"]
    assert first["frames"] == 1


# ------------------------------------------------------------ what it hands over


@pytest.fixture
def spoken(monkeypatch):
    """What `speak` was called with; it returns silence."""
    calls = []

    def speak(self, utterances, **options):
        calls.append(dict(options, utterances=utterances))
        codes = np.zeros((2, 16), np.int32)
        return [model.Speech(np.zeros(3840, np.float32), codes, "guard")]

    monkeypatch.setattr(model.Qwen3TTSModel, "speak", speak)
    return calls


def chosen(call: dict) -> dict:
    return {
        name: value
        for name, value in call.items()
        if name not in ("utterances", "on_progress") and value is not None
    }


def test_sampling_flags_serve_both_heads(run, custom, spoken):
    last, _ = run(
        *(*custom, "--temperature", 0.7, "--top_k", 9, "--top_p", 0.5),
        *("--repetition_penalty", 1.2, "--seed", 5),
    )
    both = dict(temperature=0.7, top_k=9, top_p=0.5)
    assert chosen(spoken[0]) == dict(
        both,
        **{f"subtalker_{name}": value for name, value in both.items()},
        repetition_penalty=1.2,
        seed=5,
    )
    assert last["stop_reason"] == "guard"


def test_greedy_and_max_frames(run, custom, spoken):
    run(*custom, "--greedy", "--max_frames", 1, "--seed", 0)
    assert chosen(spoken[0]) == dict(
        do_sample=False, subtalker_dosample=False, max_new_tokens=2, seed=0
    )


def test_the_larger_custom_voice_takes_an_instruction(run, checkpoint, spoken):
    large = ["--model", checkpoint("custom_voice", "1.7B"), "--text", "Hello."]
    last, _ = run(*large, "--speaker", "ryan", "--instruct", "Whisper.")
    assert last["model"] == "1.7B CustomVoice"
    run(*large, "--speaker", "ryan")
    with_it, without = (len(c["utterances"][0].prompt.text) for c in spoken)
    assert with_it > without


def test_stream_writes_the_offline_wave(run, custom, clone, tmp_path):
    for arguments in (custom, clone):
        last, progress = run(*short(*arguments, "--stream", "--codes_out", "a.npy"))
        assert set(last) == LAST_KEYS | {"first_sound_seconds"}
        assert 0 < last["first_sound_seconds"] <= last["wall_seconds"]
        assert "1 frames, 0.1 s" in progress
        streamed, rate = soundfile.read("out.wav", dtype="int16")
        offline, _ = run(*short(*arguments, "--codes_out", "b.npy"))
        whole, _ = soundfile.read("out.wav", dtype="int16")
        assert (
            rate == audio_io.SAMPLE_RATE
            and offline["stop_reason"] == last["stop_reason"]
        )
        np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
        # 1e-5 of a float sample is 0.3 of a 16-bit one
        np.testing.assert_allclose(streamed.astype(int), whole.astype(int), atol=1)


def test_raw_samples_go_to_standard_output(run, custom, monkeypatch, capsys):
    """Sound alone on stdout, the JSON line on stderr; with and without --stream."""
    run(*short(*custom))
    expected, _ = soundfile.read("out.wav", dtype="int16")
    for more in ([], ["--stream"]):
        pipe = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(buffer=pipe))
        infer.main([str(a) for a in short(*custom, "--out", "-", *more)])
        samples = np.frombuffer(pipe.getvalue(), "<i2")
        np.testing.assert_allclose(samples.astype(int), expected.astype(int), atol=1)
        last = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert last["out"] == "-" and last["frames"] * 1920 == len(samples)


def test_weights_of_one_byte(run, custom):
    last, _ = run(*short(*custom, "--weights", "int8"))
    assert last["frames"] == FRAMES


def test_dtype(run, custom, spoken, monkeypatch):
    load, dtypes = model.Qwen3TTSModel.from_pretrained, []

    def note(path, *, dtype, weights):
        dtypes.append(dtype)
        return load(path, dtype=None, weights=weights)

    monkeypatch.setattr(model.Qwen3TTSModel, "from_pretrained", note)
    run(*custom)
    run(*custom, "--dtype", "bfloat16")
    assert dtypes == [None, "bfloat16"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_compilation_cache_dir", "elsewhere"),
        ("jax_enable_compilation_cache", False),
    ],
)
def test_what_the_user_says_of_the_cache_holds(name, value, monkeypatch):
    """Both are read from the environment by jax itself."""
    before = {key: getattr(jax.config, key) for key in (name, CACHE_DIR)}
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")
    try:
        jax.config.update(CACHE_DIR, None)
        jax.config.update(name, value)
        expected = jax.config.jax_compilation_cache_dir
        runtime.keep_programs()
        assert jax.config.jax_compilation_cache_dir == expected
    finally:
        for key, was in before.items():
            jax.config.update(key, was)
        compilation_cache.reset_cache()


# ------------------------------------------------------------------ it refuses


def test_without_a_model_it_explains_how_to_get_one(refused, monkeypatch, tmp_path):
    """In a package without a checkpoint of its own."""
    monkeypatch.setattr(hub, "FAMILY", tmp_path / "nothing")
    said = refused("--text", "Hello.")
    assert said.startswith("infer.py: error: got no --model, expected ")
    for part in (
        "--model Qwen/Qwen3-TTS-12Hz-0.6B-Base",
        "hf download",
        "python -m qwen3tts_jax.checkpoints.random_weights --size 0.6B",
        "--variant base --out DIR",
        "python infer.py --model DIR",
        "--ref_audio tests/recordings/allison_en.flac",
        "Your call is now first in line",
    ):
        assert part in said


def test_its_example_is_the_shipped_recording():
    notes = (ROOT / "tests" / "recordings" / "README.md").read_text("utf-8")
    quoted = infer.__doc__.split('--ref_text "')[1].split('"')[0]
    assert f"`{quoted}`" in notes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/place"], ["'no/such/place'", "checkpoint directory"]),
        (["--text", ""], ["''", "--text"]),
        (["--text", " \t\n"], ["''", "--text_file"]),
        (["--text_file", "x"], ["--text_file", "not allowed with", "--text"]),
        (["--language", "Klingon"], ["'Klingon'", "auto, chinese, english"]),
        (["--language", "beijing_dialect"], ["'beijing_dialect'", "expected one of"]),
        (["--speaker", "Klaus"], ["'Klaus'", "aiden, dylan, eric"]),
        (["--speaker", ""], ["give --speaker", "aiden, dylan, eric"]),
        (["--ref_audio", "a.wav"], ["--ref_audio", "0.6B CustomVoice", "only Base"]),
        (["--ref_text", "Oh."], ["--ref_text", "0.6B CustomVoice", "only Base"]),
        (["--x_vector_only"], ["--x_vector_only", "0.6B CustomVoice", "only Base"]),
        (
            ["--instruct", "Whisper."],
            ["--instruct", "0.6B CustomVoice", "only VoiceDesign or 1.7B CustomVoice"],
        ),
        (["--out", "no/out.wav"], ["'no/out.wav'", "folder"]),
        (["--out", "."], ["'.'", "expected a file"]),
        (["--codes_out", "no/codes.npy"], ["'no/codes.npy'", "folder"]),
        (["--seed", "-1"], ["--seed -1", "0 to 2**32-1"]),
        (["--seed", "4294967296"], ["--seed 4294967296", "0 to 2**32-1"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--max_frames", "0"], ["--max_frames 0", "expected 1+"]),
        (["--max_frames", "-7"], ["--max_frames -7", "expected 1+"]),
        (["--temperature", "0"], ["--temperature 0", "--greedy"]),
        (["--temperature", "-1"], ["temperature=-1.0", "more than 0"]),
        (["--temperature", "nan"], ["temperature=nan", "a finite float"]),
        (["--top_k", "-2"], ["top_k=-2", "0 (no limit) or more"]),
        (["--top_p", "1.5"], ["top_p=1.5", "(0, 1]"]),
        (["--repetition_penalty", "0"], ["repetition_penalty=0.0", "more than 0"]),
        (
            ["--greedy", "--top_p", "0.9", "--temperature", "1"],
            ["--greedy", "--temperature", "--top_p", "drop one"],
        ),
        (["--codes_out", "out.wav"], ["'out.wav' twice", "its own file"]),
        (["--weights", "int4"], ["--weights", "'int4'"]),
        (["--dtype", "int8"], ["--dtype", "'int8'", "'float32', 'bfloat16'"]),
        (["--speed", "2"], ["unrecognized arguments: --speed 2"]),
    ],
)
def test_custom_voice_refuses(refused, custom, arguments, words):
    line = refused(*custom, *arguments)
    assert line.count("\n") == 1
    for word in words:
        assert word in line


def test_speakers_are_listed_when_none_is_given(refused, custom):
    line = refused(*custom[:-2])
    assert "--speaker" in line
    assert "aiden, dylan, eric, ono_anna, ryan" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--speaker", "ryan"], ["speaker and ref_audio", "drop one"]),
        (["--instruct", "Whisper."], ["--instruct", "0.6B Base", "only VoiceDesign"]),
        (["--ref_audio", "no.wav"], ["'no.wav'", "expected a file that exists"]),
        (["--ref_audio", ""], ["no ref_audio", "no voices of its own"]),
        (["--ref_text", " "], ["no ref_text", "x_vector_only"]),
    ],
)
def test_base_refuses(refused, clone, change, words):
    line = refused(*clone, *change)
    for word in words:
        assert word in line


def test_voice_design_refuses_a_speaker(refused, checkpoint):
    line = refused(
        *("--model", checkpoint("voice_design"), "--text", "Hi."),
        *("--speaker", "ryan"),
    )
    assert "--speaker" in line
    assert "only CustomVoice" in line


def test_text_files(refused, custom, tmp_path):
    def refused_file(name: str) -> str:
        return refused(*custom[:2], *custom[4:], "--text_file", name)

    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    assert "'missing.txt'" in refused_file("missing.txt")
    assert "directory: '.'" in refused_file(".")
    assert "give some" in refused_file("blank.txt")
    line = refused_file("latin.txt")
    assert "'latin.txt'" in line
    assert "UTF-8" in line
    assert "got text None" in refused(*custom[:2], *custom[4:])


def test_a_damaged_checkpoint_is_one_line(refused, custom, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"tts_model_type": "base"}')
    line = refused("--model", "damaged", *custom[2:])
    assert line.count("\n") == 1
    assert "talker_config: missing" in line
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refused("--model", "empty", *custom[2:])


# ------------------------------------------------------------------ it is stopped


def stopped(arguments, monkeypatch, capsys, place, name, error) -> tuple[int, str]:
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(place, name, stop)
    with pytest.raises(SystemExit) as end:
        infer.main([str(a) for a in arguments])
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "name"), [(model.Qwen3TTSModel, "speak"), (np, "save"), (os, "replace")]
)
def test_an_interrupt_leaves_nothing(
    custom, spoken, tmp_path, monkeypatch, capsys, place, name
):
    monkeypatch.chdir(tmp_path)
    arguments = [*custom, "--codes_out", "codes.npy"]
    code, message = stopped(
        arguments, monkeypatch, capsys, place, name, KeyboardInterrupt
    )
    assert code == 128 + signal.SIGINT
    assert message.endswith("infer.py: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(custom, spoken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    full = OSError("no space left on device")
    code, message = stopped(custom, monkeypatch, capsys, os, "replace", full)
    assert code == 2
    assert message.endswith("infer.py: error: no space left on device\n")
    assert not list(tmp_path.iterdir())
