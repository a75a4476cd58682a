"""Figures of the steps since the last report, and where a job's time has gone."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass
class Meter:
    """Times are in seconds.

    Attributes:
        flops: figures of a step -> floating-point operations that the model needs.
        peak: floating-point operations a second of all devices; None if unknown.
        began: when the job's first run began, since the epoch.
        productive: time in steps whose results are kept, over all runs of the job:
            neither compiling nor waiting for data nor saving.
    """

    flops: Callable[[dict], float]
    peak: float | None
    began: float = dataclasses.field(default_factory=time.time)
    productive: float = 0.0
    _mark: float | None = None  # end of the last step; the first of a run has no time
    _waited: float = 0.0  # for the batch of the step that runs
    _figures: list = dataclasses.field(default_factory=list)
    _times: list = dataclasses.field(default_factory=list)  # (seconds, waited, figures)

    def waited(self, seconds: float) -> None:
        """The step that runs had to wait for its data."""
        self._waited += seconds

    def step(self, figures: dict) -> None:
        """A step has ended; figures: name -> array."""
        now = time.perf_counter()
        if self._mark is not None:
            seconds = now - self._mark
            waited = min(self._waited, seconds)
            self.productive += seconds - waited
            self._times.append((seconds, waited, figures))
        self._mark, self._waited = now, 0.0
        self._figures.append(figures)

    def kept(self) -> dict:
        """JSON of what a job that goes on later has to know; see `go_on`."""
        figures = [
            {k: np.asarray(v).tolist() for k, v in f.items()} for f in self._figures
        ]
        return dict(began=self.began, productive=self.productive, figures=figures)

    def go_on(self, kept: dict) -> None:
        """Go on where a run of the same job stopped: in the same report, too."""
        self.began, self.productive = kept["began"], kept["productive"]
        self._figures = [
            {name: np.float32(value) for name, value in figures.items()}
            for figures in kept["figures"]
        ]

    def pause(self) -> None:
        """What came since the last step was no step."""
        self._mark = time.perf_counter()

    def report(self) -> dict:
        """Means of the figures and speeds since the last report."""
        values = {
            name: np.mean([f[name] for f in self._figures], axis=0)
            for name in self._figures[0]
        }
        values |= self._speeds()
        self._figures, self._times = [], []
        return values

    def _speeds(self) -> dict:
        """None for what the one step of a report that has no time cannot tell."""
        goodput = min(1.0, self.productive / max(time.time() - self.began, 1e-9))
        names = ("seconds_per_step", "positions_per_second", "frames_per_second")
        if not self._times:
            unknown = dict.fromkeys((*names, "mfu", "data_wait"))
            return unknown | dict(goodput=goodput)
        seconds = sum(t for t, _, _ in self._times)
        total = {
            name: sum(float(f[name]) for _, _, f in self._times)
            for name in ("positions", "frames")
        }
        flops = sum(self.flops(f) for _, _, f in self._times)
        return dict(
            seconds_per_step=seconds / len(self._times),
            positions_per_second=total["positions"] / seconds,
            frames_per_second=total["frames"] / seconds,
            mfu=flops / seconds / self.peak if self.peak else None,
            data_wait=sum(w for _, w, _ in self._times) / seconds,
            goodput=goodput,
        )
