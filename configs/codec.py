"""Training of the 12Hz codec: encoder, quantiser and decoder, against discriminators.

    python -m data.waves --manifest corpus/manifest.jsonl --out waves \\
        --teacher whisper --teacher_dir WHISPER
    python train.py --config configs/codec.py:stage=warm,size=small \\
        --config.data.waves=waves --workdir=WARM
    python train.py --config configs/codec.py:stage=gan,size=small \\
        --config.data.waves=waves --config.model.hand_over=WARM --workdir=RUN
    python train.py --config configs/codec.py:stage=gan,size=small \\
        --config.data.waves=waves --workdir=RUN --export CODEC

stage: warm (mel and teacher alone: cheap), gan (all losses; begin it with
--config.model.hand_over=RUN of warm), mimi (adversarial and feature losses only, their
gradients balanced), decoder (the decoder of --config.model.source alone, codes frozen:
for better or other data).  size: 12hz (released widths), small, tiny.  device: cpu
(two cores) or gpu, which alters the batches and discriminators of small.

On a CPU start it with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment: XLA
maps its memory anew in every step, and large pages save 20 to 30 % of the time.

The paper names the losses and no number (arXiv 2601.15621): weights are DAC's, the
quantiser's and the balancer's settings Mimi's, the rest choices of this project.
"""

import ml_collections

from configs import base

SIZES = ("12hz", "small", "tiny")
DEVICES = ("cpu", "gpu")
STAGES = ("gan", "warm", "mimi", "decoder")
CHOICES = {
    "compute.dtype": ("bfloat16", "float32"),
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
)
NARROW = dict(
    periods=(2, 3, 5, 7, 11),
    period_channels=(8, 16, 32, 64, 64),
    stft_ffts=(1024, 512, 256),
    stft_channels=8,
    stft_strides=(2, 2, 2, 2),  # half the work of EnCodec's (1, 2, 2, 2)
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
        if stage == "warm":
            # 4e-4 learnt more slowly, 2e-3 no faster (300 steps of 4 crops)
            config.optimizer.peak = 1e-3
            config.quantizer.update(dropout=0.3, bypass=0.3)
        if chosen["device"] == "cpu":
            # half as much at once (4 x 8 frames, 4 heard) learnt nothing in 400 steps
            config.update(rows=4, frames=16, heard=8)
            config.discriminators.update(NARROW)
            config.compute.dtype = "float32"
        else:
            config.rows = 32
    return config.lock()


def _for_stage(config, stage: str) -> None:
    loss = config.loss
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
            train="all",  # all | decoder: encoder and codebooks stay
            model=dict(
                size=size,
                # a speech tokenizer's directory: weights to start from, and the side
                # files of an export
                source="",
                start="random",  # random | weights (of `source`)
                hand_over="",  # the directory of an earlier stage
                take="params",  # of it: params | all (optimiser, step, averages too)
                averaged=True,  # whether --export takes the averaged generator
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
            optimizer=adam | dict(ema=0.999),
            discriminator_optimizer=dict(adam),
            loss=dict(
                mel=15.0,
                adversarial=1.0,
                feature=2.0,
                commitment=0.25,
                semantic=1.0,
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
            ),
            discriminators=dict(WIDE),
            compute=dict(
                dtype="bfloat16",  # of the generator; weights are float32
                mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1),
            ),
            samples=4,  # held-out clips that are written as sound and picture
            log_every=50,  # steps
            save_every=1000,  # steps
            keep_last=2,  # checkpoints
            keep_best=0,  # more, by the held-out mel distance
            profile=(0, 0),  # (first step of a run, steps) to trace
        )
    )
