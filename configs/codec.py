"""Training of the 12Hz codec: encoder, quantiser and decoder, against discriminators.

    python -m data.waves --manifest corpus/manifest.jsonl --out waves \\
        --teacher whisper --teacher_dir WHISPER
    python train.py --config configs/codec.py:stage=warm,size=small \\
        --config.data.waves=waves --workdir=WARM
    python train.py --config configs/codec.py:stage=gan,size=small \\
        --config.data.waves=waves --config.model.hand_over=WARM --workdir=RUN
    python train.py --config configs/codec.py:stage=gan,size=small \\
        --config.data.waves=waves --workdir=RUN --export CODEC

stage: gan (all losses), warm (mel and teacher alone: cheap; gan goes on from it with
--config.model.hand_over=RUN), mimi (adversarial and feature losses only, their
gradients balanced), decoder (the decoder alone, codes frozen: of
--config.model.source, for better or other data, or after stage encoder).
A codec learns sooner in pieces (see qwen3tts_jax/training/codec/mel_scaffold.py): mel
and vocoder, each from nothing; join (hand_over=RUN of mel, decoder=RUN of vocoder);
encoder (hand_over=RUN of mel, beside join); decoder (hand_over=RUN of encoder,
decoder=RUN of join); then warm and gan.
size: 12hz (released widths), small, tiny.  device: cpu (two cores) or gpu, which alters
the batches and discriminators of small.

On a CPU start it with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment: XLA
maps its memory anew in every step, and large pages save 20 to 30 % of the time.

The paper names the losses and no number (arXiv 2601.15621): weights are DAC's, the
quantiser's and the balancer's settings Mimi's, the rest choices of this project.
"""

import ml_collections

from configs import base

SIZES = ("12hz", "small", "tiny")
DEVICES = ("cpu", "gpu")
PIECES = ("mel", "vocoder", "join", "encoder")
STAGES = ("gan", "warm", "mimi", "decoder", *PIECES)
CHOICES = {
    "compute.dtype": ("bfloat16", "float32"),
    "model.export_dtype": ("float32", "bfloat16"),
    "model.start": ("random", "weights"),
    "model.take": ("params", "all"),
    "loss.kind": ("hinge", "lsgan"),
}
COUNTS = (
    *("rows", "frames", "heard", "log_every", "save_every", "keep_last"),
    *("optimizer.steps", "discriminator_optimizer.steps", "samples"),
)
# discriminators' widths
WIDE = dict(
    periods=(2, 3, 5, 7, 11),
    period_channels=(32, 128, 512, 1024, 1024),
    stft_ffts=(2048, 1024, 512, 256, 128),
    stft_channels=32,
    stft_strides=(1, 2, 2, 2),
    spectra=(),
)
NARROW = dict(
    periods=(2, 3, 5, 7, 11),
    period_channels=(8, 16, 32, 64, 64),
    stft_ffts=(),  # over time and frequency: four fifths of all the work
    spectra=(256, 1024),
)
TINY = dict(
    periods=(2, 3), period_channels=(4, 8), stft_ffts=(256, 128), stft_channels=4
)


def get_config(text: str = "") -> ml_collections.ConfigDict:
    """text: stage=...,size=...,device=..., as after the colon of --config."""
    chosen = base.parse(text, stage=STAGES, size=SIZES, device=DEVICES)
    stage, size = chosen["stage"], chosen["size"]
    config = _fields(size)
    config.name = stage
    _for_stage(config, stage)
    if size == "tiny":
        config.update(rows=2, frames=6, heard=4)
        config.discriminators.update(TINY)
        config.compute.dtype = "float32"
    if size == "small":
        _set_small(config, stage, chosen["device"])
    return config.lock()


# What the pieces of a small codec learn with, on one core of a CPU: many small batches.
# Muon took the vocoder in 2 minutes where Adam took 4; on the 5.9 million parameters of
# stage mel its step costs twice Adam's and gains less.
ADAM = dict(b1=0.9, b2=0.98, clip=1.0, weight_decay=0.01)
MUON = dict(kind="muon", clip=10.0, weight_decay=0.01)
SMALL = dict(
    mel=(
        dict(rows=6, frames=32, heard=32),
        dict(ADAM, steps=12_000, peak=1.5e-3, warmup=200),
    ),
    vocoder=(
        dict(rows=2, frames=8, heard=8),
        dict(MUON, steps=9_000, peak=2e-3, warmup=250),
    ),
    join=(
        dict(rows=2, frames=20, heard=8, last=True),
        dict(MUON, steps=8_000, peak=1e-3, warmup=200),
    ),
    # crops as long as attention can be taught to look back
    encoder=(
        dict(rows=2, frames=32, heard=32),
        dict(MUON, b1=0.9, steps=10_000, peak=1.5e-3, warmup=200),
    ),
    decoder=(
        dict(rows=2, frames=20, heard=8, last=True),
        dict(MUON, steps=8_000, peak=5e-4, warmup=200),
    ),
    warm=(
        dict(rows=4, frames=20, heard=8, last=True),
        dict(MUON, steps=10_000, peak=3e-4, warmup=200),
    ),
    gan=(
        dict(rows=2, frames=20, heard=8, last=True),
        dict(MUON, steps=10_000, peak=3e-4, warmup=200),
    ),
    mimi=(dict(rows=4, frames=16, heard=8), {}),
)


