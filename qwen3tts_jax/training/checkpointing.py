"""Checkpoints of a training run: Orbax, written in the background, whole or not at all.

A step's checkpoint has named items (pytrees of arrays, typed PRNG keys included), each
of which can be restored alone, and a JSON object.  Orbax writes it into a temporary
directory and renames it: what a killed process leaves behind is never taken for one.
"""

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from qwen3tts_jax.nn import tree as trees

DATA = "data"  # the item with the JSON object
METRIC = "metric"  # by which the best are known; lower is better
UNFINISHED = ".orbax-checkpoint-tmp"  # after a step, while it is written
NO_METRIC = "Requested `tracked_metric`; did not provide metrics."
LEAF = "leaf"  # the path of a tree that is one array
PROBLEMS = 20  # that an error message lists


class SaveError(OSError):
    """A checkpoint that could not be written; the ones before it are whole."""


class Checkpoints:
    """The checkpoints in a directory."""

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep_last: int = 3,
        keep_best: int = 0,
        asynchronous: bool = True,
    ):
        """
        Args:
            directory: is made by the first `save`.
            keep_last: the newest ones, at least 1.
            keep_best: besides, those with the lowest metric.
            asynchronous: `save` returns when the arrays have left the devices.
        """
        if keep_last < 1:
            raise ValueError(f"got keep_last {keep_last}, expected at least 1")
        self.directory = Path(directory).absolute()
        policies = [preservation_policy.LatestN(n=keep_last)]
        if keep_best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=_metric,
                    reverse=True,  # the lowest are the best
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        logging.getLogger("absl").addFilter(_is_no_noise)
        self._asynchronous = asynchronous
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,  # a directory with a slip in its name stays unmade
                best_fn=_metric,  # without it metrics are not written
                best_mode="min",
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                enable_async_checkpointing=asynchronous,
            ),
        )
        self._saving: int | None = None

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the lowest metric, or the newest where none has one."""
        found = {
            step: self._manager.metrics(step) for step in self._manager.all_steps()
        }
        measured = [(_metric(m), -step) for step, m in found.items() if m]
        return -min(measured)[1] if measured else self.latest()

    # --------------------------------------------------------------------- save

    def save(
        self, step: int, items: Mapping, *, data: dict, metric: float | None = None
    ) -> None:
        """Begin to save; waits for the save before, if it is still at work.

        Args:
            items: name -> pytree of arrays.
            data: JSON object.
            metric: lower is better; one that is no number counts as none.
        Raises: SaveError if this one, or the one before, could not be written.
        """
        self.wait()
        self._saving = step
        args = {
            name: ocp.args.StandardSave(_plain(tree)) for name, tree in items.items()
        }
        args[DATA] = ocp.args.JsonSave(data)
        known = metric is not None and math.isfinite(metric)
        metrics = {METRIC: float(metric)} if known else None
        with _Failure(self):
            self._clear()
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager.save(
                step, args=ocp.args.Composite(**args), metrics=metrics, force=True
            )
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Until what is being saved is whole.  Raises: SaveError."""
        with _Failure(self):
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Wait for what is being saved, and let go of the directory."""
        self.wait()
        self._manager.close()

    def _clear(self) -> None:
        """Give back the space of what failed or killed saves have left."""
        if jax.process_index() == 0:
            for left in self.directory.glob(f"*{UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)

    def _failed(self, error: Exception) -> SaveError:
        step, self._saving = self._saving, None
        self._clear()
        self._manager.reload()  # it has counted the failed one already
        good = self._manager.all_steps()
        kept = f"step {max(good)} is whole" if good else "there is none"
        cause, advice = _cause(error)
        return SaveError(
            f"the checkpoint of step {step} could not be written to {self.directory}: "
            f"{cause}; of those before, {kept}: {advice}, then give the same command "
            "again"
        )

    # ------------------------------------------------------------------ restore

    def restore(self, items: Mapping, *, step: int | None = None) -> tuple:
        """Read a checkpoint.

        Args:
            items: name -> pytree of jax.ShapeDtypeStruct; a sharding says where a leaf
                goes, on whatever mesh it was saved.
            step: None for the newest.
        Returns: (name -> pytree, data, step).
        Raises: FileNotFoundError; ValueError for a checkpoint of another structure, or
            one that is damaged.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"got {self.directory}, which has "
                f"{'no checkpoint' if step is None else f'none of step {step}'}; "
                "give the directory of a training run"
            )
        plain = {
            name: jax.tree.map(_plain_struct, _flat(tree))
            for name, tree in items.items()
        }
        self._check(step, plain)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in plain.items()}
        args[DATA] = ocp.args.JsonRestore()
        found = self._read(
            step, lambda: self._manager.restore(step, args=ocp.args.Composite(**args))
        )
        made = {name: _like(tree, found[name]) for name, tree in items.items()}
        return made, found[DATA], step

    def restore_saved(self, name: str, place: jax.sharding.Sharding) -> tuple:
        """One item of the newest checkpoint as it was saved, whatever its structure.

        Returns: (path -> array, its step).  Raises: as `restore`.
        """
        step = self.latest()
        if step is None:
            raise FileNotFoundError(
                f"got {self.directory}, which has no checkpoint; give the directory of "
                "a training run"
            )
        handler = ocp.StandardCheckpointHandler()
        folder = self.directory / str(step) / name
        saved = self._read(step, lambda: handler.metadata(folder))
        structs = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            for path, leaf in saved.tree.items()
        }
        items, _, _ = self.restore({name: structs}, step=step)
        return items[name], step

    def _read(self, step: int, action: Callable):
        try:
            return action()
        except Exception as error:  # Orbax and TensorStore raise kinds of their own
            others = [s for s in self._manager.all_steps() if s != step]
            kept = f"of step {max(others)}" if others else "that is whole"
            raise ValueError(
                f"the checkpoint of step {step} in {self.directory} cannot be read "
                f"({_brief(error)}); delete the folder {step} to go on from one {kept}"
            ) from error

    def _check(self, step: int, items: Mapping) -> None:
        """Raises: ValueError listing every leaf that is missing, extra or other."""
        problems = []
        for name, tree in items.items():
            folder = self.directory / str(step) / name
            if not folder.is_dir():
                problems.append(f"missing: all of {name}")
                continue
            # by its own handler: a manager knows those alone that it has saved
            handler = ocp.StandardCheckpointHandler()
            saved = self._read(step, lambda f=folder, h=handler: h.metadata(f))
            problems += _differences(name, _leaves(saved.tree), _leaves(tree))
        if problems:
            more = len(problems) - PROBLEMS
            raise ValueError(
                f"the checkpoint of step {step} in {self.directory} is of another "
                f"model or configuration ({len(problems)} problems):\n  "
                + "\n  ".join(problems[:PROBLEMS])
                + (f"\n  and {more} more" if more > 0 else "")
            )


