"""A codec's training configuration -> the objects of the library and of the data path.

The functions are those of `build`, which does the same for the language model.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import base, build, codec
from data import optional
from data.loading import crops
from qwen3tts_jax import sharding, speech_tokenizer
from qwen3tts_jax.audio import io as audio
from qwen3tts_jax.audio import spectrogram_image as pictures
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.config import released, small, tiny, tokenizer_12hz
from qwen3tts_jax.nn import quantizer
from qwen3tts_jax.training import checkpointing as checkpoint
from qwen3tts_jax.training import mesh_shape as meshes
from qwen3tts_jax.training import optimizer, trainer
from qwen3tts_jax.training import throughput as meters
from qwen3tts_jax.training.codec import discriminators, mel_scaffold
from qwen3tts_jax.training.codec import generator as codecs
from qwen3tts_jax.training.codec import losses as codec_losses
from qwen3tts_jax.training.codec import train_step as states

CHECKPOINTS = build.CHECKPOINTS
PREPROCESSOR = "preprocessor_config.json"
SAMPLES, FIGURES = "samples", "figures.jsonl"  # of a run
HEARD = 4  # of the samples, how many are written as sound and picture
# what an earlier stage must have had; in pieces, the scaffold too
NEEDED, NEEDED_IN_PIECES = r"^(encoder|decoder)\.", r"^(encoder|decoder|scaffold)\."
SAMPLE_FRAMES = 50  # of a clip that is written as sound and picture: 4 s


def hf_config(config) -> dict:
    """config.json of the codec: that of `source`, or of the size."""
    if config.model.source:
        return hub.read_json(hub.resolve(config.model.source) / "config.json")
    sizes = dict(
        zip(
            codec.SIZES,
            (released.tokenizer_12hz_config, small.tokenizer_config)
            + (tiny.tokenizer_config,),
        )
    )
    return sizes[config.model.size]()


def mesh_shape(config, devices: int) -> dict[str, int]:
    """As `build.mesh_shape`."""
    return meshes.fit(config.compute.mesh, devices, rows=config.rows)


def recipe(config, mesh) -> states.Recipe:
    """All that is static in a step.  Raises: ValueError as `base.check`."""
    base.check(config, codec.CHOICES, codec.COUNTS)
    loss, quantisation = dict(config.loss), dict(config.quantizer)
    weights = {name: loss[name] for name in (*codecs.HEARD, *codecs.OWN)}
    dim = crops.Waves(_folders(config)).teacher_dim if config.data.teacher else 0
    if not dim:
        weights["semantic"] = 0.0
    balancer = None
    if loss["balancer"]:
        heard = tuple((n, weights[n]) for n in codecs.HEARD if weights[n] > 0)
        balancer = codec_losses.Balancer(heard, decay=loss["balancer_decay"])
    if config.heard > config.frames:
        raise ValueError(
            f"got heard {config.heard}, expected at most frames = {config.frames}"
        )
    learning = quantizer.Learning(quantisation.pop("decay"), quantisation.pop("dead"))
    return states.Recipe(
        config=tokenizer_12hz.Tokenizer12HzConfig.from_hf(hf_config(config)),
        optimizer=_optimizer(config.optimizer),
        discriminator_optimizer=_optimizer(config.discriminator_optimizer),
        settings=codecs.Settings(
            weights=tuple(weights.items()),
            discriminators=discriminators.Config(**dict(config.discriminators)),
            kind=loss["kind"],
            scales=codec_losses.MelScales(silence_db=loss["silence_db"]),
            balancer=balancer,
            learning=learning,
            teacher_dim=dim if weights["semantic"] > 0 else 0,
            heard=config.heard,
            last=config.last,
            train=config.train,
            scaffold=config.model.scaffold,
            **quantisation,
        ),
        dtype=config.compute.dtype,
        mesh=mesh,
    )


def _optimizer(values) -> optimizer.Optimizer:
    return optimizer.Optimizer(**dict(values) | dict(freeze=tuple(values.freeze)))


def _folders(config) -> tuple[str, ...]:
    folders = _listed(config.data.waves)
    if not folders:
        raise ValueError(
            "got no --config.data.waves, expected folders that `python -m data.waves` "
            "has filled"
        )
    return folders


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


class Data:
    """The crops of a configuration, as this process sees them.

    Attributes:
        position: JSON that says which batch a step number means.
    """

    def __init__(self, config, trained: states.Recipe):
        self.config, self.trained = config, trained
        self.waves = crops.Waves(_folders(config))
        self.position = dict(
            stage=config.name,
            seed=config.seed,
            rows=config.rows,
            frames=config.frames,
            waves=self.waves.fingerprint,
        )

    def batches(self, first: int) -> Iterator[dict]:
        """From batch `first` on, this process's rows of each."""
        d = self.config.data
        made = self._crops(
            self.waves,
            self.config.optimizer.steps,
            pools=tuple(crops.Pool(*pool) for pool in d.pools),
            gain_db=tuple(d.gain_db),
        )
        yield from crops.loader(made, first)

    def held_out(self) -> Iterator[dict]:
        """Always the same crops of the held-out waves."""
        d = self.config.data
        found = crops.Waves(_listed(d.held_out))
        yield from crops.loader(self._crops(found, d.held_out_batches))

    def _crops(self, found: crops.Waves, steps: int, **options) -> crops.Crops:
        return crops.Crops(
            found,
            seed=self.config.seed,
            steps=steps,
            rows=self.config.rows,
            frames=self.config.frames,
            host=jax.process_index(),
            hosts=jax.process_count(),
            **options,
        )


