"""Discriminators: plain convolutions, shapes, what they hear, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qwen3tts_jax.training.codec import discriminators
from qwen3tts_jax.training.codec import losses as codec_losses

CONFIG = discriminators.Config(  # small: most of the time is XLA's compiler's
    periods=(2, 3),
    period_channels=(4, 8),
    stft_ffts=(64,),
    spectra=(64,),
    spectrum_channels=4,
    stft_channels=4,
    stft_strides=(1, 2),
    stft_dilations=(2,),
)
SAMPLES = 601  # a multiple of neither period
WAVES = (3, SAMPLES)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def build(config) -> discriminators.Discriminators:
    return discriminators.Discriminators(config, rngs=nnx.Rngs(0))


@pytest.fixture(autouse=True, scope="module")
def plain_draws():
    """Normal kernels from numpy: JAX would compile a program for each shape."""
    draw = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            jax.random, "normal", lambda key, shape: draw.standard_normal(shape, "f")
        )
        yield


@pytest.fixture(scope="module")
def judges(plain_draws):
    return jax.tree.map(jnp.asarray, build(CONFIG))


@jax.jit
def judge(part, wave):
    return part(wave)


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize(
    "kernel_size, stride, dilation", [((1, 5), 3, 1), ((3, 9), 2, 2)]
)
def test_a_folded_stride_is_a_stride(kernel_size, stride, dilation):
    """At lengths that the stride divides and at others; the gradients as well."""
    sizes = dict(kernel_size=kernel_size, stride=stride, dilation=dilation)
    conv = discriminators.Conv(2, 3, **sizes, rngs=nnx.Rngs(0))
    conv = jax.tree.map(jnp.asarray, conv)
    pads = [(kernel_size[0] // 2 * dilation,) * 2, (kernel_size[1] // 2,) * 2]

    def plain(conv, x):
        return jax.lax.conv_general_dilated(
            *(x, conv.kernel[...], (1, stride), pads),
            rhs_dilation=(dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    @jax.jit
    def both(conv, inputs):
        made, want = [], []
        for x in inputs:
            for result, call in ((made, type(conv).__call__), (want, plain)):
                y, back = jax.vjp(call, conv, x)
                result += [y, back(jnp.cos(y))]
        return made, want

    made, want = both(conv, [noise(1, 2, 5, length, 2) for length in (11, 12)])
    gradients = made[1::2], want[1::2]
    for one, other in zip(made[::2], want[::2]):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for (one, to_x), (other, plain_to_x) in zip(*gradients):
        np.testing.assert_allclose(to_x, plain_to_x, atol=1e-5)
        np.testing.assert_allclose(one.kernel[...], other.kernel[...], atol=1e-5)


# ---------------------------------------------------------------------- shapes


def test_shapes(judges):
    scores, features = judge(judges, noise(0, *WAVES))
    assert [s.shape for s in scores] == [
        (3, 2, 101),  # 301 samples of each phase, a third
        (3, 3, 67),
        (3, 34, 17),  # frames; of 33 frequencies a half
        (3, 34, 1),
    ]
    assert [[f.shape for f in one] for one in features] == [
        [(3, 2, 101, 4), (3, 2, 101, 8)],
        [(3, 3, 67, 4), (3, 3, 67, 8)],
        [(3, 34, 33, 4), (3, 34, 17, 4), (3, 34, 17, 4)],
        [(3, 34, 1, 4)] * 2,
    ]


def test_the_default_is_full_size():
    """By the layers of HiFi-GAN's table and of EnCodec's figure."""
    abstract = jax.eval_shape(lambda: build(discriminators.Config()))
    sizes = [sum(x.size for x in jax.tree.leaves(part)) for part in abstract.parts]
    periods = [(5, 1, 32), (5, 32, 128), (5, 128, 512), (5, 512, 1024)]
    periods += [(5, 1024, 1024), (3, 1024, 1)]
    spectra = [(27, 2, 32)] + 3 * [(27, 32, 32)] + [(9, 32, 32), (9, 32, 1)]
    for found, layers in ((sizes[:5], periods), (sizes[5:], spectra)):
        assert found == [sum(k * i * o + o for k, i, o in layers)] * 5


def test_the_scale_of_features_stays(judges):
    """PyTorch's default kernels would divide it by 2.4 a layer."""
    _, features = judge(judges, noise(0, *WAVES))
    for first, *_, last in features:
        assert 1 / 2 < np.std(last) / np.std(first) < 2


