"""The loop: its order, what stops it, what a stopped one leaves, what it says."""

import dataclasses
import errno
import os
import resource
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3tts_jax import sharding
from qwen3tts_jax.training import checkpointing, metrics_writer, throughput, trainer
from qwen3tts_jax.training.lm import train_step

STEPS = 6
POSITION = dict(stage="s1", plan="abc")
SPEEDS = ("seconds_per_step", "positions_per_second", "mfu", "data_wait", "goodput")
SIZE = 50_000  # float32 of a state: 200 kB, which do not shrink


@dataclasses.dataclass(frozen=True)
class Toy:
    """A recipe that compiles in no time; its loss is the batch's mean, so that a batch
    can be what stops it."""

    mesh: jax.sharding.Mesh

    checked = ("loss", "gradient_norm")

    def line(self, values) -> str:
        return f"codebook 0 {values['cross_entropy'][0]:.4f}"

    def init(self, params, key) -> train_step.TrainState:
        return train_step.TrainState(jnp.int32(0), params, {}, (), {}, key)

    @property
    def whole(self) -> jax.NamedSharding:
        return jax.NamedSharding(self.mesh, jax.P())

    def shardings(self) -> train_step.TrainState:
        return jax.tree.map(lambda x: self.whole, self.abstract())

    def abstract(self) -> train_step.TrainState:
        shapes = jax.eval_shape(self.init, params(), jax.random.key(0))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.whole),
            shapes,
        )

    def batch_shardings(self, batch) -> dict:
        return {name: sharding.of_batch(self.mesh, x.ndim) for name, x in batch.items()}

    def step(self, state, batch):
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (SIZE,))
        loss = jnp.mean(batch["x"]) + state.params["w"].mean()
        moved = state.params["w"] + 0.1 * loss + noise
        metrics = self.score(state, batch) | dict(
            gradient_norm=loss,
            learning_rate=jnp.float32(1e-3),
            positions=jnp.float32(batch["x"].size),
            frames=jnp.float32(batch["x"].size / 2),
        )
        return state.replace(step=state.step + 1, params={"w": moved}), metrics

    def score(self, state, batch):
        loss = jnp.mean(batch["x"]) + state.params["w"].mean()
        return dict(loss=loss, cross_entropy=jnp.arange(16.0) + loss)

    def compiled(self):
        return jax.jit(self.step, out_shardings=(self.shardings(), self.whole))


def params() -> dict:
    return {"w": jax.random.normal(jax.random.key(1), (SIZE,))}


@pytest.fixture(scope="module")
def toy():
    return Toy(sharding.make_mesh())


def batch(number: int) -> dict:
    return {"x": np.full((2, 8), number, np.float32)}


def batches(first: int, *, at: int = 0, do=None):
    """From batch `first` on; before step `at` has its batch, `do()` is called."""
    for number in range(first, STEPS):
        yield (do and number + 1 == at and do()) or batch(number)


class Run:
    """A run in a directory: go() goes on where the one before stopped."""

    def __init__(self, recipe, workdir, **schedule):
        self.recipe, self.workdir, self.said = recipe, workdir, []
        settings = dict(steps=STEPS, log_every=1, save_every=2) | schedule
        self.schedule = trainer.Schedule(**settings)
        self.position = POSITION

    def opened(self) -> checkpointing.Checkpoints:
        return checkpointing.Checkpoints(
            self.workdir / "checkpoints", keep_last=9, keep_best=1
        )

    def trainer(self, checkpoints=None) -> trainer.Trainer:
        return trainer.Trainer(
            self.recipe,
            self.schedule,
            workdir=self.workdir,
            checkpoints=checkpoints or self.opened(),
            position=self.position,
            meter=throughput.Meter(flops=lambda figures: 100.0, peak=1e6),
            say=self.said.append,
        )

    def go(self, *, held_out=None, **stops) -> train_step.TrainState:
        made = self.trainer()
        state = made.resume() or made.fresh(params(), jax.random.key(3))
        state = made.run(state, batches(int(state.step), **stops), held_out)
        made.checkpoints.close()
        return state

    def saved(self) -> list[int]:
        """Steps on the disk; nothing that is not whole."""
        names = [path.name for path in (self.workdir / "checkpoints").iterdir()]
        return sorted(map(int, names))

    def lines(self) -> list[dict]:
        return metrics_writer.read(self.workdir)


def losses(run: Run) -> list[tuple]:
    return [(line["step"], line["loss"]) for line in run.lines()]


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """An uninterrupted run, and its last state."""
    run = Run(toy, tmp_path_factory.mktemp("whole"))
    return run, run.go()


@pytest.fixture
def run(toy, tmp_path):
    return Run(toy, tmp_path / "run")


def assert_like_whole(run, state, whole):
    np.testing.assert_array_equal(state.params["w"], whole[1].params["w"])
    assert int(state.step) == STEPS
    assert losses(run) == losses(whole[0])
    found = trainer.read_state(run.opened(), run.recipe)[0]
    np.testing.assert_array_equal(found.params["w"], state.params["w"])


