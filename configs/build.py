"""A training configuration -> the objects of the library and of the data path."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from data import index as indices
from data.loading import loader as pipeline
from data.loading import packed_rows as packing
from data.loading import speaker_vectors as speakers
from data.mixture import plan
from data.mixture import prompt_layouts as layouts
from qwen3tts_jax import sharding, speech_tokenizer
from qwen3tts_jax.audio import mel as log_mels
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.checkpoints import random_weights as random_checkpoint
from qwen3tts_jax.config import tts as configs
from qwen3tts_jax.generation import prompt, voice_clone
from qwen3tts_jax.nn import packed_attention
from qwen3tts_jax.text import tokenizer as texts
from qwen3tts_jax.training import checkpointing as checkpoint
from qwen3tts_jax.training import mesh_shape as meshes
from qwen3tts_jax.training import optimizer, trainer
from qwen3tts_jax.training import throughput as meters
from qwen3tts_jax.training.aot import compile as ahead
from qwen3tts_jax.training.aot import flops
from qwen3tts_jax.training.lm import export, lora, losses
from qwen3tts_jax.training.lm import initialization as start
from qwen3tts_jax.training.lm import params as model_parts
from qwen3tts_jax.training.lm import train_step as states

SPEECH_TOKENIZER = "speech_tokenizer"  # folder of a checkpoint
CHECKPOINTS = "checkpoints"  # folder of a run
MEL_FRAMES = 282  # of a voice: 3 s
USUAL_POSITIONS = 180  # an utterance of 10 s, its text and marks
FRAME_SHARE = 0.7  # of its positions that are frames

# ----------------------------------------------------------------------- model


def hf_config(config) -> dict:
    """config.json of the model: that of `source`, or of the released size.

    Raises: ValueError if the source is of another size or variant.
    """
    size, variant = config.model.size, config.model.variant
    if not config.model.source:
        return random_checkpoint.tts_config(size, variant)
    path = source(config) / "config.json"
    found = hub.read_json(path)
    wanted = random_checkpoint.tts_config(size, variant, path.parent)
    expected = wanted["talker_config"]["hidden_size"]
    got = found.get("talker_config", {}).get("hidden_size")
    if got != expected:
        raise ValueError(
            f"got {path} with a talker of width {got}, expected {expected} for size "
            f"{size}; give the size of the checkpoint (size=... after the colon) or "
            "another --config.model.source"
        )
    return found


def source(config) -> Path:
    """The checkpoint directory that gives text tokenizer and codec."""
    if not config.model.source:
        raise ValueError(
            "got no --config.model.source, expected a checkpoint directory: its text "
            "tokenizer and codec are used (`python -m "
            "qwen3tts_jax.checkpoints.random_weights` writes one with random weights)"
        )
    return hub.resolve(config.model.source)


def recipe(config, mesh) -> states.Recipe:
    """All that is static in a step.  Raises: ValueError as `base.check`."""
    base.check(config)
    compute, lora_ = config.compute, config.lora
    attention = compute.attention
    if attention == "auto":
        platform = mesh.devices.flat[0].platform
        attention = packed_attention.default_implementation(platform)
    adapters = None
    if lora_.rank:
        adapters = lora.LoRA(lora_.rank, lora_.alpha, tuple(lora_.targets))
    settings = dict(config.optimizer)
    settings["freeze"] = tuple(settings["freeze"])
    return states.Recipe(
        config=configs.Qwen3TTSConfig.from_hf(hf_config(config)),
        optimizer=optimizer.Optimizer(**settings),
        packing=losses.Packing(
            **dict(config.loss), attention=attention, remat=compute.remat
        ),
        adapters=adapters,
        dtype=compute.dtype,
        accumulate=config.accumulate,
        mesh=mesh,
    )


def mesh_shape(config, devices: int) -> dict[str, int]:
    """Devices along each axis, where data and fsdp may be left open by -1.

    Raises: ValueError if they do not use all devices, or cut rows or length unevenly.
    """
    shape = meshes.fit(
        config.compute.mesh, devices, rows=config.rows, parts=config.accumulate
    )
    if config.length % shape["sequence"]:
        raise ValueError(
            f"got length {config.length}, expected a multiple of sequence = "
            f"{shape['sequence']}"
        )
    return shape


# ------------------------------------------------------------------------ data


class Data:
    """The batches of a configuration, as this process sees them.

    Attributes:
        position: JSON that says which batch a step number means.
        shape: of the packed rows; plan: of the training corpus.
    """

    def __init__(self, config, trained: states.Recipe):
        folder = source(config)
        self.config, self.model = config, trained.config
        self.tokenizer = texts.TextTokenizer.from_directory(folder)
        self.codec = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(
            folder / SPEECH_TOKENIZER
        ).fingerprint
        self.plan = self._plan(config.data.corpus, "corpus")
        self.shape = row_shape(config, pipeline.voices_needed(self.plan))
        self.position = dict(
            stage=config.name,
            seed=config.seed,
            rows=config.rows,
            plan=self.plan.fingerprint,
        )

    def batches(self, first: int) -> Iterator[dict]:
        """From batch `first` on, this process's rows of each."""
        made = self._batches(self.plan, self.config.optimizer.steps)
        loader = pipeline.loader(made, first, workers=self.config.data.workers)
        with contextlib.closing(loader):
            for _, arrays in loader:
                yield arrays

    def held_out(self) -> Iterator[dict]:
        """The first batches of the held-out corpus; none without one."""
        if not self.config.data.held_out:
            return
        found = self._plan(self.config.data.held_out, "held_out")
        made = self._batches(found, self.config.data.held_out_batches)
        with contextlib.closing(pipeline.loader(made)) as loader:
            for _, arrays in loader:
                yield arrays

    def _batches(self, found: plan.Plan, steps: int) -> pipeline.Batches:
        return pipeline.Batches(
            found,
            self.model,
            self.tokenizer,
            shape=self.shape,
            steps=steps,
            host=jax.process_index(),
            hosts=jax.process_count(),
            max_bad_records=self.config.data.max_bad_records,
        )

    def _plan(self, corpus: str, field: str) -> plan.Plan:
        if not corpus:
            raise ValueError(
                f"got no --config.data.{field}, expected a directory that "
                "data/prepare.py and data/index.py have made"
            )
        index = indices.open_index(corpus, codec=self.codec)
        return plan.Plan.make(index, stage(self.config, self.model))


