"""Losses of codec training: plain definitions, values by hand, gradients, balance."""

import jax
import numpy as np
import pytest

from qwen3tts_jax.audio import mel as log_mels
from qwen3tts_jax.training.codec import losses as codec_losses

SCALES = codec_losses.MelScales(windows=(128, 256), bins=(20, 40))
SAMPLES = 1001  # no multiple of any hop
WAVE = (2, SAMPLES)

mel_distance = jax.jit(codec_losses.mel_distance, static_argnums=2)
mel_gradient = jax.jit(
    jax.value_and_grad(codec_losses.mel_distance, argnums=1), static_argnums=2
)
stft = jax.jit(codec_losses.stft, static_argnums=1)
distillation = jax.jit(jax.value_and_grad(codec_losses.distillation))
pool_teacher = jax.jit(codec_losses.pool_teacher)
balance = jax.jit(codec_losses.Balancer.balance, static_argnums=0)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


# --------------------------------------------------------------------- spectra


def plain_frames(wave: np.ndarray, window: int) -> np.ndarray:
    """Windowed frames [T, window] of a wave [W], one by one."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    starts = range(0, len(wave) - window + 1, window // 4)
    return np.stack([wave[start : start + window] * hann for start in starts])


@pytest.mark.parametrize("window", [32, 128, 256])
def test_stft_is_that_of_the_definition(window):
    """Both ways to compute it, at sizes on either side of LONGEST_MATRIX."""
    wave = noise(0, *WAVE)
    real, imaginary = stft(wave, window)
    want = np.stack([np.fft.rfft(plain_frames(row, window)) for row in wave])
    assert real.shape == (2, 1 + (SAMPLES - window) // (window // 4), window // 2 + 1)
    np.testing.assert_allclose(real, want.real, atol=2e-6)
    np.testing.assert_allclose(imaginary, want.imag, atol=2e-6)


def plain_log_mel(wave: np.ndarray, window: int, bins: int) -> np.ndarray:
    padded = np.pad(wave, window // 2, mode="reflect")
    magnitude = np.abs(np.fft.rfft(plain_frames(padded, window)))
    mel = magnitude @ log_mels.mel_filterbank(bins=bins, n_fft=window).T
    return np.log10(np.maximum(mel, 1e-5))


def test_mel_distance_is_the_sum_over_scales_of_the_definition():
    real, fake = noise(0, *WAVE), noise(1, *WAVE)
    want = 0.0
    for window, bins in zip(SCALES.windows, SCALES.bins):
        pairs = [
            [plain_log_mel(x, window, bins) for x in pair] for pair in (real, fake)
        ]
        want += np.mean(np.abs(np.subtract(*pairs)))
    assert mel_distance(real, fake, SCALES) == pytest.approx(want, rel=1e-5)


def test_mel_distance_is_zero_for_equal_waves_alone():
    real, change = noise(0, *WAVE), noise(1, *WAVE)
    distances = [mel_distance(real, real + s * change, SCALES) for s in (0, 0.01, 0.1)]
    assert distances[0] < 1e-6 < 1e-3 < distances[1] < distances[2]


def test_mel_distance_of_a_change_of_level():
    """Half the level is log10(2) in every bin of every scale."""
    real = noise(0, *WAVE)
    halved = mel_distance(real, real / 2, SCALES)
    assert halved == pytest.approx(len(SCALES.windows) * np.log10(2), rel=1e-4)


@pytest.mark.parametrize("silent", ["real", "fake", "both", "half of fake"])
def test_the_gradient_of_mel_distance_is_finite_at_silence(silent):
    real, fake = noise(0, *WAVE), noise(1, *WAVE)
    real = real * (silent not in ("real", "both"))
    fake = fake * (silent not in ("fake", "both"))
    if silent == "half of fake":
        fake[:, : SAMPLES // 2] = 0
    value, gradient = mel_gradient(real, fake, SCALES)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (np.abs(gradient).max() > 0) == (silent in ("real", "half of fake"))


def test_an_empty_filter_says_nothing():
    """80 bins of 17 frequencies: most filters hold none."""
    scales = codec_losses.MelScales(windows=(32,), bins=(80,))
    assert (log_mels.mel_filterbank(bins=80, n_fft=32).max(axis=1) == 0).any()
    value, gradient = mel_gradient(noise(0, 1, 200), noise(1, 1, 200), scales)
    assert np.isfinite(value) and np.isfinite(gradient).all() and value > 0


def test_the_default_scales_have_no_empty_filter():
    scales = codec_losses.MelScales()
    for window, bins in zip(scales.windows, scales.bins):
        assert log_mels.mel_filterbank(bins=bins, n_fft=window).max(axis=1).min() > 0


def test_waves_too_short_are_refused():
    with pytest.raises(
        ValueError, match="got 100 samples, expected more than 128 to mirror"
    ):
        mel_distance(noise(0, 1, 100), noise(1, 1, 100), SCALES)
    with pytest.raises(ValueError, match="got 100 samples and a window of 128"):
        codec_losses.stft(noise(0, 1, 100), 128)
    with pytest.raises(ValueError, match="got 1 windows and 2 numbers"):
        codec_losses.MelScales(windows=(32,), bins=(5, 10))


# ----------------------------------------------------------------- adversarial

REAL = [np.float32([[2.0, 0.5]]), np.float32([1.0])]  # of two discriminators
FAKE = [np.float32([[-2.0, 0.0]]), np.float32([1.0])]


@pytest.mark.parametrize(
    "kind, judge, maker",
    [
        # hinge: (0 + 0.5)/2 + (0 + 1)/2 and 0 + 2; then 1 and -1
        ("hinge", (0.75 + 2) / 2, (1 - 1) / 2),
        # squares: (1 + 0.25)/2 + (4 + 0)/2 and 0 + 1; then (9 + 1)/2 and 0
        ("lsgan", (2.625 + 1) / 2, (5 + 0) / 2),
    ],
)
def test_adversarial_losses_by_hand(kind, judge, maker):
    @jax.jit
    def both(real, fake):
        loss = codec_losses.discriminator_loss(real, fake, kind)
        return loss, codec_losses.generator_loss(fake, kind)

    assert both(REAL, FAKE) == pytest.approx((judge, maker))


def test_an_unknown_kind_is_refused():
    for call in (
        lambda: codec_losses.discriminator_loss(REAL, FAKE, "wasserstein"),
        lambda: codec_losses.generator_loss(FAKE, "wasserstein"),
    ):
        with pytest.raises(ValueError, match="got kind 'wasserstein', expected one of"):
            call()


def test_feature_matching_by_hand():
    """Layers of unlike size and scale count the same, and so do discriminators."""
    real = [[np.full((1, 4), 2.0), np.full((1, 100), 200.0)], [np.ones((1, 3))]]
    fake = [[np.full((1, 4), 3.0), np.full((1, 100), 100.0)], [np.zeros((1, 3))]]
    both = jax.jit(jax.value_and_grad(codec_losses.feature_matching, argnums=(0, 1)))
    loss, (to_real, to_fake) = both(real, fake)
    assert loss == pytest.approx((0.5 + 1) / 2)
    assert both(real, real)[0] == 0
    assert not any(np.abs(leaf).max() for leaf in jax.tree.leaves(to_real))
    assert all(np.abs(leaf).max() for leaf in jax.tree.leaves(to_fake))


def test_feature_matching_wants_as_many_layers_of_both():
    with pytest.raises(ValueError):
        codec_losses.feature_matching([[REAL[1]]], [[FAKE[1], FAKE[1]]])


# ---------------------------------------------------------------- distillation


def test_distillation_by_hand():
    """Along, across, against and an invalid frame: (0 + 1 + 2) / 3."""
    teacher = np.float32([[[1, 0], [1, 0], [1, 0], [1, 0]]])
    predicted = np.float32([[[5, 0], [0, 0.1], [-3, 0], [7, 7]]])
    loss, gradient = distillation(predicted, teacher, np.bool_([[1, 1, 1, 0]]))
    assert loss == pytest.approx(1)
    assert gradient[0, 1, 0] < 0 and not np.any(gradient[0, 3])


def test_distillation_is_finite_without_vectors_and_without_frames():
    zero, some = np.zeros((1, 4, 2), np.float32), np.ones((1, 4, 2), np.float32)
    assert np.isfinite(distillation(zero, some, np.ones((1, 4), bool))[1]).all()
    loss, gradient = distillation(some, zero, np.zeros((1, 4), bool))
    assert loss == 0 and not np.any(gradient)


@pytest.mark.parametrize("length", [1, 4, 7, 16])
def test_the_teacher_is_pooled_over_eight_frames(length):
    hidden = noise(0, 2, length, 3)
    made = pool_teacher(hidden)
    frames = -(-length // 4)
    want = [
        hidden[:, max(4 * t - 2, 0) : 4 * t + 6].mean(axis=1) for t in range(frames)
    ]
    assert made.shape == (2, frames, 3)
    np.testing.assert_allclose(made, np.stack(want, axis=1), atol=1e-6)


# -------------------------------------------------------------------- balancer

WAVES = (3, 50)


def one_sample(place: int, *values: float) -> np.ndarray:
    """A gradient that is zero but at one sample of each row."""
    gradient = np.zeros(WAVES, np.float32)
    gradient[:, place] = values
    return gradient


def norm(gradient) -> float:
    """Mean over rows, as `per_item` has it."""
    return np.linalg.norm(gradient, axis=1).mean()


def test_one_loss_keeps_its_direction_and_gets_the_total_norm():
    balancer = codec_losses.Balancer((("mel", 7.0),), total_norm=2.0)
    gradient = 1e-4 * noise(0, *WAVES)
    made, _ = balance(balancer, balancer.init(), dict(mel=gradient))
    assert norm(made) == pytest.approx(2, rel=1e-5)
    np.testing.assert_allclose(made, gradient * 2 / norm(gradient), rtol=1e-4)


def test_weights_are_shares_and_the_scale_of_a_loss_does_not_matter():
    balancer = codec_losses.Balancer((("adversarial", 3.0), ("feature", 1.0)))
    made = []
    for scale in (1.0, 1e4):
        norms = balancer.init()
        for step in range(3):  # gradients that grow, each at its own pace
            gradients = dict(
                adversarial=one_sample(0, 2.0 + step),
                feature=scale * one_sample(1, 1.0 + step),
            )
            combined, norms = balance(balancer, norms, gradients)
            made.append(np.asarray(combined))
    np.testing.assert_allclose(made[0][:, :2], 3 * [[0.75, 0.25]], rtol=1e-5)
    np.testing.assert_allclose(made[:3], made[3:], rtol=1e-5)


def test_the_average_of_norms_has_no_bias():
    """Decay 0.5 after norms 1 and 4: (0.5 * 1 + 4) / (0.5 + 1) = 3."""
    balancer = codec_losses.Balancer((("mel", 1.0),), decay=0.5)
    norms, made = balancer.init(), []
    for value in (1.0, 4.0):
        one, norms = balance(balancer, norms, dict(mel=one_sample(3, value)))
        made.append(norm(one))
    assert made == pytest.approx([1, 4 / 3])
    assert norms.sums["mel"] / norms.weight == pytest.approx(3)


@pytest.mark.parametrize("per_item, want", [(True, 1 / 3), (False, 41**-0.5)])
def test_norms_by_item_and_of_the_batch(per_item, want):
    balancer = codec_losses.Balancer((("mel", 1.0),), per_item=per_item)
    gradient = one_sample(0, 1.0, 2.0, 6.0)
    made, _ = balance(balancer, balancer.init(), dict(mel=gradient))
    np.testing.assert_allclose(made, gradient * want, rtol=1e-5)


def test_no_gradient_gives_no_gradient():
    balancer = codec_losses.Balancer((("adversarial", 3.0), ("feature", 1.0)))
    none, some = np.zeros(WAVES, np.float32), one_sample(3, 5.0)
    gradients = dict(adversarial=none, feature=some)
    made, norms = balance(balancer, balancer.init(), gradients)
    np.testing.assert_allclose(made, some / 5 / 4, rtol=1e-5)
    made, _ = balance(balancer, norms, dict(adversarial=some, feature=some))
    assert np.isfinite(made).all()


def test_balancers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="expected at least one, all above 0"):
        codec_losses.Balancer((("mel", 0.0),))
    with pytest.raises(ValueError, match="got decay 1"):
        codec_losses.Balancer((("mel", 1.0),), decay=1)
    balancer = codec_losses.Balancer((("mel", 1.0),))
    with pytest.raises(ValueError, match="got gradients of \\['feature'\\]"):
        balancer.balance(balancer.init(), dict(feature=noise(0, *WAVES)))