def schedule(config) -> trainer.Schedule:
    return build.schedule(config)


def meter(recipe: states.Recipe) -> meters.Meter:
    """Times and frames; a codec's FLOPs are not counted."""
    return meters.Meter(flops=lambda figures: 0.0, peak=None)


def begin(config, run: trainer.Trainer) -> states.CodecState:
    """The first state: random, from a tokenizer's weights, or from an earlier stage."""
    params_key, state_key = jax.random.split(jax.random.key(config.seed))
    wanted, recipe = config.model, run.recipe
    if wanted.hand_over and wanted.take == "all":
        return _taken_over(config, run)
    params = jax.jit(recipe.fresh)(params_key)
    if config.train == "join":
        params = _joined(config, params, run)
    elif wanted.hand_over:
        params = _earlier(wanted.hand_over, params, run)
        if wanted.decoder:
            other = _earlier(wanted.decoder, params, run)
            params |= {p: v for p, v in other.items() if p.startswith("decoder.")}
    elif wanted.start == "weights":
        params |= _weights(config)
        run.say(f"took the weights of {wanted.source}")
    return run.fresh(params, state_key)


def _taken_over(config, run: trainer.Trainer) -> states.CodecState:
    """Everything of an earlier run, at step 0."""
    folder = config.model.hand_over
    earlier = checkpoint.Checkpoints(Path(folder) / CHECKPOINTS)
    state, _, step = trainer.read_state(earlier, run.recipe)
    run.say(f"took everything of step {step} of {folder}")
    return state.replace(step=jnp.zeros_like(state.step))


def _joined(config, params: dict, run: trainer.Trainer) -> dict:
    """Path -> array of one codec, from a run of stage mel and one of stage vocoder."""
    halves = mel_scaffold.Halves.of(run.recipe.config.decoder)
    found = []
    for field in ("hand_over", "decoder"):
        folder = config.model[field]
        if not folder:
            raise ValueError(
                f"got stage join without --config.model.{field}, expected "
                "hand_over=RUN of stage mel and decoder=RUN of stage vocoder"
            )
        found.append(_earlier(folder, params, run))
    return mel_scaffold.fold(*found, halves)


def _earlier(folder: str, fresh: dict, run: trainer.Trainer) -> dict:
    """Path -> array of an earlier run; of parts that it did not have the fresh ones."""
    earlier = checkpoint.Checkpoints(Path(folder) / CHECKPOINTS)
    in_pieces = run.recipe.settings.train in codecs.IN_PIECES
    needed = NEEDED_IN_PIECES if in_pieces else NEEDED
    params, step = trainer.read_similar(earlier, fresh, needed, run.recipe.mesh)
    run.say(f"took the parameters of step {step} of {folder}")
    return params


def _weights(config) -> dict:
    """Path -> array of encoder and decoder of an official speech tokenizer."""
    if not config.model.source:
        raise ValueError(
            "got --config.model.start weights without --config.model.source, expected "
            "a speech tokenizer's directory"
        )
    found = speech_tokenizer.Qwen3TTSTokenizer.from_pretrained(config.model.source)
    both = dict(encoder=found.encoder, decoder=found.decoder)
    return {
        f"{name}.{path}": leaf
        for name, part in both.items()
        for path, leaf in states.flatten(part).items()
    }