# ------------------------------------------------------------------------- the order


class Figure:
    """A metric that notes when it is read."""

    def __init__(self, value, seen):
        self.value, self.seen = value, seen

    def __array__(self, dtype=None, copy=None):
        self.seen()
        return np.asarray(self.value)


def test_the_next_step_is_dispatched_before_the_figures_of_one_are_read(
    toy, tmp_path, monkeypatch
):
    """Only a save, which must know that its state is good, waits for its own step."""
    events = []

    def note(what: str, step: int) -> None:
        if (what, step) not in events:
            events.append((what, step))

    def compiled(recipe):
        def step(state, batch):
            number = int(state.step) + 1
            note("dispatch", number)
            state, metrics = jax.jit(recipe.step)(state, batch)
            return state, {
                name: Figure(value, lambda: note("read", number))
                for name, value in metrics.items()
            }

        return step

    def save(self, step, *args, **kwargs):
        note("save", step)

    monkeypatch.setattr(Toy, "compiled", compiled)
    monkeypatch.setattr(checkpointing.Checkpoints, "save", save)
    Run(toy, tmp_path, save_every=4).go()
    assert events == [
        ("dispatch", 1),
        ("dispatch", 2),
        ("read", 1),
        ("dispatch", 3),
        ("read", 2),
        ("dispatch", 4),
        ("read", 3),
        ("read", 4),
        ("save", 4),
        ("dispatch", 5),
        ("dispatch", 6),
        ("read", 5),
        ("read", 6),
        ("save", 6),
    ]


# ------------------------------------------------------------------- stops and returns


def fail():
    raise OSError("the disk is gone")


def test_a_run_that_broke_goes_on_as_if_it_had_not(run, whole):
    with pytest.raises(OSError, match="gone"):
        run.go(at=4, do=fail)
    assert run.opened().latest() == 2
    state = run.go()
    assert run.said[-5] == "going on after step 2"
    assert_like_whole(run, state, whole)


