"""The command line of training: runs that are killed, moved and told wrong things.

Its runs share one uninterrupted run of few steps on one device, and compiled programs.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import corpora
import jax
import numpy as np
import pytest

from configs import build, pretrain
from qwen3tts_jax import sharding, speech_tokenizer
from qwen3tts_jax.training import checkpointing, metrics_writer, trainer

ROOT = pathlib.Path(__file__).parents[1]
STEPS, SAVE_EVERY = 6, 2
NAME = "stage=s1,size=tiny"
TINY = {
    "model.start": "weights",  # to make random ones is half of what is compiled
    "length": 64,
    "rows": 8,
    # most of a tiny model; frozen, a step takes half the time
    "optimizer.freeze": (r"^talker\.text_embedding\.", r"^speaker_encoder\."),
    "optimizer.steps": STEPS,
    "optimizer.warmup": 1,
    "log_every": 1,
    "save_every": SAVE_EVERY,
    "keep_last": 9,
    "data.voice_from": "x_vector",
}
TIMES = (
    "seconds_per_step",
    "positions_per_second",
    "frames_per_second",
    "mfu",
    "data_wait",
    "goodput",
)
LIMIT = 300  # seconds; a run takes about ten


class Command:
    """train.py with what its runs have in common."""

    def __init__(self, programs: pathlib.Path, source, corpus):
        self.programs = programs
        self.fields = TINY | {"model.source": str(source), "data.corpus": str(corpus)}

    def start(self, workdir, *more: str, devices: int = 1, **fields):
        """The process.  fields: of the configuration, with __ for a dot."""
        fields = self.fields | {k.replace("__", "."): v for k, v in fields.items()}
        flags = (
            f"{os.environ['XLA_FLAGS']} "
            f"--xla_force_host_platform_device_count={devices}"
        )
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(self.programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if devices > 1:
            # XLA's CPU collectives wait for one another, each in its thread; without
            # this there are as many threads as cores
            env["NPROC"] = "32"
        return subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "train.py"),
                f"--config={ROOT}/configs/pretrain.py:{NAME}",
                *(f"--config.{name}={value}" for name, value in fields.items()),
                f"--workdir={workdir}",
                *more,
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *args, **fields) -> str:
        """What a run that must succeed said."""
        return said(self.start(*args, **fields))

    def config(self, name: str = NAME, **fields):
        """The same configuration, in this process."""
        config = pretrain.get_config(name)
        fields = self.fields | {k.replace("__", "."): v for k, v in fields.items()}
        config.update_from_flattened_dict(fields)
        return config


def said(process, *, code: int = 0) -> str:
    out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == code, out[-4000:]
    return out


@pytest.fixture(scope="module")
def command(tmp_path_factory, checkpoint, tokenizer):
    source, out = checkpoint("base"), tmp_path_factory.mktemp("train")
    codec = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(
        source / build.SPEECH_TOKENIZER
    ).fingerprint
    corpora.write(out / "corpus", tokenizer, codec=codec)
    return Command(out / "programs", source, out / "corpus")


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """(directory of an uninterrupted run, what it said)."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, command.run(workdir)


def lines(workdir) -> dict[int, dict]:
    """Step -> line; each step has one."""
    found = metrics_writer.read(workdir)
    steps = [line["step"] for line in found]
    assert steps == sorted(set(steps))
    return dict(zip(steps, found))


def measured(workdir) -> dict[int, dict]:
    """Step -> figures that do not depend on the time."""
    return {
        step: {name: value for name, value in line.items() if name not in TIMES}
        for step, line in lines(workdir).items()
    }


def last_state(command, workdir):
    config = command.config()
    recipe = build.recipe(config, sharding.make_mesh())
    found = checkpointing.Checkpoints(workdir / build.CHECKPOINTS)
    state, data, step = trainer.read_state(found, recipe)
    return state.replace(key=jax.random.key_data(state.key)), data, step


