"""The loop around a step: data in, states saved, figures out.

Step n is dispatched before the figures of step n-1 are read, so that the device never
waits for the host.  A state is saved only after its own figures have been seen to be
finite: the last checkpoint is always a good one.
"""

import contextlib
import dataclasses
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from qwen3tts_jax.training import checkpointing, metrics_writer, throughput
from qwen3tts_jax.training.lm import train_step

PARAMS, REST = "params", "rest"  # items of a checkpoint


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When the loop does what, in steps.

    Attributes:
        steps: where it ends.
        log_every: a line of figures, means since the last one.
        save_every: a checkpoint, and a look at the held-out batches; also at the end.
        profile: (first step of this run, steps) to trace into WORKDIR/profile.
    """

    steps: int
    log_every: int = 10
    save_every: int = 1000
    profile: tuple[int, int] = (0, 0)


class NotFinite(ArithmeticError):
    """A loss or gradient that is no number; names the step and the last checkpoint."""


class Trainer:
    """Runs a recipe on its mesh; `run` may be called once."""

    def __init__(
        self,
        recipe: train_step.Recipe,
        schedule: Schedule,
        *,
        workdir: Path,
        checkpoints: checkpointing.Checkpoints,
        position: dict,
        meter: throughput.Meter,
        show: Callable[[Any, int], None] | None = None,
        say: Callable[[str], None] = print,
    ):
        """
        Args:
            position: JSON that names the data, saved with every state; `resume` refuses
                a state whose data was another.
            show: is called with a state and its step when that has been saved; writes
                samples, on one process.
        """
        self.recipe, self.schedule = recipe, schedule
        self.workdir, self.checkpoints = workdir, checkpoints
        self.position, self.say = position, say
        self.meter, self.show = meter, show
        whole = NamedSharding(recipe.mesh, PartitionSpec())
        self._step = recipe.compiled()
        self._score = jax.jit(recipe.score, out_shardings=whole)
        self._log: metrics_writer.Log | None = None
        self._told = self._tracing = False

    # -------------------------------------------------------------------- start

    def fresh(self, params: dict, key: jax.Array) -> train_step.TrainState:
        """The first state of a run.  params: path -> array."""
        places = self.recipe.shardings()
        return jax.jit(self.recipe.init, out_shardings=places)(params, key)

    def resume(self) -> train_step.TrainState | None:
        """The state of the last checkpoint, or None where there is none.

        Raises: ValueError if it was trained on other data, or is of another model.
        """
        if self.checkpoints.latest() is None:
            return None
        state, data, step = read_state(self.checkpoints, self.recipe)
        if data["position"] != self.position:
            raise ValueError(
                f"the checkpoint of step {step} in {self.workdir} was trained on "
                f"{data['position']}, but the configuration says {self.position}; go "
                "on with the same data, or start in another directory from its "
                "parameters"
            )
        self.meter.go_on(data["meter"])
        self.say(f"going on after step {step}")
        return state

    # --------------------------------------------------------------------- loop

    def run(
        self,
        state: train_step.TrainState,
        batches: Iterator[dict],
        held_out: Callable[[], Iterator[dict]] | None = None,
    ) -> train_step.TrainState:
        """Train to the last step, or until SIGTERM; returns the last state.

        Args:
            batches: this process's rows of each batch, from the state's step on.
            held_out: a new pass over batches to look at without training.
        Raises: NotFinite; what the batches raise.
        """
        first, last = int(state.step), self.schedule.steps
        if jax.process_index() == 0:
            self._log = metrics_writer.Log(self.workdir, step=first)
        pending = None
        with self._running():
            for step in range(first + 1, last + 1):
                self._trace(step - first)
                batch = self._next(batches)
                state, metrics = self._step(state, batch)
                if pending:
                    self._finish(*pending)
                pending = step, metrics
                stop = step == last or self._must_stop(step)
                if stop or step % self.schedule.save_every == 0:
                    self._finish(*pending)
                    pending = None
                    self._save(state, step, held_out)
                if stop:
                    self._tell_if_early(step)
                    break
        return state

    def _next(self, batches: Iterator[dict]) -> dict:
        """The next batch, on the devices."""
        began = time.perf_counter()
        batch = next(batches)
        self.meter.waited(time.perf_counter() - began)
        return self._place(batch)

    def _place(self, batch: dict) -> dict:
        places = self.recipe.batch_shardings(batch)
        return {
            name: jax.make_array_from_process_local_data(places[name], value)
            for name, value in batch.items()
        }

    def _finish(self, step: int, metrics: dict) -> None:
        """Read a step's figures; the device may be busy with the next one."""
        figures = {name: np.asarray(value) for name, value in metrics.items()}
        self.meter.step(figures)
        if not all(np.isfinite(figures[name]) for name in self.recipe.checked):
            self._refuse(step, figures)
        if step % self.schedule.log_every == 0 or step == self.schedule.steps:
            values = self.meter.report()
            if self._log:
                self._log.write(step, values)
                losses = self.recipe.line(values)
                self.say(_line(step, self.schedule.steps, losses, values))

    def _refuse(self, step: int, figures: dict) -> None:
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        kept = (
            "no checkpoint has been saved yet"
            if good is None
            else (f"the checkpoint of step {good} in {self.workdir} is whole")
        )
        got = " and ".join(f"{n} {figures[n]}" for n in self.recipe.checked)
        raise NotFinite(
            f"step {step}: got {got}, expected finite numbers; {kept}: lower the "
            "learning rate or look at the data of this step, and start again"
        )

    def _save(self, state, step: int, held_out) -> None:
        """Save a state whose figures have been seen."""
        metric = self._look(state, step, held_out) if held_out else None
        data = dict(position=self.position, next_batch=step, meter=self.meter.kept())
        self.checkpoints.save(step, _items(state), data=data, metric=metric)
        if self.show:
            self.show(state, step)
        self.meter.pause()

    def _look(self, state, step: int, held_out) -> float:
        """The held-out batches' mean loss, logged with the other figures."""
        figures = [
            {k: np.asarray(v) for k, v in self._score(state, self._place(b)).items()}
            for b in held_out()
        ]
        values = {
            f"held_out/{name}": np.mean([f[name] for f in figures], axis=0)
            for name in figures[0]
        }
        if self._log:
            self._log.write(step, values)
            self.say(f"step {step}: held-out loss {values['held_out/loss']:.4f}")
        return float(values["held_out/loss"])

    # ------------------------------------------------------------------ signals

    @contextlib.contextmanager
    def _running(self):
        """SIGTERM is heard; saves end, traces and logs are closed, however it ends."""
        with contextlib.ExitStack() as last:  # the last one first
            # with many processes JAX's own handler tells all of them the same last step
            if jax.process_count() == 1:
                before = signal.signal(signal.SIGTERM, self._hear)
                last.callback(signal.signal, signal.SIGTERM, before)
            if self._log:
                last.callback(self._log.close)
            last.callback(self._trace, None)
            last.callback(self.checkpoints.wait)
            yield

    def _hear(self, number, frame) -> None:
        self._told = True

    def _must_stop(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._told
        return multihost_utils.reached_preemption_sync_point(step)

    def _tell_if_early(self, step: int) -> None:
        if step < self.schedule.steps:
            self.say(f"told to stop: saved step {step}; the same command goes on")

    def _trace(self, step: int | None) -> None:
        """Begin or end the profile; step: of this run, None at the end."""
        first, count = self.schedule.profile
        if count and step == first:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self._tracing = True
        if self._tracing and (step is None or step >= first + count):
            jax.profiler.stop_trace()
            self._tracing = False


def _items(state: train_step.TrainState) -> dict:
    """A state as the items of a checkpoint; parameters can be read alone."""
    return {PARAMS: state.params, REST: state.replace(params={})}


def read_state(
    checkpoints: checkpointing.Checkpoints,
    recipe: train_step.Recipe,
    step: int | None = None,
) -> tuple[train_step.TrainState, dict, int]:
    """(state, data, step) of a checkpoint; raises what `Checkpoints.restore` raises."""
    items, data, step = checkpoints.restore(_items(recipe.abstract()), step=step)
    return items[REST].replace(params=items[PARAMS]), data, step


def read_params(
    checkpoints: checkpointing.Checkpoints, recipe: train_step.Recipe
) -> tuple[dict, int]:
    """(path -> array, step) of the newest checkpoint, of whatever optimiser."""
    items, _, step = checkpoints.restore({PARAMS: recipe.abstract().params})
    return items[PARAMS], step


def read_similar(
    checkpoints: checkpointing.Checkpoints, fresh: dict, needed: str, mesh
) -> tuple[dict, int]:
    """(path -> array, step): what a checkpoint has of `fresh`, else what is there.

    For a stage whose model has parts more, fewer or other than that of the one before.

    Args:
        needed: pattern over the paths that must be in the checkpoint, in their shape.
    Raises: ValueError listing those that are not.
    """
    place = NamedSharding(mesh, PartitionSpec())
    saved, step = checkpoints.restore_saved(PARAMS, place)
    kept = {
        path: value
        for path, value in saved.items()
        if path in fresh and value.shape == fresh[path].shape
    }
    if lost := [p for p in fresh if p not in kept and re.search(needed, p)]:
        raise ValueError(
            f"got the checkpoint of step {step} in {checkpoints.directory}, which has "
            f"no {', '.join(lost[:5])} of the right shape ({len(lost)} in all); give "
            "the run of a model of the same size"
        )
    return fresh | kept, step


def _line(step: int, steps: int, losses: str, values: dict) -> str:
    """A report for people."""

    def show(name: str, form: str) -> str:
        return "-" if values[name] is None else format(values[name], form)

    return (
        f"step {step}/{steps}: loss {values['loss']:.4f}, {losses}, "
        f"gradient {values['gradient_norm']:.3f}, "
        f"{show('seconds_per_step', '.3f')} s, "
        f"{show('positions_per_second', ',.0f')} positions/s, "
        f"MFU {show('mfu', '.1%')}, waiting {show('data_wait', '.1%')}, "
        f"goodput {show('goodput', '.1%')}"
    )
