"""Every field of a training configuration, with its unit and its plainest value.

`pretrain.py` and `finetune.py` fill it in; --config.FIELD=VALUE on the command line
changes any of them, and an unknown one is refused.  `build.py` turns it into objects.
"""

import functools

import ml_collections

CHOICES = {
    "data.voice_from": ("mel", "x_vector"),
    "compute.dtype": ("bfloat16", "float32"),
    "model.start": ("random", "weights", "qwen3"),
    "model.take": ("params", "all"),
}
# one of each at least
COUNTS = (
    *("length", "rows", "accumulate", "log_every", "save_every", "keep_last"),
    *("data.rounds", "data.block_shards", "optimizer.steps", "loss.predictor_chunk"),
)


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(
        dict(
            task="lm",  # lm | codec (configs/codec.py)
            name="",  # of the stage: s1, s2, s3, finetune
            seed=0,  # of the parameters, the data's order and all that is drawn
            model=dict(
                size="0.6B",  # 0.6B | 1.7B | small | tiny
                variant="base",  # base | custom_voice | voice_design
                # a checkpoint directory: its text tokenizer and codec are used
                source="",
                # random | weights (of `source`) | qwen3 (random, with the backbone of
                # the text checkpoint `backbone`)
                start="random",
                backbone="",
                # the directory of an earlier stage, and what is taken of it:
                # params | all (optimiser, step and averages too)
                hand_over="",
                take="params",
                # whether --export makes the corpus's voices speakers of a CustomVoice
                # checkpoint; else the variant stays
                export_speakers=False,
                # voices of the corpus that --export names beside a Base checkpoint,
                # SPEAKER or NAME=SPEAKER each; the first is the default
                export_voices=(),
            ),
            data=dict(
                corpus="",  # a directory that data/prepare.py and data/index.py made
                held_out="",  # another, to look at when saving; "" for none
                held_out_batches=8,
                # (weight, languages, tiers, least seconds, most seconds) each; weights
                # are shares of positions, () is any
                pools=((1.0, (), (), 0.0, float("inf")),),
                streaming=0.5,  # probability that the text trails the frames
                drop_language=0.1,  # ... that the language tag is left out
                instruct=1.0,  # ... that an instruction of the record is used
                voice="x_vector",  # x_vector | id | none
                voice_from="mel",  # mel (the encoder is trained) | x_vector (read)
                no_voice=0.0,  # probability that the voice is left out
                reference=0.3,  # ... of an in-context clone
                reference_frames=250,  # longest reference
                voices=0,  # most voices in a row; 0: as many as fit
                rounds=1,  # layouts that an utterance sees before they repeat
                block_shards=4,  # shards that are shuffled together
                workers=2,  # loader processes of each host; 0: a thread
                max_bad_records=0,  # unreadable records that are skipped and counted
            ),
            length=8192,  # positions in a row
            rows=256,  # rows in the batch of a step, over all devices
            accumulate=1,  # parts of a step's rows that follow one another
            optimizer=dict(
                steps=0,  # of the stage
                peak=0.0,  # learning rate after the warm-up
                warmup=0,  # steps
                schedule="cosine",  # cosine | linear | constant
                final=0.1,  # of the peak, at the last step
                kind="adamw",  # adamw | muon (matrices; AdamW for the rest)
                momentum=0.95,  # of muon
                b1=0.9,
                b2=0.95,
                eps=1e-8,
                weight_decay=0.1,  # not of norms and biases
                clip=1.0,  # global norm of the gradient
                ema=0.0,  # decay of averaged parameters; 0: none
                freeze=(),  # patterns over parameter paths
            ),
            lora=dict(
                rank=0,  # 0: all parameters are trained
                alpha=16.0,  # the adapters' product counts alpha / rank
                targets=(r"talker\.transformer\.layers\..*\.kernel$",),
            ),
            loss=dict(
                predictor_fraction=1.0,  # of the frames; 1/16 is the least known good
                predictor_weight=0.3,  # of the mean over codebooks 1..15
                predictor_chunk=512,  # frames of a row scored at once
            ),
            compute=dict(
                dtype="bfloat16",  # of the computation; weights are float32
                remat="full",  # none | dots | attention | full: what is computed again
                attention="auto",  # see nn/packed_attention.py
                # devices along each axis; -1: fsdp up to 16, data what is left
                mesh=dict(data=-1, fsdp=-1, tensor=1, sequence=1),
            ),
            log_every=10,  # steps
            save_every=1000,  # steps
            keep_last=3,  # checkpoints
            keep_best=0,  # more, by the held-out loss
            profile=(0, 0),  # (first step of a run, steps) to trace
        )
    )
    return config.lock()


def check(config: ml_collections.ConfigDict, choices=CHOICES, counts=COUNTS) -> None:
    """Raises: ValueError that names every value which nothing else would refuse.

    Args:
        choices: field -> the values it may have; counts: fields that are 1 or more.
    """
    names = (*choices, *counts)
    values = {
        name: functools.reduce(getattr, name.split("."), config) for name in names
    }
    problems = [
        f"{key} {values[key]!r}, expected {' or '.join(allowed)}"
        for key, allowed in choices.items()
        if values[key] not in allowed
    ]
    problems += [
        f"{key} {values[key]}, expected 1 or more" for key in counts if values[key] < 1
    ]
    if problems:
        raise ValueError(f"got config.{'; config.'.join(problems)}")


def parse(text: str, **choices: tuple[str, ...]) -> dict[str, str]:
    """What stands after the colon, as stage=s1,size=tiny; first choices are defaults.

    Raises: ValueError for an unknown name or value.
    """
    chosen = {name: allowed[0] for name, allowed in choices.items()}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if value not in choices.get(name, ()):
            known = "; ".join(f"{n}={'|'.join(a)}" for n, a in choices.items())
            raise ValueError(f"got {item!r} after the colon, expected {known}")
        chosen[name] = value
    return chosen