@pytest.fixture(scope="module")
def final(command, whole):
    """(state, data, step) of the uninterrupted run."""
    return last_state(command, whole[0])


def steps_saved(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / build.CHECKPOINTS).iterdir())


def copy_until(step: int, whole, workdir) -> None:
    """A run as it was after `step`."""
    (workdir / build.CHECKPOINTS).mkdir(parents=True)
    for saved in (whole / build.CHECKPOINTS).iterdir():
        if int(saved.name) <= step:
            shutil.copytree(saved, workdir / build.CHECKPOINTS / saved.name)
    shutil.copy(whole / metrics_writer.FILE, workdir)


# ------------------------------------------------------------------- an ordinary run


def test_a_run_learns_saves_and_says_so(whole):
    workdir, out = whole
    found = lines(workdir)
    assert list(found) == list(range(1, STEPS + 1))
    assert found[STEPS]["loss"] < found[1]["loss"]
    for line in list(found.values())[1:]:
        assert all(line[name] is not None for name in TIMES)
    assert f"step {STEPS}/{STEPS}: loss" in out
    assert steps_saved(workdir) == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))


# -------------------------------------------------------- other devices and processes


def free_port() -> int:
    with socket.socket() as any_:
        any_.bind(("127.0.0.1", 0))
        return any_.getsockname()[1]


def wait_for(workdir, step: int, process) -> None:
    """Until a run has written the line of a step."""
    began = time.monotonic()
    path = workdir / metrics_writer.FILE
    while time.monotonic() - began < LIMIT:
        text = path.read_text() if path.exists() else ""
        done = [json.loads(line)["step"] for line in text.splitlines(True)[:-1]]
        if done and done[-1] >= step:
            return
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {LIMIT} s")


@pytest.fixture(scope="module")
def moved(command, whole, tmp_path_factory):
    """Runs that go on after step 2 elsewhere, side by side: what they said, and where.

    eight: on 8 simulated devices, batches made by a worker process.  two: on 2
    processes, which are told to stop when they have done a step.  killed: on one device
    from the beginning, killed and started again.
    """
    folder = tmp_path_factory.mktemp("moved")
    places = {name: folder / name for name in ("eight", "two", "killed")}
    copy_until(2, whole[0], places["eight"])
    copy_until(2, whole[0], places["two"])
    at = random.randint(1, STEPS - 2)  # any: it must hold for each
    killed = command.start(places["killed"])
    eight = command.start(places["eight"], devices=8, data__workers=1)
    flags = "--processes=2", f"--coordinator=127.0.0.1:{free_port()}"
    two = [command.start(places["two"], *flags, f"--process={i}") for i in range(2)]
    wait_for(places["killed"], at, killed)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    before = places["killed"] / metrics_writer.FILE
    kept = before.read_text()
    killed = command.start(places["killed"])
    wait_for(places["two"], 3, two[0])
    two[0].send_signal(signal.SIGTERM)
    out = dict(eight=said(eight), killed=said(killed), two=[said(p) for p in two])
    return places, out, (at, kept)


def test_killed_at_any_step_a_run_goes_on_bit_for_bit(command, whole, final, moved):
    places, out, (at, kept) = moved
    assert f'"step": {at}' in kept, "it was killed too early"
    assert f'"step": {STEPS}' not in kept, "it was killed too late"
    assert measured(places["killed"]) == measured(whole[0]), out["killed"]
    one, other = last_state(command, places["killed"]), final
    assert one[2] == other[2] == STEPS
    assert one[1]["position"] == other[1]["position"]
    assert jax.tree.structure(one[0]) == jax.tree.structure(other[0])
    for x, y in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0])):
        np.testing.assert_array_equal(x, y)


