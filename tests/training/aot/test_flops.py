"""Model FLOPs against arithmetic by hand for the released sizes."""

import numpy as np
import pytest

from qwen3tts_jax.config import released, tts
from qwen3tts_jax.training.aot import flops

# GFLOP to train one frame: (talker layers and head, predictor).  By hand, 1.7B:
# 28 * (2048 * (2048 + 1024 + 1024 + 2048) + 3 * 2048 * 6144) + 2048 * 3072 weights,
# 6 FLOP each; 16 * (5 * 15.73 M + 2048 * 1024) + 15 * 1024 * 2048, 6 FLOP each.
BY_HAND = {"0.6B": (2.66, 7.74), "1.7B": (8.49, 7.94)}


def config(size):
    return tts.Qwen3TTSConfig.from_hf(released.tts_config(size, "base"))


@pytest.mark.parametrize("size", released.SIZES)
def test_a_frame_costs_what_arithmetic_says(size):
    work = flops.training(config(size), positions=1, pairs=0, frames=1)
    talker, predictor = BY_HAND[size]
    assert (work.talker + work.head) / 1e9 == pytest.approx(talker, abs=0.005)
    assert work.predictor / 1e9 == pytest.approx(predictor, abs=0.005)


def test_weights_of_the_talker():
    """28 layers of 1.7B: 1,409.41 M parameters, of which norms are 0.12 M."""
    assert flops.kernels(config("1.7B").talker.transformer) == 28 * 50_331_648


def test_attention_is_half_of_a_square_and_stays_inside_segments():
    """28 layers of 16 heads of 128: 4 FLOP a pair and channel forward, 3 times that."""
    whole = flops.causal_pairs(8192)
    assert whole == 8192 * 8193 // 2
    work = flops.training(config("1.7B"), positions=8192, pairs=whole, frames=0)
    assert work.attention == 12 * 28 * 16 * 128 * whole
    assert work.attention / work.talker == pytest.approx(0.333, abs=0.001)
    packed = np.array([[1] * 5 + [2] * 3 + [0] * 2, [1] * 10])
    assert flops.pairs(packed) == (15 + 6) + 55


def test_a_share_of_the_frames_costs_a_share():
    """Training the predictor on 1/16 of the frames: 1.83 times as fast at 1.7B."""
    whole, part = (
        flops.training(config("1.7B"), positions=1, pairs=0, frames=f).total
        for f in (1, 1 / 16)
    )
    assert whole / part == pytest.approx(1.83, abs=0.01)


def test_the_parts_make_the_total():
    work = flops.training(config("0.6B"), positions=5, pairs=7, frames=3)
    parts = (work.talker, work.head, work.attention, work.predictor)
    assert work.total == sum(parts) and min(parts) > 0


def test_utilisation_is_of_the_peak_of_all_devices():
    assert flops.utilisation(197e12, 2.0, "TPU v5 lite", 4) == pytest.approx(0.125)
    assert flops.utilisation(1e12, 1.0, "cpu", 1) is None
