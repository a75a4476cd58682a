"""Pretraining of talker and code predictor in three stages (arXiv 2601.15621, 3.2).

Command   python train.py --config configs/pretrain.py:stage=s1,size=0.6B \\
              --config.model.source=CHECKPOINT --config.data.corpus=CORPUS --workdir=RUN
          then stage=s2 with --config.model.hand_over=RUN of s1, then stage=s3.
          CHECKPOINT gives the text tokenizer and the codec (it may be a random one);
          size=tiny goes through all stages in minutes on two CPU cores; size=small is
          the family that the package ships (add its voices when it is exported:
          --export=OUT --config.model.export_voices="('NAME=SPEAKER', ...)").
Hardware  0.6B and 1.7B: 64 chips of 16 GB and more (see --compile_only); small: two CPU
          cores, or one GPU (device=gpu); tiny: a CPU.
Time      derived, not measured, for 5 million hours (225 G frames) at an MFU of 40 %:
          1.7B 3,030 H100-hours (1,850 with predictor_fraction=1/16); 0.6B 1,780 (630).
Metric    nothing was pretrained at full size yet.  At step 0 every codebook stands near
          its uniform cross-entropy, ln 3072 = 8.03 and ln 2048 = 7.62 nats.

The paper names the stages, their lengths and that S2 takes stratified quality and S3
more long speech; every other number here is ours, from open recipes: AdamW
(0.9, 0.95), weight decay 0.1, cosine to a tenth as Qwen3-style pretraining does.
"""

from configs import base

HIGH = ("high",)
LONG = 60.0  # seconds: "long speech" of stage 3
ANY = ((), (), 0.0, float("inf"))

STAGES = dict(
    # general: everything, as it comes
    s1=dict(length=8192, steps=150_000, peak=3e-4, warmup=2000, pools=((1.0, *ANY),)),
    # high quality: the decay of the learning rate falls on clean data
    s2=dict(
        length=8192,
        steps=30_000,
        peak=1e-4,
        warmup=500,
        schedule="linear",
        pools=((1.0, (), HIGH, 0.0, float("inf")),),
    ),
    # long context: half of all positions from recordings of a minute and more
    s3=dict(
        length=32768,
        steps=10_000,
        peak=3e-5,
        warmup=200,
        pools=(
            (0.5, (), HIGH, LONG, float("inf")),
            (0.5, (), HIGH, 0.0, LONG),
        ),
    ),
)
# positions in a step stay the same from stage to stage: 2.1 M
ROWS = dict(s1=256, s2=256, s3=64)

TINY_LENGTH = dict(s1=512, s2=512, s3=2048)
TINY_ROWS = dict(s1=4, s2=4, s3=1)
TINY_LONG = 3.0  # seconds: the recordings at hand are short

# The small family, on two CPU cores: ten hours of speech are 80 steps of s1.
SMALL = dict(
    s1=dict(length=1024, rows=8, steps=6000, peak=1e-3, warmup=200),
    s2=dict(length=1024, rows=8, steps=1000, peak=3e-4, warmup=50),
    s3=dict(length=2048, rows=4, steps=500, peak=1e-4, warmup=50),
)
GPU_ROWS = dict(s1=64, s2=64, s3=32)
SMALL_LONG = 10.0  # seconds: paragraphs


def get_config(text: str = ""):
    """text: "stage=s1|s2|s3,size=0.6B|1.7B|small|tiny,device=cpu|gpu" (of small)."""
    sizes = ("0.6B", "1.7B", "small", "tiny")
    devices = ("cpu", "gpu")
    chosen = base.parse(text, stage=tuple(STAGES), size=sizes, device=devices)
    stage, size = chosen["stage"], chosen["size"]
    config, values = base.get_config(), dict(STAGES[stage])
    config.name, config.model.size = stage, size
    config.length, config.rows = values.pop("length"), ROWS[stage]
    config.data.pools = values.pop("pools")
    config.optimizer.update(values)
    if stage == "s3":
        config.compute.mesh.sequence = 4
    if size == "tiny":
        _shrink(config, stage)
    if size == "small":
        _set_small(config, stage)
        if chosen["device"] == "gpu":
            config.rows, config.loss.predictor_fraction = GPU_ROWS[stage], 0.5
            config.compute.dtype, config.data.workers = "bfloat16", 4
    return config


def _set_small(config, stage: str) -> None:
    """The small family: few hours of speech, seen often."""
    values = dict(SMALL[stage])
    config.length, config.rows = values.pop("length"), values.pop("rows")
    config.optimizer.update(values, ema=0.999)
    config.compute.update(dtype="float32", remat="none")
    config.compute.mesh.sequence = 1
    config.loss.predictor_fraction = 1 / 8
    config.data.update(
        rounds=8,  # each utterance in several layouts
        reference=0.1,  # a voice is told by its vector first of all
        reference_frames=75,
        drop_language=0.2,  # infer.py leaves the language to the text
    )
    config.update(log_every=10, save_every=200)
    good = ((), ("medium", "high"))
    if stage == "s2":
        config.data.pools = ((1.0, *good, 0.0, float("inf")),)
    if stage == "s3":
        config.data.pools = (
            (0.5, *good, SMALL_LONG, float("inf")),
            (0.5, *good, 0.0, SMALL_LONG),
        )


def _shrink(config, stage: str) -> None:
    """Small enough for two CPU cores and a thousand short recordings."""
    config.length, config.rows = TINY_LENGTH[stage], TINY_ROWS[stage]
    steps, peak = (120, 3e-3) if stage == "s1" else (60, 1e-3)
    config.optimizer.update(steps=steps, warmup=10, peak=peak)
    config.compute.update(dtype="float32", remat="none")
    # scores of 15 x 2,048 codes for every frame are most of a small model's work
    config.loss.predictor_fraction = 1 / 8
    config.compute.mesh.sequence = 1
    config.update(log_every=10, save_every=60)
    config.data.workers = 0
    if stage != "s1":
        # the plain preparation has no scorers, so that its best tier is the middle one
        good = ("medium", "high")
        config.data.pools = ((1.0, (), good, 0.0, float("inf")),)
    if stage == "s3":
        config.data.pools = (
            (0.5, (), good, TINY_LONG, float("inf")),
            (0.5, (), good, 0.0, TINY_LONG),
        )
