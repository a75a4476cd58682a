"""The command line of codec training: begun, stopped, gone on with, exported."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import soundfile
from PIL import Image

from configs import build_codec, codec
from data import waves
from data.preparation import sources
from qwen3tts_jax import sharding, speech_tokenizer
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.config import tiny
from qwen3tts_jax.training import checkpointing as checkpoint
from qwen3tts_jax.training import metrics_writer as log
from qwen3tts_jax.training import trainer

ROOT = pathlib.Path(__file__).parents[1]
STEPS, SAVE_EVERY = 4, 2
TINY = {
    "rows": 2,
    "frames": 4,
    "heard": 3,
    "optimizer.steps": STEPS,
    "optimizer.warmup": 1,
    "discriminator_optimizer.steps": STEPS,
    "discriminator_optimizer.warmup": 1,
    "discriminators.periods": (3,),
    "discriminators.period_channels": (2, 2),
    "discriminators.stft_ffts": (64,),
    "discriminators.stft_channels": 2,
    "data.held_out_batches": 1,
    "samples": 1,
    "log_every": 1,
    "save_every": SAVE_EVERY,
    "keep_last": 9,
}
LIMIT = 300  # seconds


class Teacher:
    """Says of each frame how loud it is."""

    name, dim = "loudness", 3

    def __call__(self, wave):
        frames = -(-len(wave) // waves.FRAME)
        padded = np.pad(wave, (0, frames * waves.FRAME - len(wave)))
        level = np.abs(padded.reshape(frames, -1)).mean(axis=1)
        return np.repeat(level[:, None], self.dim, axis=1).astype(np.float16)


class Command:
    """train.py with what its runs have in common."""

    def __init__(self, programs: pathlib.Path, folder: pathlib.Path):
        self.programs = programs
        self.fields = TINY | {"data.waves": str(folder)}
        self.fields |= {"data.held_out": str(folder)}

    def run(self, workdir, *more: str, stage="gan", code=0, **fields) -> str:
        """What it said.  fields: of the configuration, with __ for a dot."""
        fields = self.fields | {k.replace("__", "."): v for k, v in fields.items()}
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "train.py"),
                f"--config={ROOT}/configs/codec.py:stage={stage},size=tiny",
                *(f"--config.{name}={value}" for name, value in fields.items()),
                f"--workdir={workdir}",
                *more,
            ],
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said[-4000:]
        return said

    def state(self, workdir, step=None):
        config = codec.get_config("stage=gan,size=tiny")
        config.update_from_flattened_dict(self.fields)
        recipe = build_codec.recipe(config, sharding.make_mesh())
        found = checkpoint.Checkpoints(workdir / build_codec.CHECKPOINTS)
        state, data, _ = trainer.read_state(found, recipe, step)
        return state.replace(key=jax.random.key_data(state.key)), data


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("codec"), np.random.default_rng(0)
    lines = []
    for i in range(3):
        time = np.arange(24_000 + 4_800 * i) / 24_000
        wave = 0.2 * np.sin(2 * np.pi * (150 + 80 * i) * time) * rng.uniform(0.5, 1)
        soundfile.write(folder / f"{i}.wav", wave, 24_000)
        lines.append(json.dumps(dict(audio=f"{i}.wav", text="a b")))
    (folder / "m.jsonl").write_text("\n".join(lines))
    found = sources.open_source(sources.Spec("manifest", str(folder / "m.jsonl")))
    waves.make(found, folder / "waves", teacher=Teacher(), say=lambda line: None)
    return Command(folder / "programs", folder / "waves")


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """(directory of an uninterrupted run, what it said)."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, command.run(workdir)