def row_shape(config, voices: int) -> packing.Shape:
    """The static sizes of a packed row; voices: in it, if the configuration is open."""
    by_mel = config.data.voice == "x_vector" and config.data.voice_from == "mel"
    return packing.Shape(
        length=config.length,
        voices=config.data.voices or voices,
        mel_frames=MEL_FRAMES if by_mel else 0,
    )


def stage(config, model: configs.Qwen3TTSConfig) -> plan.Stage:
    """What the data plan needs to know of a configuration."""
    d, languages = config.data, prompt.supported_languages(model.talker)
    return plan.Stage(
        name=config.name,
        length=config.length,
        rows=config.rows,
        seed=config.seed,
        pools=tuple(plan.Pool(*pool) for pool in d.pools),
        layouts=layouts.Layouts(
            streaming=d.streaming,
            drop_language=d.drop_language,
            instruct=d.instruct,
            voice=d.voice,
            no_voice=d.no_voice,
            reference=d.reference,
            reference_frames=d.reference_frames,
            tags=tuple(n for n in languages if n != prompt.AUTO),
        ),
        rounds=d.rounds,
        block_shards=d.block_shards,
    )


# ------------------------------------------------------------------------- run


def schedule(config) -> trainer.Schedule:
    return trainer.Schedule(
        steps=config.optimizer.steps,
        log_every=config.log_every,
        save_every=config.save_every,
        profile=tuple(config.profile),
    )


