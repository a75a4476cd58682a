"""How far a long run is: a line now and then, with rate and time left."""

import sys
import time
from collections.abc import Callable

EVERY = 10.0  # seconds between lines


class Progress:
    """Counts clips and the seconds of sound in them."""

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
        file=None,
    ):
        """done: of `total` clips, how many an earlier run has dealt with."""
        self.total, self.before, self.clips, self.seconds = total, done, 0, 0.0
        self.every, self.clock, self.file = every, clock, file or sys.stderr
        self.started = self.last = clock()

    def add(self, clips: int, seconds: float) -> None:
        """Some clips are done with; says so when the time has come."""
        self.clips += clips
        self.seconds += seconds
        if self.clock() - self.last >= self.every:
            self.last = self.clock()
            self.say()

    def say(self) -> None:
        print(self.line(), file=self.file, flush=True)

    def line(self) -> str:
        took = max(self.clock() - self.started, 1e-9)
        done = self.before + self.clips
        left = (self.total - done) * took / self.clips if self.clips else 0
        return (
            f"{done} of {self.total} clips ({done / max(self.total, 1):.1%}), "
            f"{self.clips / took:.1f} clips/s, {self.seconds / took:.0f} x real time, "
            f"{_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