def assert_goes_on_like(whole, workdir, last: int) -> None:
    found, expected = measured(workdir), measured(whole[0])
    assert list(found) == list(range(1, last + 1))
    assert {s: found[s] for s in (1, 2)} == {s: expected[s] for s in (1, 2)}
    for step in range(3, last + 1):
        for name in ("loss", "cross_entropy"):
            np.testing.assert_allclose(
                found[step][name], expected[step][name], rtol=1e-5, atol=1e-5
            )
        # the same examples: these depend on nothing else
        for name in ("positions", "pairs", "frames"):
            assert found[step][name] == expected[step][name]


def test_on_eight_devices_a_run_goes_on_alike(command, whole, final, moved):
    places, out, _ = moved
    assert "going on after step 2" in out["eight"]
    assert_goes_on_like(whole, places["eight"], STEPS)
    # and back on one device
    state, _, step = last_state(command, places["eight"])
    assert step == STEPS
    for path, value in final[0].params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=1e-3, atol=1e-4)


def test_two_processes_go_on_and_one_sigterm_stops_both(whole, moved):
    places, out, _ = moved
    step = steps_saved(places["two"])[-1]
    assert 3 <= step <= STEPS
    assert_goes_on_like(whole, places["two"], step)
    assert "going on after step 2" in out["two"][0]
    assert "step 3/" not in out["two"][1]  # one process speaks
    if step < STEPS:
        assert f"told to stop: saved step {step}" in out["two"][0]


# -------------------------------------------------------------------- what is handed on


@pytest.mark.parametrize("take", ["params", "all"])
def test_the_next_stage_takes_over(command, whole, final, take, tmp_path):
    config = command.config(
        "stage=s2,size=tiny", model__hand_over=str(whole[0]), model__take=take
    )
    recipe = build.recipe(config, sharding.make_mesh())
    notes = []
    run = trainer.Trainer(
        recipe,
        build.schedule(config),
        workdir=tmp_path,
        checkpoints=checkpointing.Checkpoints(tmp_path / build.CHECKPOINTS),
        position={},
        meter=None,
        say=notes.append,
    )
    earlier = final[0]
    state = build.begin(config, run)
    assert f"of step {STEPS} of {whole[0]}" in notes[0]
    assert int(state.step) == 0  # its schedule begins
    assert state.params.keys() == earlier.params.keys()
    for path, value in earlier.params.items():
        np.testing.assert_array_equal(state.params[path], value, err_msg=path)
    moments = [jax.tree.leaves(s.optimizer) for s in (state, earlier)]
    same = [np.array_equal(x, y) for x, y in zip(*moments, strict=True)]
    assert all(same) if take == "all" else not any(same)


# ----------------------------------------------------------------------- looked at only


def test_a_dry_run_shows_what_would_be_done_and_does_nothing(command, tmp_path):
    out = command.run(tmp_path / "run", "--dry_run", data__voice="none")
    assert not (tmp_path / "run").exists()
    for words in (
        f"stage s1, {STEPS} steps",
        "mesh {'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1} of cpu",
        "trained\n",
        "GiB a device",
        "positions a step: 512",
        "corpus: 120 utterances",
        "example 1: ",
        "<|im_start|>assistant",
        "learned frames",
    ):
        assert words in out, out


def files(folder) -> dict:
    """Path -> time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


SLIPS = (
    (dict(optimizer__peek=1), "no field .* 'peek'. Did you mean \"peak\" instead .*"),
    (dict(modle__source="x"), "no field of the configuration is 'modle'.*"),
    (
        dict(save_every=0, compute__dtype="floot32"),
        "got config.compute.dtype 'floot32', expected bfloat16 or float32; "
        "config.save_every 0, expected 1 or more",
    ),
)


def test_a_slip_in_the_configuration_is_one_line(command, whole):
    """The run that was there before is left alone."""
    before = files(whole[0])
    started = [command.start(whole[0], **fields) for fields, _ in SLIPS]
    for process, (_, expected) in zip(started, SLIPS):
        out = said(process, code=1)
        assert re.fullmatch(f"train.py: {expected}\n", out), out
    assert files(whole[0]) == before