def test_the_cheap_kind_hears_what_is_soft(judges):
    """A wave and the same at a hundredth: scores differ far less than a hundredfold."""
    part = judges.parts[-1]
    loud = noise(0, *WAVES)
    first = [np.std(part(scale * loud)[1][0]) for scale in (1.0, 0.01)]
    assert first[0] / first[1] < 25


def test_configurations_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="got no periods"):
        discriminators.Config(periods=(), stft_ffts=())
    with pytest.raises(ValueError, match="got 2 stft_strides for 3"):
        discriminators.Config(stft_strides=(2, 2))
    with pytest.raises(ValueError, match="expected odd sizes"):
        discriminators.Config(period_kernel=4)


# -------------------------------------------------------------- what they hear


def test_phases_of_a_period_are_judged_apart(judges):
    """A change of every third sample shows in one of three rows of scores."""
    wave = noise(0, *WAVES)
    changed = wave.copy()
    changed[:, 1:-6:3] += 0.5  # but not at the end, which is mirrored
    before, after = (np.asarray(judge(judges, w)[0][1]) for w in (wave, changed))
    rows = np.abs(after - before).max(axis=(0, 2))
    assert rows[1] > 1e-2 and rows[0] == rows[2] == 0


def test_a_wave_of_the_period_looks_constant(judges):
    """To the period 2, and not to the period 3, if it repeats every 2 samples."""
    wave = np.resize(np.float32([0.3, -0.1]), WAVES)
    scores = judge(judges, wave)[0]
    changes = [np.ptp(np.asarray(one)[:, :, 5:-5], axis=2).max() for one in scores[:2]]
    assert changes[0] < 1e-6 and changes[1] > 1e-2


def test_the_end_of_a_wave_is_mirrored(judges):
    """601 samples at period 3: two more, taken from before the last."""
    wave = noise(0, 1, SAMPLES)
    longer = np.concatenate([wave, wave[:, -2:-4:-1]], axis=1)
    one, other = (judge(judges.parts[1], w)[0] for w in (wave, longer))
    np.testing.assert_array_equal(one, other)


def test_rows_are_judged_apart(judges):
    waves, others = noise(0, *WAVES), noise(1, *WAVES)
    others[1] = waves[1]
    for one, other in zip(judge(judges, waves)[0], judge(judges, others)[0]):
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)
        assert np.abs(one[0] - other[0]).max() > 1e-3


def test_too_short_a_wave_is_refused(judges):
    with pytest.raises(ValueError, match="got 50 samples and a window of 64"):
        jax.eval_shape(judges, jax.ShapeDtypeStruct((1, 50), jnp.float32))


# -------------------------------------------------------------------- training


@jax.jit
def generator_gradient(judges, real, fake):
    def loss(fake):
        _, wanted = judges(real)
        scores, features = judges(fake)
        matching = codec_losses.feature_matching(wanted, features)
        return codec_losses.generator_loss(scores, "hinge") + matching

    return jax.grad(loss)(fake)


def test_the_gradient_is_finite_at_silence(judges):
    real, silence = noise(0, *WAVES), np.zeros(WAVES, np.float32)
    for one, other in ((real, silence), (silence, real), (silence, silence)):
        assert np.isfinite(generator_gradient(judges, one, other)).all()
    assert np.abs(generator_gradient(judges, real, noise(1, *WAVES))).max() > 0


def test_they_learn_to_tell_a_tone_from_noise(judges):
    """One of each kind, and each by itself."""
    parts = list(judges.parts[1:])
    tone = np.sin(np.arange(301) * 0.3).astype(np.float32)[None]
    adam = optax.adam(1e-2)

    def gaps(parts, seed):
        real = jnp.roll(tone, seed, axis=1)
        fake = jax.random.uniform(jax.random.key(seed), tone.shape, minval=-1)
        both = [part(jnp.concatenate([real, fake]))[0] for part in parts]
        scores = [s[:1] for s in both], [s[1:] for s in both]
        loss = codec_losses.discriminator_loss(*scores, "hinge")
        return loss, jnp.stack([jnp.mean(r) - jnp.mean(f) for r, f in zip(*scores)])

    @jax.jit
    def learn(parts):
        def step(carry, seed):
            parts, moments = carry
            gradient, found = jax.grad(gaps, has_aux=True)(parts, seed)
            update, moments = adam.update(gradient, moments)
            return (optax.apply_updates(parts, update), moments), found

        return jax.lax.scan(step, (parts, adam.init(parts)), jnp.arange(40))[1]

    found = np.asarray(learn(parts))
    assert (found[-5:].mean(axis=0) > 1).all(), "a discriminator has not learnt"
