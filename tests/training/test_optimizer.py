"""Schedules, what decays, what is clipped, what is frozen, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qwen3tts_jax.training import optimizer

PATHS = ("a.kernel", "a.bias", "norm.scale", "b.embedding")
SETTINGS = dict(steps=100, peak=1e-2)


def make(**settings) -> optimizer.Optimizer:
    return optimizer.Optimizer(**SETTINGS | settings)


def params() -> dict[str, jax.Array]:
    draw = np.random.default_rng(0)
    return {p: jnp.asarray(draw.normal(0, 1, (4, 3)), jnp.float32) for p in PATHS}


def update(settings: optimizer.Optimizer, gradients, count: int = 1) -> dict:
    """What a step would subtract, but for the learning rate; after equal gradients."""
    transform = settings.transform()
    state = transform.init(params())
    for _ in range(count):
        made, state = transform.update(gradients, state, params())
    return made


# ------------------------------------------------------------------ learning rates


@pytest.mark.parametrize(
    "schedule, halfway",
    [
        ("cosine", 0.55),
        ("linear", 0.55),
        ("constant", 1.0),
    ],
)
def test_rates_go_up_to_the_peak_and_down_to_the_last_step(schedule, halfway):
    settings = make(steps=101, warmup=20, schedule=schedule, final=0.1)
    rates = np.asarray([settings.learning_rate()(i) for i in range(101)])
    assert rates[0] == pytest.approx(1e-2 / 20)  # moves already
    assert (np.diff(rates[:21]) > 0).all() and rates[20] == pytest.approx(1e-2)
    assert rates[60] == pytest.approx(halfway * 1e-2)
    if schedule == "constant":
        assert (rates[20:] == rates[20]).all()
    else:
        assert (np.diff(rates[20:]) < 0).all() and rates[100] == pytest.approx(1e-3)


def test_a_cosine_is_flat_at_both_ends():
    rates = [float(make(steps=101).learning_rate()(i)) for i in (0, 25, 75, 100)]
    share = [(rate - 1e-3) / 9e-3 for rate in rates]
    half = np.sqrt(0.5) / 2
    np.testing.assert_allclose(share, [1, 0.5 + half, 0.5 - half, 0], atol=1e-5)


@pytest.mark.parametrize("schedule", optimizer.SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1])
def test_short_stages(schedule, warmup):
    settings = make(steps=2, warmup=warmup, schedule=schedule)
    first, last = (float(settings.learning_rate()(i)) for i in (0, 1))
    assert first == pytest.approx(1e-2)
    falls = schedule != "constant" and not warmup
    assert last == pytest.approx(1e-3 if falls else 1e-2)
    only = make(steps=1, schedule=schedule).learning_rate()(0)
    assert float(only) == pytest.approx(first)


# ------------------------------------------------------------------------- updates


def test_norms_and_biases_do_not_decay():
    """Without gradients the decay is all there is."""
    zero = jax.tree.map(jnp.zeros_like, params())
    made = update(make(weight_decay=0.2), zero)
    for path, x in params().items():
        decays = path in ("a.kernel", "b.embedding")
        np.testing.assert_allclose(made[path], 0.2 * x if decays else 0 * x, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_updates_are_those_of_adamw(count):
    settings = make(clip=1e9, weight_decay=0.1, b1=0.8, b2=0.9, eps=1e-3)
    gradients = jax.tree.map(jnp.cos, params())
    reference = optax.adamw(1.0, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.1)
    made, state = update(settings, gradients, count), reference.init(params())
    for _ in range(count):
        expected, state = reference.update(gradients, state, params())
    np.testing.assert_allclose(made["a.kernel"], -expected["a.kernel"], rtol=1e-5)
    g = np.float64(gradients["norm.scale"])  # equal gradients: the moments are exact
    np.testing.assert_allclose(made["norm.scale"], g / (abs(g) + 1e-3), rtol=1e-4)


def test_the_norm_over_everything_is_clipped():
    """Large gradients become the same small one; small ones stay."""
    gradients = jax.tree.map(jnp.cos, params())
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients.values()))
    # one step of Adam is blind to size but for eps, which is large here
    clipped = make(clip=0.5, eps=1.0, weight_decay=0.0)
    for factor in (1, 1000):
        scaled = jax.tree.map(lambda g, f=factor: f * g, gradients)
        made = update(clipped, scaled)
        for path, g in gradients.items():
            small = np.asarray(g) * 0.5 / norm
            np.testing.assert_allclose(made[path], small / (abs(small) + 1), rtol=1e-4)
    free = update(make(clip=2 * float(norm), eps=1.0, weight_decay=0.0), gradients)
    g = np.asarray(gradients["a.bias"])
    np.testing.assert_allclose(free["a.bias"], g / (abs(g) + 1), rtol=1e-4)


def test_an_average_follows_slowly():
    made = optimizer.average({"a": jnp.float32(2.0)}, {"a": jnp.float32(10.0)}, 0.75)
    assert made == {"a": 4.0}


# ------------------------------------------------------------------- what is trained


def test_freezing_by_patterns():
    assert make().trainable(PATHS) == PATHS
    assert make(freeze=(r"^a\.", "scale")).trainable(PATHS) == ("b.embedding",)


BAD_FREEZE = [
    (("a", r"kernal$"), r"got freeze 'kernal\$', which no parameter matches"),
    (("a", "norm", "b"), "leaves nothing to train; drop one"),
]


@pytest.mark.parametrize("freeze, message", BAD_FREEZE)
def test_a_bad_freeze_is_an_error(freeze, message):
    with pytest.raises(ValueError, match=message):
        make(freeze=freeze).trainable(PATHS)


BAD = [
    (
        dict(schedule="cosines"),
        "got schedule 'cosines', expected one of cosine, linear",
    ),
    (dict(warmup=100), "got warmup 100 of 100 steps, expected 0 or more and fewer"),
    (dict(warmup=-1), "got warmup -1 of 100 steps"),
    (dict(steps=0), "got warmup 0 of 0 steps"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_a_bad_setting_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


# ---------------------------------------------------------------------------- muon

SHAPES = {
    "a.kernel": (16, 32),  # linear
    "b.kernel": (3, 16, 32),  # convolution
    "c.kernel": (2, 16, 4, 2),  # transposed convolution
    "d.kernel": (7, 1, 16),  # its inputs are too few
    "e.kernel": (16, 1),  # ... its outputs
    "codec_head.kernel": (16, 32),  # logits
    "t.layers.a.kernel": (2, 16, 32),  # two layers
    "a.bias": (32,),
    "table.embedding": (64, 32),
}


def drawn(seed: int = 0) -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed)
    return {
        p: jnp.asarray(draw.normal(0, 1, s), jnp.float32) for p, s in SHAPES.items()
    }


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam():
    muon, adam = (
        make(kind=k, weight_decay=0.0, clip=1e9) for k in optimizer.KINDS[::-1]
    )
    updates = []
    for settings in (muon, adam):
        transform = settings.transform()
        made, _ = transform.update(drawn(1), transform.init(drawn()), drawn())
        updates.append(made)
    matrices = {
        path for path, shape in SHAPES.items() if optimizer.is_matrix(path, shape)
    }
    assert matrices == {"a.kernel", "b.kernel", "c.kernel", "t.layers.a.kernel"}
    for path, shape in SHAPES.items():
        ours = np.asarray(updates[0][path])
        if path not in matrices:
            assert np.sign(ours).tolist() == np.sign(updates[1][path]).tolist()
            continue
        stacked = ours if "layers" in path else ours[None]
        inputs = 2 if stacked.ndim == 3 else 3  # axes before the outputs
        width = int(np.prod(shape[inputs - 1 if "layers" not in path else inputs :]))
        for layer in stacked:
            matrix = layer.reshape(-1, width)
            values = np.linalg.svd(matrix, compute_uv=False)
            # five steps of Newton-Schulz bring singular values near 1, not to it
            scale = optimizer.CONSISTENT_RMS * np.sqrt(max(matrix.shape))
            assert (values > 0.6 * scale).all() and (values < 1.3 * scale).all()
        assert np.sum(ours * np.asarray(drawn(1)[path])) > 0  # the step subtracts it


def test_muon_minimises():
    settings = make(kind="muon", peak=0.05, steps=200, weight_decay=0.0)
    transform, wanted, params = settings.transform(), drawn(2), drawn()
    state = transform.init(params)
    distance = optax.tree.norm(optax.tree.sub(params, wanted))

    @jax.jit
    def step(params, state):
        gradient = jax.tree.map(lambda x, y: x - y, params, wanted)
        updates, state = transform.update(gradient, state, params)
        return jax.tree.map(lambda x, u: x - 0.05 * u, params, updates), state

    for _ in range(200):
        params, state = step(params, state)
    assert optax.tree.norm(optax.tree.sub(params, wanted)) < 0.2 * distance


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="got optimizer kind 'lion', expected adamw"):
        make(kind="lion")
