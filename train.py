"""Train a Qwen3-TTS language model (three stages, or a voice), or the 12Hz codec.

    python train.py --config configs/pretrain.py:stage=s1,size=tiny \\
        --config.model.source=CHECKPOINT --config.data.corpus=CORPUS --workdir=RUN
    python train.py --config configs/codec.py:stage=warm,size=small \\
        --config.data.waves=WAVES, --workdir=RUN

The same command goes on where a run was stopped or killed.  Instead of training:
--dry_run shows mesh, sizes and the first batch as text; --compile_only --topology
v5e:16x16 compiles the step for TPUs that are not here; --export DIR writes the last
checkpoint in the official layout.  Fields of the configuration: configs/base.py,
configs/codec.py.
"""

import contextlib
import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from configs import build as build_lm
from configs import build_codec
from qwen3tts_jax import runtime, sharding
from qwen3tts_jax.training import checkpointing, trainer

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, with :choices.")
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints and logs; may exist.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show what would be done; do nothing.")
EXPORT = flags.DEFINE_string("export", None, "Write the last checkpoint there; stop.")
COMPILE = flags.DEFINE_bool("compile_only", False, "Compile for --topology; stop.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs: v5e:16x16, v5p:4x4x4, ...")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Many hosts, found by JAX.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port, where JAX cannot.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many; with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")

BUILDERS = dict(lm=build_lm, codec=build_codec)  # by config.task
ERRORS = (ValueError, OSError, trainer.NotFinite)  # told in one line


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
    if DISTRIBUTED.value or COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    try:
        run(CONFIG.value)
    except ERRORS as error:
        if jax.process_count() > 1:
            raise  # the other processes must not wait for this one
        sys.exit(f"train.py: {error}")


def run(config) -> None:
    """Do what the flags say."""
    build = BUILDERS[config.task]
    if COMPILE.value:
        if config.task != "lm":
            raise ValueError("got --compile_only of a codec; leave it out: it is small")
        if not TOPOLOGY.value:
            raise ValueError("got no --topology, expected for example v5e:16x16")
        return print(build.compile_ahead(config, TOPOLOGY.value))
    runtime.keep_programs()
    if not WORKDIR.value and not DRY_RUN.value:
        raise ValueError("got no --workdir, expected a directory for checkpoints")
    if EXPORT.value:
        out = pathlib.Path(EXPORT.value)
        step = build.write_export(config, pathlib.Path(WORKDIR.value), out)
        return print(f"{out}: step {step}, in the official layout")
    mesh = sharding.make_mesh(**build.mesh_shape(config, jax.device_count()))
    recipe = build.recipe(config, mesh)
    data = build.Data(config, recipe)
    if DRY_RUN.value:
        return print(build.describe(config, recipe, data))
    train(config, recipe, data)


def train(config, recipe, data) -> None:
    build = BUILDERS[config.task]
    workdir, first = pathlib.Path(WORKDIR.value), jax.process_index() == 0
    checkpoints = checkpointing.Checkpoints(
        workdir / build.CHECKPOINTS,
        keep_last=config.keep_last,
        keep_best=config.keep_best,
    )
    run = trainer.Trainer(
        recipe,
        build.schedule(config),
        workdir=workdir,
        checkpoints=checkpoints,
        position=data.position,
        meter=build.meter(recipe),
        show=build.samples(config, data, workdir) if first else None,
        say=print if first else lambda line: None,
    )
    with runtime.exact() if recipe.dtype == "float32" else contextlib.nullcontext():
        state = run.resume()
        if state is None:
            state = build.begin(config, run)
        step = int(state.step)
        held_out = data.held_out if config.data.held_out else None
        with contextlib.closing(data.batches(step)) as batches:
            run.run(state, batches, held_out)
    checkpoints.close()


def parse(argv: list[str]) -> list[str]:
    """The flags; a field that the configuration does not have is told in one line."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # one inside the other, or alone
        said = str(getattr(error.args[0], "args", error.args)[0]).replace("\n", ". ")
        sys.exit(f"train.py: no field of the configuration is {said}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