def _set_small(config, stage: str, device: str) -> None:
    values, optimizer = SMALL[stage]
    config.model.scaffold = True
    config.update(values, samples=16, figures=True)
    config.optimizer.update(optimizer)
    if stage in (*PIECES, "decoder"):  # at the end the rate is so low that all is still
        config.optimizer.update(ema=0.0, final=0.03)
    if stage != "mimi":  # Mimi's own stay
        config.quantizer.update(dropout=0.2, bypass=0.05, decay=0.98)
    if stage == "mel":
        free = config.optimizer.steps // 2
        config.quantizer.update(free_steps=free, noise=0.25)
    if stage == "decoder":
        config.loss.adversarial = config.loss.feature = 0.0
    if device == "cpu":
        config.discriminators.update(NARROW)
        config.compute.dtype = "float32"
    else:
        config.rows = 32


def _set_piece(config, stage: str) -> None:
    """A stage of training in pieces: what is not its own loss rests."""
    config.train, config.model.scaffold = stage, True
    own = dict(mel=("commitment", "semantic", "size", "log_mel"))
    own |= dict(encoder=("distillation",), vocoder=("mel",), join=("mel",))
    for name in ("mel", "adversarial", "feature", "commitment", "semantic"):
        config.loss[name] *= name in own[stage]
    for name in own[stage]:
        config.loss[name] = PIECE_WEIGHTS.get(name, config.loss[name])


PIECE_WEIGHTS = dict(log_mel=1.0, distillation=1.0, size=0.1, semantic=0.1)


def _for_stage(config, stage: str) -> None:
    loss = config.loss
    if stage in PIECES:
        _set_piece(config, stage)
    if stage == "warm":
        loss.adversarial = loss.feature = 0.0
        # clip: every step moves by its direction alone, loud crops by no more
        config.optimizer.update(peak=4e-4, warmup=300, steps=10_000, clip=1.0)
    if stage == "mimi":
        loss.mel, loss.adversarial, loss.feature, loss.balancer = 0.0, 4.0, 4.0, True
    if stage == "decoder":
        config.model.start, config.train = "weights", "decoder"
        loss.commitment = loss.semantic = 0.0
        for one in (config.optimizer, config.discriminator_optimizer):
            one.peak = 1e-5  # an open recipe's for the official decoder


def _fields(size: str) -> ml_collections.ConfigDict:
    adam = dict(
        steps=400_000,  # of the stage
        peak=1e-4,  # learning rate after the warm-up
        warmup=100,  # steps
        schedule="cosine",  # cosine | linear | constant
        final=0.1,  # of the peak, at the last step
        kind="adamw",  # adamw | muon (matrices; AdamW for the rest)
        momentum=0.95,  # of muon
        b1=0.8,
        b2=0.99,
        eps=1e-8,
        weight_decay=0.01,  # not of norms and biases
        clip=1e3,  # global norm of the gradient: against accidents
        ema=0.0,  # decay of averaged parameters; 0: none
        freeze=(),  # patterns over parameter paths
    )
    return ml_collections.ConfigDict(
        dict(
            task="codec",
            name="",  # of the stage
            seed=0,  # of the parameters, the data's order and all that is drawn
            # all | decoder (encoder and codebooks stay), or a piece: mel | vocoder |
            # join | encoder
            train="all",
            model=dict(
                size=size,
                # a speech tokenizer's directory: weights to start from, and the side
                # files of an export
                source="",
                start="random",  # random | weights (of `source`)
                hand_over="",  # the directory of an earlier stage
                # that of another one, from which the decoder is taken; stage join: of
                # stage vocoder, its fast half
                decoder="",
                scaffold=False,  # whether there are the parts that pieces need
                take="params",  # of it: params | all (optimiser, step, averages too)
                averaged=True,  # whether --export takes the averaged generator
                export_dtype="float32",  # of its weights; codebooks stay float32
            ),
            data=dict(
                waves="",  # folders that data/waves.py filled, with commas between
                held_out="",  # others, to look at when saving; "" for none
                held_out_batches=8,
                teacher=True,  # whether the teacher in `waves` is used
                pools=((1.0, ""),),  # (weight, pattern over a clip's source) each
                gain_db=(-6.0, 6.0),  # range of each crop's change of level
            ),
            rows=16,  # crops of a step, over all devices
            frames=100,  # of a crop: 8 s are encoded
            heard=25,  # of these, how many become sound: 2 s
            last=False,  # whether those are the last ones, not any
            optimizer=adam | dict(ema=0.999),
            discriminator_optimizer=dict(adam),
            loss=dict(
                mel=15.0,
                adversarial=1.0,
                feature=2.0,
                commitment=0.25,
                semantic=1.0,
                size=0.0,  # of what is quantised, beyond a mean square of 1
                log_mel=0.0,  # of stage mel: distance of normalised log mels
                distillation=0.0,  # of stage encoder: share of variance not explained
                kind="hinge",  # hinge | lsgan
                # dBFS, noise below it counts as silence in the mel distance
                silence_db=-65.0,
                # weight gradients at the wave, not losses (EnCodec, Mimi)
                balancer=False,
                balancer_decay=0.999,
            ),
            quantizer=dict(
                decay=0.99,  # of the EMA statistics, a step
                dead=0.1,  # of the average usage: below it an entry is replaced
                dropout=0.5,  # probability that a crop uses codebooks 1..n only
                bypass=0.5,  # ... that it is not quantised at all
                free_steps=0,  # first steps in which nothing is
                noise=0.0,  # deviation, added to what is not (stage mel)
            ),
            discriminators=dict(WIDE),
            compute=dict(
                dtype="bfloat16",  # of the generator; weights are float32
                mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1),
            ),
            samples=4,  # held-out clips that are listened to when saving
            figures=False,  # whether their STOI and PESQ are measured (extra eval)
            log_every=50,  # steps
            save_every=1000,  # steps
            keep_last=2,  # checkpoints
            keep_best=0,  # more, by the held-out mel distance
            profile=(0, 0),  # (first step of a run, steps) to trace
        )
    )