def test_sigterm_saves_and_returns(run, whole):
    """At a step that is no multiple of anything."""
    before = signal.getsignal(signal.SIGTERM)
    state = run.go(at=3, do=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
    assert int(state.step) == 3 and run.saved() == [2, 3]
    assert run.said[-1].startswith("told to stop: saved step 3")
    assert_like_whole(run, run.go(), whole)


def test_means_of_a_line_go_on_too(toy, tmp_path):
    """A run that is stopped between two lines: the second has the same means."""
    told = Run(toy, tmp_path / "told", log_every=4)
    told.go(at=3, do=lambda: os.kill(os.getpid(), signal.SIGTERM))
    told.go()
    one = Run(toy, tmp_path / "one", log_every=4)
    one.go()
    assert losses(told) == losses(one)
    assert [step for step, _ in losses(one)] == [4, 6]


def test_a_finished_run_changes_nothing(toy, tmp_path, whole):
    run = Run(toy, tmp_path)
    run.go()
    before = run.lines(), run.saved()
    assert_like_whole(run, run.go(), whole)
    assert (run.lines(), run.saved()) == before


@pytest.mark.parametrize("step,kept", [(1, None), (4, 2), (5, 4)])
def test_nan_stops_with_its_step_and_the_last_good_checkpoint(run, step, kept):
    """Step 4 would have been saved."""
    with pytest.raises(trainer.NotFinite) as caught:
        run.go(at=step, do=lambda: {"x": np.full((2, 8), np.nan, np.float32)})
    said = str(caught.value)
    assert said.startswith(f"step {step}: got loss nan") and "\n" not in said
    where = f"the checkpoint of step {kept} in {run.workdir}" if kept else "no checkp"
    assert where in said
    assert run.opened().latest() == kept
    if kept:
        state, _, found = trainer.read_state(run.opened(), run.recipe)
        assert found == kept == int(state.step)
        assert np.isfinite(np.asarray(state.params["w"])).all()
    assert all(np.isfinite(line["loss"]) for line in run.lines())


def test_other_data_is_refused(run):
    run.go()
    run.position = dict(stage="s1", plan="xyz")
    with pytest.raises(ValueError, match="step 6 .*'abc'.*configuration says.*'xyz'"):
        run.go()
    assert run.saved() == [2, 4, 6]


def test_a_full_disk_is_one_error_and_nothing_is_lost(run, whole):
    """From step 4 on the system lets no file grow over 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        while run.opened().latest() != 2:  # it is written in the background
            time.sleep(0.01)
        run.refused = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(checkpointing.SaveError) as caught:
            run.go(at=4, do=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = str(caught.value)
    assert run.refused and "step 4 could not be written" in said and "\n" not in said
    assert os.strerror(errno.EFBIG) in said and "step 2 is whole" in said
    assert run.opened().latest() == 2
    assert_like_whole(run, run.go(), whole)  # once there is space


def test_what_is_being_saved_is_finished_when_something_else_breaks(run):
    """The batch after a save is bad, while the save is still at work."""
    with pytest.raises(OSError, match="gone"):
        run.go(at=3, do=fail)
    assert run.saved() == [2]  # and no unfinished one


# ---------------------------------------------------------------------------- it says


def test_lines_hold_losses_and_where_time_goes(whole):
    run, _ = whole
    lines = run.lines()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert len(line["cross_entropy"]) == 16
        assert {*SPEEDS, "gradient_norm", "learning_rate"} <= line.keys()
    # the first step compiles: it has no speed
    assert [lines[0][name] for name in SPEEDS[:4]] == [None] * 4
    for line in lines[1:]:
        seconds = line["seconds_per_step"]
        assert line["positions_per_second"] == pytest.approx(16 / seconds)
        assert line["frames_per_second"] == pytest.approx(8 / seconds)
        assert line["mfu"] == pytest.approx(100 / seconds / 1e6)
        assert 0 <= line["data_wait"] <= 1 and 0 < line["goodput"] <= 1
    assert run.said[0].startswith("step 1/6: loss ") and "MFU -" in run.said[0]
    for word in ("positions/s", "MFU", "waiting", "goodput"):
        assert word in run.said[-1] and "-," not in run.said[-1]
    assert list((run.workdir / "tensorboard").iterdir())


def test_goodput_goes_on_with_a_run(run):
    """The job's time counts from its first start, its good steps from all of them."""

    def slow():
        time.sleep(0.2)

    run.go(at=2, do=lambda: os.kill(os.getpid(), signal.SIGTERM))
    _, first, _ = trainer.read_state(run.opened(), run.recipe)
    time.sleep(0.2)
    run.go(at=5, do=slow)
    _, last, _ = trainer.read_state(run.opened(), run.recipe)
    assert last["meter"]["began"] == first["meter"]["began"]
    assert last["meter"]["productive"] > first["meter"]["productive"] > 0
    waited = {line["step"]: line["data_wait"] for line in run.lines()}
    # batch 5 is waited for while step 4 is not yet read, which ends before its save
    assert max(waited[4] or 0, waited[5] or 0) > 0.8
    took = time.time() - last["meter"]["began"]
    assert run.lines()[-1]["goodput"] < (took - 0.4) / took


def test_the_meter_counts_steps_waits_and_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 1000 + now[0])
    work = dict(flops=lambda f: 6 * float(f["positions"]), peak=1200.0)
    made = throughput.Meter(began=1000.0, **work)
    figures = dict(loss=np.float32(2), positions=np.float32(100), frames=np.float32(50))
    for seconds, waited in ((30, 9), (2, 0.5), (2, 0)):  # the first compiles
        made.waited(waited)
        now[0] += seconds
        made.step(figures | dict(loss=np.float32(seconds)))
    now[0] += 6  # a save
    made.pause()
    now[0] += 4
    made.step(figures)
    report = made.report()
    assert report["loss"] == 9  # of all four steps
    assert report["seconds_per_step"] == pytest.approx(8 / 3)
    assert report["positions_per_second"] == pytest.approx(300 / 8)
    assert report["frames_per_second"] == pytest.approx(150 / 8)
    assert report["mfu"] == pytest.approx(1800 / 8 / 1200)
    assert report["data_wait"] == pytest.approx(0.5 / 8)
    assert report["goodput"] == pytest.approx(7.5 / 44)
    made.pause()
    now[0] += 1
    made.step(figures)
    assert made.report()["positions_per_second"] == pytest.approx(100)  # since the last


def test_held_out_batches_are_looked_at_before_saving(run):
    def held_out():
        yield batch(10)
        yield batch(20)

    state = run.go(held_out=held_out)
    lines = [line for line in run.lines() if "held_out/loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    expected = 15 + float(state.params["w"].mean())
    assert lines[-1]["held_out/loss"] == pytest.approx(expected, rel=1e-5)
    assert len(lines[-1]["held_out/cross_entropy"]) == 16
    best = min(lines, key=lambda line: line["held_out/loss"])["step"]
    assert run.opened().best() == best


def test_some_steps_are_traced(toy, tmp_path):
    Run(toy, tmp_path, profile=(2, 2)).go()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


# ------------------------------------------------------------------------------ a log


def test_a_log_drops_what_will_be_written_again(tmp_path):
    first = metrics_writer.Log(tmp_path)
    for step in (1, 2, 3):
        first.write(step, dict(loss=step / 2, parts=np.ones(2), mfu=None))
    first.close()
    path = tmp_path / metrics_writer.FILE
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed as it wrote
    second = metrics_writer.Log(tmp_path, step=2)
    second.write(3, dict(loss=float("nan")))
    second.close()
    assert metrics_writer.read(tmp_path) == [
        dict(step=1, loss=0.5, parts=[1.0, 1.0], mfu=None),
        dict(step=2, loss=1.0, parts=[1.0, 1.0], mfu=None),
        dict(step=3, loss="nan"),
    ]