class _Failure:
    """Turns whatever a block raises into the one SaveError of a directory."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        # Orbax and TensorStore raise kinds of their own
        if isinstance(error, Exception):
            raise self.checkpoints._failed(error) from error


# ---------------------------------------------------------------------- structure


def _differences(name: str, had: dict[str, str], want: dict[str, str]) -> list[str]:
    problems = [f"missing: {name} {p}" for p in sorted(want.keys() - had)]
    problems += [f"unexpected: {name} {p}" for p in sorted(had.keys() - want)]
    return problems + [
        f"other: {name} {p}: got {had[p]}, expected {want[p]}"
        for p in sorted(want.keys() & had)
        if had[p] != want[p]
    ]


def _leaves(tree: dict) -> dict[str, str]:
    """Path -> "float32 (2, 3)"."""
    return {
        path: f"{jnp.dtype(leaf.dtype).name} {tuple(leaf.shape)}"
        for path, leaf in tree.items()
    }


def _flat(tree) -> dict:
    """Path -> leaf: what Orbax writes, whatever classes the tree is made of."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    made = {trees.leaf_path(path) if path else LEAF: leaf for path, leaf in flat}
    assert len(made) == len(flat), "two leaves have the same path"
    return made


def _like(wanted, found: dict):
    """The tree that `_flat` made `found` of."""
    leaves = [_with_key(struct, found[path]) for path, struct in _flat(wanted).items()]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(tree):
    """Path -> array; PRNG keys as the numbers they are made of."""
    flat = _flat(tree)
    return {p: jax.random.key_data(x) if _is_key(x) else x for p, x in flat.items()}


def _plain_struct(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not _is_key(x):
        return x
    data = jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)


def _with_key(wanted: jax.ShapeDtypeStruct, found: jax.Array) -> jax.Array:
    if not _is_key(wanted):
        return found
    kinds = []
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), wanted)
    return jax.random.wrap_key_data(found, impl=kinds[0])


# -------------------------------------------------------------------------- words


def _metric(metrics: dict) -> float:
    return metrics[METRIC]


def _is_no_noise(record: logging.LogRecord) -> bool:
    """Whether Orbax says something that neither is raised as well nor is meant so."""
    if "orbax" not in record.pathname:
        return True
    return not record.exc_info and NO_METRIC not in record.getMessage()


def _cause(error: Exception) -> tuple[str, str]:
    """(what happened, what to do about it)."""
    full = os.strerror(errno.ENOSPC)
    quota = os.strerror(errno.EDQUOT)
    for words in (full, quota):
        if words.lower() in str(error).lower():
            return words, "free disk space"
    return _brief(error), "see to that"


def _brief(error: Exception) -> str:
    """Kind and text in one line; the cause stands at the end of a long text."""
    text = " ".join(str(error).split())
    if len(text) > 300:
        text = f"{text[:120]} ... {text[-175:]}"
    return f"{type(error).__name__}: {text}"
