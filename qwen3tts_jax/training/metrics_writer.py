"""What a run says while it works: a JSON line and TensorBoard scalars a report."""

import json
import math
from pathlib import Path

import numpy as np
import tensorboardX

FILE = "log.jsonl"


class Log:
    """Writes DIR/log.jsonl and DIR/tensorboard; one process of a run has one."""

    def __init__(self, directory: Path, *, step: int = 0):
        """step: where the run begins; lines of later steps, which a killed run wrote
        and this one will write again, are dropped."""
        directory.mkdir(parents=True, exist_ok=True)
        self._file = _open(directory / FILE, step)
        self._board = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, values: dict) -> None:
        """values: numbers, None, or arrays, of which each element gets a number."""
        line = dict(step=step) | {k: _plain(v) for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is None:
                continue
            for i, x in enumerate(np.atleast_1d(np.asarray(value, np.float64))):
                tag = name if np.ndim(value) == 0 else f"{name}/{i:02d}"
                self._board.add_scalar(tag, x, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read(directory: Path) -> list[dict]:
    """The lines of a run's log.jsonl."""
    lines = (Path(directory) / FILE).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _open(path: Path, step: int):
    """The file, opened to append, without the lines after `step` or cut short."""
    if path.exists():
        kept = [line for line in path.read_text("utf-8").splitlines() if _whole(line)]
        kept = [line for line in kept if json.loads(line)["step"] <= step]
        part = path.with_name(path.name + ".part")
        part.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        part.replace(path)
    return path.open("a", encoding="utf-8")


def _whole(line: str) -> bool:
    """Whether the process that wrote the line lived to its end."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _plain(value):
    """As JSON has it: NaN and infinity are written by name."""
    if value is None or isinstance(value, str):
        return value
    if np.ndim(value):
        return [_plain(x) for x in np.asarray(value)]
    number = float(value)
    return number if math.isfinite(number) else str(number)