@pytest.fixture(scope="module")
def exported(command, whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "codec"
    assert f"step {STEPS}" in command.run(whole[0], f"--export={out}")
    return out


def measured(workdir) -> list[dict]:
    """Figures that do not depend on the time."""
    times = ("second", "mfu", "data_wait", "goodput")
    return [
        {k: v for k, v in line.items() if not any(t in k for t in times)}
        for line in log.read(workdir)
    ]


def test_a_run_says_how_both_sides_learn(whole):
    workdir, said = whole
    assert f"step {STEPS}/{STEPS}" in said and "perplexity" in said
    lines = [line for line in measured(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for name in ("mel", "adversarial", "feature", "commitment", "semantic"):
        assert all(np.isfinite(line[name]) for line in lines), name
    assert len(lines[-1]["usage"]) == len(lines[-1]["perplexity"]) == 16
    held = [line for line in measured(workdir) if "held_out/mel" in line]
    assert [line["step"] for line in held] == [2, 4]


def test_samples_are_written_as_sound_and_picture(whole):
    for step in (2, 4):
        folder = whole[0] / build_codec.SAMPLES / f"step-{step:07d}"
        [sound], [picture] = folder.glob("*.wav"), folder.glob("*.png")
        wave, rate = soundfile.read(sound)
        frames = build_codec.SAMPLE_FRAMES
        assert rate == 24_000 and len(wave) == frames * waves.FRAME
        width, height = Image.open(picture).size
        assert width > height > 256  # two spectrograms, one under the other


def test_going_on_is_as_if_it_had_not_stopped(command, whole, tmp_path):
    for part in (build_codec.CHECKPOINTS, "log.jsonl"):
        source = whole[0] / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    shutil.rmtree(tmp_path / build_codec.CHECKPOINTS / str(STEPS))
    assert f"going on after step {SAVE_EVERY}" in command.run(tmp_path)
    assert measured(tmp_path) == measured(whole[0])
    (one, told), (two, also) = (command.state(w) for w in (whole[0], tmp_path))
    assert int(one.step) == STEPS and told["position"] == also["position"]
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.array_equal(a, b)


def test_an_export_is_a_speech_tokenizer(exported):
    files = {path.name for path in exported.iterdir()}
    assert {"config.json", "preprocessor_config.json", "model.safetensors"} <= files
    codec_ = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(exported)
    wave = np.sin(np.arange(24_000) / 20).astype(np.float32) * 0.1
    codes = codec_.encode(wave, sr=24_000)
    [made], rate = codec_.decode(codes)
    assert rate == 24_000 and len(made) == 13 * waves.FRAME
    assert np.isfinite(made).all() and made.any()


def test_the_decoder_alone_is_trained_further(command, exported, tmp_path):
    fields = dict(model__source=str(exported), data__teacher=False, data__held_out="")
    said = command.run(tmp_path, stage="decoder", **fields)
    assert f"took the weights of {exported}" in said
    out = tmp_path / "codec"
    command.run(tmp_path, f"--export={out}", stage="decoder", **fields)
    before, after = (
        speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(p) for p in (exported, out)
    )
    assert before.fingerprint == after.fingerprint
    kernels = [c.decoder.wave_conv.kernel[...] for c in (before, after)]
    assert (kernels[0] != kernels[1]).any()


# -------------------------------------------------------------------------- pieces


def params(workdir: pathlib.Path) -> dict:
    """Path -> array of a run's last checkpoint."""
    found = checkpoint.Checkpoints(workdir / build_codec.CHECKPOINTS)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return found.restore_saved(trainer.PARAMS, place)[0]


@pytest.fixture(scope="module")
def pieces(command, tmp_path_factory):
    """(a function that runs a stage from earlier ones, folder of all of them)."""
    out = tmp_path_factory.mktemp("pieces")
    layout = tiny.tokenizer_config()
    layout["decoder_config"] |= dict(
        decoder_dim=16, upsampling_ratios=[2, 2, 2, 15], upsample_rates=[16]
    )
    hub.write_json(out / "config.json", layout)

    def run(stage: str, *more: str, code=0, **earlier) -> str:
        fields = {f"model__{k}": str(out / v) for k, v in earlier.items()}
        fields |= dict(model__source=str(out), data__teacher=False)
        return command.run(out / stage, *more, stage=stage, code=code, **fields)

    run("mel")
    run("vocoder")
    run("join", hand_over="mel", decoder="vocoder")
    return run, out


def test_a_joined_codec_begins_with_both_halves(pieces):
    run, out = pieces
    slow, fast, joined = (params(out / name) for name in ("mel", "vocoder", "join"))
    assert set(slow) == set(fast) == set(joined)
    for path, value in joined.items():
        if path.startswith(("encoder.", "scaffold.encoder.")):  # is not trained further
            assert np.array_equal(value, slow[path]), path
    first = out / "join" / build_codec.SAMPLES
    assert sorted(p.name for p in first.iterdir()) == ["step-0000002", "step-0000004"]


def test_an_encoder_is_distilled_and_the_whole_exported(pieces, tmp_path):
    run, out = pieces
    said = run("encoder", hand_over="mel", decoder="join")
    assert said.count("took the parameters of step 4") == 2 and "distillation" in said
    before, after = params(out / "join"), params(out / "encoder")
    moved = {p for p in before if not np.array_equal(before[p], after[p])}
    assert moved and all(
        p.startswith("encoder.") and "quantizer" not in p for p in moved
    )
    half = "--config.model.export_dtype=bfloat16"
    run("encoder", f"--export={tmp_path / 'codec'}", half, hand_over="mel")
    tensors = safetensors.numpy.load_file(tmp_path / "codec" / "model.safetensors")
    kinds = {name.rpartition(".")[2]: str(x.dtype) for name, x in tensors.items()}
    assert kinds["bias"] == "bfloat16" and kinds["embedding_sum"] == "float32"
    codec_ = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(tmp_path / "codec")
    [made], _ = codec_.decode(codec_.encode(np.zeros(24_000, np.float32), sr=24_000))
    assert np.isfinite(made).all()


@pytest.mark.parametrize(
    "earlier, says",
    [
        ({}, "got stage join without --config.model.hand_over"),
        (dict(hand_over="mel"), "got stage join without --config.model.decoder"),
        (dict(hand_over="mel", decoder="none"), "which has no checkpoint"),
    ],
)
def test_a_join_without_its_halves_is_refused(pieces, earlier, says):
    run, out = pieces
    if (out / "again").exists():
        shutil.rmtree(out / "again")
    said = run("join", f"--workdir={out / 'again'}", code=1, **earlier)
    assert says in said and "Traceback" not in said


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(data__waves=""), "got no --config.data.waves"),
        (dict(heard=9), "got heard 9, expected at most frames = 4"),
        (dict(rows=0), "config.rows 0, expected 1 or more"),
        (dict(model__start="weights"), "without --config.model.source"),
    ],
)
def test_bad_fields_are_told_in_one_line(command, tmp_path, fields, says):
    said = command.run(tmp_path / "run", code=1, **fields)
    assert says in said and "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_compiling_ahead_is_for_language_models(command, tmp_path):
    flags = ("--compile_only", "--topology=v5e:2x2")
    assert "--compile_only of a codec" in command.run(tmp_path, *flags, code=1)
