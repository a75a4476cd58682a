"""What a training step must compute, and what devices can: the two sides of MFU.

Model FLOPs are those of the mathematics, two for each multiplication and addition of a
matrix product: forward, and twice that backward.  What is computed again to save memory
does not count; attention counts the pairs of positions that see each other, which is
half of a causal square.  Embeddings are lookups, and the text projection counts with
them (its results could stand in a table); the speaker encoder is left out.
"""

import dataclasses

import numpy as np

from qwen3tts_jax.config import tts

TRAINING = 3  # forward once, backward twice: by the inputs and by the weights
MULTIPLY_ADD = 2


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of training on some rows.

    Attributes:
        talker: matrix products of its layers; head: of codebook 0.
        attention: scores and sums of the talker and the predictor.
        predictor: matrix products of its layers, projection and heads.
    """

    talker: float
    head: float
    attention: float
    predictor: float

    @property
    def total(self) -> float:
        return self.talker + self.head + self.attention + self.predictor


def training(
    config: tts.Qwen3TTSConfig,
    *,
    positions: float,
    pairs: float,
    frames: float,
) -> Work:
    """Model FLOPs of one step.

    Args:
        positions: that hold something, all rows together.
        pairs: of positions that see each other, see `pairs`.
        frames: that the predictor is trained on: all, or its fraction of them.
    """
    talker, predictor = config.talker, config.code_predictor
    main, small, groups = talker.transformer, predictor.transformer, talker.code_groups
    each = MULTIPLY_ADD * TRAINING
    heads = small.dim * predictor.vocab_size * (groups - 1)
    projection = 0 if small.dim == predictor.embed_dim else predictor.embed_dim
    weights = groups * (kernels(small) + projection * small.dim) + heads
    return Work(
        talker=each * positions * kernels(main),
        head=each * positions * main.dim * talker.vocab_size,
        attention=each * pairs * _pair(main)
        + each * frames * causal_pairs(groups) * _pair(small),
        predictor=each * frames * weights,
    )


def kernels(config: tts.TransformerConfig) -> int:
    """Weights in the matrices of a stack: what each position is multiplied by."""
    attention = 2 * config.dim * config.head_dim * (config.heads + config.kv_heads)
    matrices = 3 if config.mlp == "swiglu" else 2
    return config.layers * (attention + matrices * config.dim * config.ffn)


def _pair(config: tts.TransformerConfig) -> int:
    """Multiplications for a query and a key it sees: the score, and the sum."""
    return 2 * config.layers * config.heads * config.head_dim


def causal_pairs(length: int) -> int:
    """Pairs in one segment: position i sees i + 1."""
    return length * (length + 1) // 2


def pairs(segment: np.ndarray) -> int:
    """Pairs in packed rows: int [..., L], 0 is padding, a segment stands together."""
    total = 0
    for row in segment.reshape(-1, segment.shape[-1]):
        lengths = np.bincount(row[row > 0]).astype(np.int64)
        total += int(np.sum(lengths * (lengths + 1) // 2))
    return total


@dataclasses.dataclass(frozen=True)
class Device:
    """What one accelerator can do at most.

    Attributes:
        flops: bfloat16 FLOP/s, dense; memory: bytes; bandwidth: of it, bytes/s.
        links: bytes/s that it sends to its neighbours, all links together.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float


# By `device_kind`.  Sources: the v5e, v5p and v6e pages of the Cloud TPU documentation
# (1,600, 4,800 and 3,584 Gbit/s between chips); NVIDIA's data sheets (SXM: NVLink's 900
# GB/s are both directions).  A TPU's memory is what its compiler lets a program use.
GIB = 2**30
DEVICES = {
    "TPU v5 lite": Device(197e12, 15.75 * GIB, 819e9, 200e9),
    "TPU v5": Device(459e12, 95.74 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Device(918e12, 31.25 * GIB, 1638e9, 448e9),
    "NVIDIA A100-SXM4-80GB": Device(312e12, 80e9, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Device(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Device(989e12, 141e9, 4800e9, 450e9),
}


def device(kind: str) -> Device | None:
    """The peaks of a `jax.Device.device_kind`; None where they are not known."""
    return DEVICES.get(kind)


def executed(work: Work, remat: str) -> float:
    """FLOPs that a step computes, with what it computes again.

    remat: of the talker, a key of `nn.transformer.REMAT`; the predictor's scores are
    always computed again.
    """
    again = dict(
        none=0,
        dots=0,
        attention=work.talker,
        full=work.talker + work.attention,
    )
    return work.total + (again[remat] + work.predictor) / TRAINING


def utilisation(work: float, seconds: float, kind: str, count: int) -> float | None:
    """MFU: the share of `count` devices' peak that `work` FLOPs in `seconds` are.

    None on devices of unknown peak, such as CPUs.
    """
    peak = device(kind)
    return None if peak is None else work / seconds / (count * peak.flops)