def write_export(config, workdir: Path, out: Path) -> int:
    """The best checkpoint of a run as an official speech tokenizer; its step."""
    codec_, step = load(config, workdir)
    with hub.new_directory(out) as made:
        codec_.save_pretrained(made, dtype=jnp.dtype(config.model.export_dtype))
        preprocessor = made / PREPROCESSOR
        if not preprocessor.exists():  # a source has its own
            hub.write_json(preprocessor, released.TOKENIZER_PREPROCESSOR_CONFIG)
    return step


def load(config, workdir: Path) -> tuple[speech_tokenizer.Qwen3TTSTokenizer, int]:
    """(the codec of a run's best checkpoint, its step)."""
    if not (workdir / CHECKPOINTS).is_dir():
        raise FileNotFoundError(
            f"got {workdir}, which has no checkpoints; give the --workdir of a run"
        )
    trained = recipe(config, sharding.make_mesh())
    checkpoints = checkpoint.Checkpoints(workdir / CHECKPOINTS)
    state, _, step = trainer.read_state(checkpoints, trained, checkpoints.best())
    return tokenizer(config, trained, state), step


def tokenizer(config, trained: states.Recipe, state: states.CodecState):
    """The codec that a state stands for, as a user holds it."""
    parts = trained.model(state, averaged=config.model.averaged)
    source = config.model.source
    return speech_tokenizer.Qwen3TTSTokenizer(
        trained.config,
        parts.encoder,
        parts.decoder,
        hf_config=hf_config(config),
        source=hub.resolve(source) if source else None,
    )


def samples(config, data: Data, workdir: Path):
    """A function (state, step) that writes held-out clips as sound and picture.

    With config.figures it also measures them, into FIGURES of the run.
    """
    if not config.data.held_out:
        return None
    scorer = optional.load("data.preparation.quality") if config.figures else None
    found = crops.Waves(_listed(config.data.held_out))
    chosen = np.linspace(0, len(found.clips) - 1, config.samples).astype(int)
    clips = [found.clip(int(clip), SAMPLE_FRAMES) for clip in chosen]
    names = [found.ids[clip].replace("/", "_") for clip in chosen]
    batch = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    listen = data.trained.listening()
    reconstruct = listen and jax.jit(lambda state: listen.reconstruct(state, batch))

    def write(state: states.CodecState, step: int) -> None:
        if listen is None:
            return
        made = np.clip(np.asarray(reconstruct(state).wave), -1, 1)
        folder = workdir / SAMPLES / f"step-{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, real, wave in zip(names[:HEARD], batch["wave"], made):
            audio.write_wav(folder / f"{name}.wav", wave, audio.SAMPLE_RATE)
            pictures.spectrograms(folder / f"{name}.png", [real, wave])
        if scorer:
            values = dict(step=step) | similarity(scorer, batch["wave"], made)
            with open(workdir / FIGURES, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            print(", ".join(f"{n} {v:.3f}" for n, v in values.items()))

    return write


def similarity(scorer, real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Mean STOI and PESQ of float32 [B, W] at 24 kHz against the originals."""
    rates = (audio.SAMPLE_RATE, scorer.RATE)
    pairs = [[audio.resample(w, *rates) for w in both] for both in zip(real, made)]
    figures = {}
    for name, score in dict(stoi=scorer.stoi, pesq=scorer.wideband_pesq).items():
        values = [score(*pair) for pair in pairs]
        figures[name] = float(np.mean([v for v in values if v is not None]))
    return figures


def describe(config, trained: states.Recipe, data: Data) -> str:
    """Sizes and the data: what --dry_run prints."""
    abstract = trained.abstract()
    sizes: dict[str, int] = {}
    for path, leaf in abstract.params.items():
        part = path.split(".")[0]
        sizes[part] = sizes.get(part, 0) + leaf.size
    moved = sum(abstract.params[path].size for path in trained.trained())
    seconds = data.waves.clips["samples"].sum() / audio.SAMPLE_RATE
    return "\n".join(
        [
            f"codec, stage {config.name}, {config.optimizer.steps} steps",
            f"mesh {dict(trained.mesh.shape)} of "
            f"{trained.mesh.devices.flat[0].device_kind}",
            "parameters: " + ", ".join(f"{n} {c:,}" for n, c in sizes.items()),
            f"of the generator {moved:,} are trained",
            f"a step: {config.rows} crops of {config.frames * 0.08:.2f} s",
            f"waves: {len(data.waves.clips):,} clips, {seconds / 3600:.2f} h, teacher "
            f"{data.waves.teacher or 'none'}",
        ]
    )