def meter(recipe: states.Recipe) -> meters.Meter:
    """Counts FLOPs against the peak of the mesh's devices."""

    def work(figures: dict) -> float:
        counted = dict(
            positions=float(figures["positions"]),
            pairs=float(figures["pairs"]),
            frames=float(figures["chosen"]),
        )
        return flops.training(recipe.config, **counted).total

    return meters.Meter(flops=work, peak=peak(recipe))


def peak(recipe: states.Recipe) -> float:
    """FLOP/s of all devices: from their data sheet; of others, such as CPUs, what a
    large product reaches."""
    kind = recipe.mesh.devices.flat[0].device_kind
    known = flops.device(kind)
    if known is not None:
        return known.flops * recipe.mesh.size
    size, times = 1024, 8
    x = jnp.ones((size, size), recipe.dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    began = time.perf_counter()
    for _ in range(times):
        y = multiply(x, x)
    y.block_until_ready()
    # simulated devices share the processor: its rate is that of all of them
    return times * 2 * size**3 / (time.perf_counter() - began)


def begin(config, run: trainer.Trainer) -> states.TrainState:
    """The first state: random, from a checkpoint, or from an earlier stage."""
    params_key, state_key = jax.random.split(jax.random.key(config.seed))
    wanted, recipe = config.model, run.recipe
    if not wanted.hand_over:
        parts, notes = first_parts(config, recipe, params_key)
        for note in notes:
            run.say(note)
        return run.fresh(states.flatten(parts), state_key)
    earlier = checkpoint.Checkpoints(Path(wanted.hand_over) / CHECKPOINTS)
    if wanted.take == "params":
        params, step = trainer.read_params(earlier, recipe)
        run.say(f"took the parameters of step {step} of {wanted.hand_over}")
        return run.fresh(params, state_key)
    state, _, step = trainer.read_state(earlier, recipe)
    run.say(f"took everything of step {step} of {wanted.hand_over}")
    # this stage counts its own steps; moments and averages go on
    return state.replace(step=jnp.zeros_like(state.step))


def first_parts(
    config, recipe: states.Recipe, key: jax.Array
) -> tuple[model_parts.Parts, list[str]]:
    """(the model before training, notes on where it comes from)."""
    kind = config.model.start
    if kind == "weights":
        folder = source(config)
        parts = start.from_official(folder, recipe.config, recipe.mesh)
        return parts, [f"took the weights of {folder}"]
    parts = model_parts.init(recipe.config, key, recipe.mesh)
    if kind == "random":
        return parts, ["starting from random weights"]
    parts, notes = start.from_qwen3_text(parts, hub.resolve(config.model.backbone))
    return parts, ["the rest is random", *notes]


def write_export(config, workdir: Path, out: Path) -> int:
    """The best checkpoint of a run in the official layout; returns its step.

    With config.model.export_speakers every voice of the corpus becomes a speaker; with
    export_voices some become named voices of a Base checkpoint.
    """
    mesh = sharding.make_mesh()
    trained = recipe(config, mesh)
    if not (workdir / CHECKPOINTS).is_dir():
        raise FileNotFoundError(
            f"got {workdir}, which has no checkpoints; give the --workdir of a run"
        )
    checkpoints = checkpoint.Checkpoints(workdir / CHECKPOINTS)
    state, _, step = trainer.read_state(checkpoints, trained, checkpoints.best())
    parts = trained.model(state, averaged=True)
    named, kept = tuple(config.model.export_voices), {}
    if (named or config.model.export_speakers) and parts.speaker_encoder is not None:
        found = _voices(config, trained.config, parts.speaker_encoder)
        wanted = voice_clone.Voices.chosen(found, named) if named else None
        kept = dict(voices=wanted) if named else dict(speakers=found)
    export.export(out, parts, hf_config(config), source(config), **kept)
    return step


def _voices(config, model: configs.Qwen3TTSConfig, encoder) -> dict:
    """Speaker -> mean vector over the corpus, as the talker saw it in training."""
    index = indices.open_index(config.data.corpus, codec=None)
    if config.data.voice_from == "x_vector":
        return speakers.vectors(index, None)
    embed = jax.jit(lambda encoder, mel, length: encoder(mel, length))

    def vectors(mels: list[np.ndarray]) -> np.ndarray:
        length = np.asarray([min(len(mel), MEL_FRAMES) for mel in mels], np.int32)
        table = np.zeros((len(mels), MEL_FRAMES, log_mels.MEL_BINS), np.float32)
        for row, mel, count in zip(table, mels, length):
            row[:count] = mel[:count]
        return np.asarray(embed(encoder, table, length))

    return speakers.vectors(index, vectors)


def samples(config, data: Data, workdir: Path) -> None:
    """A language model writes no samples while it learns."""


# -------------------------------------------------------------------- to look at


def describe(config, trained: states.Recipe, data: Data) -> str:
    """Mesh, sizes, and the first batch as text: what --dry_run prints."""
    abstract = trained.abstract()
    count = sum(leaf.size for leaf in abstract.params.values())
    moved = trained.trained() or tuple(abstract.adapters)
    leaves = abstract.params | abstract.adapters
    batch = next(data.batches(0))
    examples = int(sum(row.max() for row in batch["segment"]))
    used = float((batch["segment"] > 0).mean())
    lines = [
        f"stage {config.name}, {config.optimizer.steps} steps",
        f"mesh {dict(trained.mesh.shape)} of "
        f"{trained.mesh.devices.flat[0].device_kind}",
        f"parameters: {count:,}, of which {sum(leaves[p].size for p in moved):,} are "
        "trained",
        f"state: {_bytes_per_device(abstract) / 2**30:.3f} GiB a device",
        *_placements(abstract.params | abstract.adapters),
        f"positions a step: {config.rows * config.length:,}, "
        f"{used:.1%} of them used in the first batch",
        f"corpus: {data.plan.index.rows.sum():,} utterances, "
        f"{data.plan.epoch_rows:,} rows an epoch, left out: {data.plan.left_out}",
        f"first batch, {examples} examples on this process; its first row:",
        packing.describe(trained.config, data.tokenizer, batch, 0),
    ]
    return "\n".join(lines)


def _placements(params: dict) -> list[str]:
    """A line for each parameter: path, shape, and the mesh axes that cut it."""
    return [
        f"  {path} {tuple(leaf.shape)} {tuple(leaf.sharding.spec) or 'whole'}"
        for path, leaf in params.items()
    ]


def _bytes_per_device(abstract) -> int:
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(abstract)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def compile_ahead(config, topology: str) -> str:
    """The step compiled for TPUs that are not here, and what it needs.

    Raises: ahead.DoesNotFit.
    """
    devices = ahead.devices(topology)
    mesh = ahead.mesh(devices, **mesh_shape(config, len(devices)))
    trained = recipe(config, mesh)
    shape = row_shape(config, config.length // USUAL_POSITIONS)
    arrays = packing.empty(trained.config, 1, shape)
    places = trained.batch_shardings(arrays)
    batch = {
        name: jax.ShapeDtypeStruct(
            (config.rows, *value.shape[1:]), value.dtype, sharding=places[name]
        )
        for name, value in arrays.items()
    }
    compiled = ahead.compile_step(
        trained.compiled(), trained.abstract(), batch, devices=mesh
    )
    positions = config.rows * config.length
    segment = config.length if config.name == "s3" else USUAL_POSITIONS
    frames = FRAME_SHARE * positions * config.loss.predictor_fraction
    work = flops.training(
        trained.config,
        positions=positions,
        pairs=positions * (segment + 1) / 2,
        frames=frames,
    )
    found = ahead.report(
        compiled,
        devices=mesh,
        model=work.total,
        executed=flops.executed(work, config.compute.remat),
    )
    found.check()
    return found.text()
