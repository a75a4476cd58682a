"""A step does what its settings say, and nothing leaks between examples."""

import dataclasses
import functools

import examples
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import finetune
from data.loading import packed_rows
from qwen3tts_jax.training.lm import lora, losses, train_step

EMA, WARMUP, EPS = 0.9, 10, 1e-3
RECIPE = examples.recipe(
    optimizer=dict(
        ema=EMA,
        warmup=WARMUP,
        eps=EPS,  # so large that rounding of small gradients changes little
        freeze=(finetune.TEXT_EMBEDDING,),
    ),
)
FROZEN = ["talker.text_embedding.embedding"]
UP = "talker.transformer.layers.mlp.up.kernel"
HALF = dataclasses.replace(RECIPE, packing=losses.Packing(predictor_fraction=0.5))
score = jax.jit(HALF.score, compiler_options=examples.QUICK)


@functools.cache
def step_of(recipe: train_step.Recipe):
    return jax.jit(recipe.step, compiler_options=examples.QUICK)


@functools.cache
def init_of(recipe: train_step.Recipe):
    return jax.jit(recipe.init, compiler_options=examples.QUICK)


def fresh(recipe: train_step.Recipe = RECIPE, params=None) -> train_step.TrainState:
    return init_of(recipe)(params or examples.params(), jax.random.key(1))


@functools.cache
def batch() -> dict[str, np.ndarray]:
    return examples.batch(2)


@functools.cache
def trained(
    recipe: train_step.Recipe = RECIPE,
) -> list[tuple[train_step.TrainState, dict]]:
    """(state, metrics) before the first step and after each of two."""
    made = [(fresh(recipe), {})]
    for _ in range(2):
        made.append(step_of(recipe)(made[-1][0], batch()))
    return made


def moments(state: train_step.TrainState) -> optax.ScaleByAdamState:
    (found,) = (x for x in state.optimizer if isinstance(x, optax.ScaleByAdamState))
    return found


def equal(a: dict, b: dict) -> list[str]:
    """The paths of `a` where two dicts of arrays are equal to the bit."""
    return [path for path, x in a.items() if np.array_equal(x, b[path])]


# ------------------------------------------------------------------- what moves


def test_a_step_in_two_parts_is_the_step():
    """Gradients (as Adam's first moments) and parameters, within float32 rounding."""
    whole, cut = trained(), trained(dataclasses.replace(RECIPE, accumulate=2))
    for (a, a_metrics), (b, b_metrics) in zip(whole[1:], cut[1:]):
        for name, value in a_metrics.items():
            np.testing.assert_allclose(b_metrics[name], value, rtol=1e-5, err_msg=name)
        for path, gradient in moments(a).mu.items():
            close = 1e-5 * np.abs(gradient).max()
            other = moments(b).mu[path]
            np.testing.assert_allclose(other, gradient, rtol=0, atol=close)
        for path, x in a.params.items():
            np.testing.assert_allclose(b.params[path], x, rtol=0, atol=1e-6)


def test_frozen_parameters_stay_and_all_others_move():
    (before, _), (after, _) = trained()[:2]
    assert equal(before.params, after.params) == FROZEN
    kept = (moments(after).mu, moments(after).nu, after.ema)
    assert all(set(x) == set(after.params) - set(FROZEN) for x in kept)


def test_fine_tuning_freezes_what_it_says():
    freeze = tuple(finetune.get_config().optimizer.freeze)
    recipe = examples.recipe(examples.WHOLE, optimizer=dict(freeze=freeze))
    everything = set(recipe.abstract_params())
    kept = everything - set(recipe.trained())
    encoder = {p for p in everything if p.startswith("speaker_encoder.")}
    assert kept == encoder | set(FROZEN) and encoder
    state = jax.eval_shape(recipe.init, recipe.abstract_params(), jax.random.key(0))
    assert set(moments(state).mu) == set(recipe.trained())


def test_averages_are_the_formula():
    (before, _), (one, _), (two, _) = trained()
    for path, average in two.ema.items():
        first = EMA * before.params[path] + (1 - EMA) * one.params[path]
        np.testing.assert_allclose(one.ema[path], first, rtol=1e-5, atol=1e-7)
        second = EMA * first + (1 - EMA) * two.params[path]
        np.testing.assert_allclose(average, second, rtol=1e-5, atol=1e-7)
    averaged = train_step.flatten(RECIPE.model(two, averaged=True))
    assert len(equal(averaged, two.params | two.ema)) == len(averaged)
    assert equal(averaged, two.params) == FROZEN
    last = train_step.flatten(RECIPE.model(two))
    assert len(equal(last, two.params)) == len(last)


def test_the_state_says_which_step_it_is():
    """Moments that a stage takes over do not carry the old stage's learning rate."""
    state, _ = trained()[2]
    rate = RECIPE.optimizer.learning_rate()
    moves = {}
    for number in (0, WARMUP):
        numbered = state.replace(step=jnp.int32(number))
        after, metrics = step_of(RECIPE)(numbered, batch())
        assert metrics["learning_rate"] == rate(number) and after.step == number + 1
        moves[number] = np.asarray(after.params[UP]) - np.asarray(state.params[UP])
    assert rate(WARMUP) > 9 * rate(0)
    np.testing.assert_allclose(
        moves[WARMUP], rate(WARMUP) / rate(0) * moves[0], rtol=1e-2, atol=1e-7
    )


# ------------------------------------------------------------------------- LoRA

TARGET = r"^talker\.transformer\.layers\..*\.kernel$"
WITH_LORA = examples.recipe(
    adapters=lora.LoRA(2, 4.0, (TARGET,)), optimizer=dict(ema=EMA, weight_decay=0.0)
)


def test_adapters_move_and_the_model_under_them_does_not():
    (before, _), (_, _), (after, _) = trained(WITH_LORA)
    assert len(equal(before.params, after.params)) == len(before.params)
    assert len(after.adapters) == 2 * 7 and equal(before.adapters, after.adapters) == []
    assert set(moments(after).mu) == set(after.ema) == set(after.adapters)
    merged = train_step.flatten(WITH_LORA.model(after))
    moved = set(merged) - set(equal(merged, after.params))
    assert moved == {name.rpartition(":")[0] for name in after.adapters}
    averaged = train_step.flatten(WITH_LORA.model(after, averaged=True))
    assert set(equal(merged, averaged)) == set(merged) - moved
    losses_ = [float(metrics["loss"]) for _, metrics in trained(WITH_LORA)[1:]]
    assert losses_[1] < losses_[0]


def test_an_adapter_without_a_kernel_is_an_error():
    recipe = examples.recipe(adapters=lora.LoRA(2, 4.0, (r"attention\.kernel$",)))
    with pytest.raises(ValueError, match=r"LoRA targets .* which no kernel matches"):
        fresh(recipe)


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("path", [UP, "talker.codec_head.kernel", "predictor.heads"])
def test_one_bad_parameter_shows_in_the_figures(path):
    params = examples.params()
    params[path] = params[path].at[(0,) * params[path].ndim].set(jnp.nan)
    _, metrics = step_of(RECIPE)(fresh(params=params), batch())
    assert not np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["gradient_norm"])


def test_bfloat16_computes_but_does_not_keep():
    """Steps of 1e-5, which bfloat16 parameters would round away."""
    recipe = examples.recipe(
        peak=1e-5,
        dtype="bfloat16",
        optimizer=dict(weight_decay=0.0, freeze=(r"(?<!head\.kernel)(?<!heads)$",)),
    )
    params = {p: x.astype("bfloat16") for p, x in examples.params().items()}
    params = {p: x.astype("float32") for p, x in params.items()}
    before = fresh(recipe, params)
    after, metrics = step_of(recipe)(before, batch())
    float32 = [after.params, moments(after).mu, moments(after).nu, metrics]
    assert {x.dtype for x in jax.tree.leaves(float32)} == {np.dtype("float32")}
    for path in recipe.trained():
        x, y = np.asarray(before.params[path]), np.asarray(after.params[path])
        large = np.abs(x) > 0.01  # their neighbours in bfloat16 are 6e-5 away
        assert np.mean(x != y) > 0.9
        assert np.mean((y.astype(jnp.bfloat16) == x)[large]) > 0.99
    exact = score(fresh(params=params), batch())["loss"]
    assert 0 < abs(metrics["loss"] - exact) < 0.02


# --------------------------------------------------------- the predictor's frames


@functools.partial(jax.jit, compiler_options=examples.QUICK)
def sums_by_key(params, arrays, keys):
    """(Counts, Sums with a leading axis of keys) of half of the frames."""
    eos = HALF.config.talker.codec_eos_id
    total = losses.counts(arrays, eos, HALF.packing)

    def one(key):
        return losses.packed(
            HALF.unflatten(params),
            arrays,
            total,
            key,
            packing=HALF.packing,
            gather=HALF.gather,
        )[1]

    return total, jax.lax.map(one, keys)


def keys(number: int) -> jax.Array:
    return jax.random.split(jax.random.key(number), 8)


def only(arrays: dict, where: np.ndarray) -> dict:
    """The same arrays, with labels in some places alone; where: bool [B or 1, L]."""
    return arrays | dict(labels=np.where(where, arrays["labels"], np.int16(-1)))


def rows_are(*rows: int) -> np.ndarray:
    return np.isin(np.arange(2), rows)[:, None]


def of_frames(*counts: int) -> list[packed_rows.Example]:
    """Utterances of so many frames, without a code 0 in codebooks 1..15."""
    made = [examples.examples(1, seed=n, frames=(n, n + 1))[0] for n in counts]
    for item in made:
        item.codes[:, 1:] = np.maximum(item.codes[:, 1:], 1)
    return made


def test_the_predictor_gets_as_many_frames_as_asked_for():
    """Half of each row's, at least one.

    With heads of zero each chosen place costs ln 64, and the best code is 0.  What is
    no frame reads as code 0: it would count as right, if it were chosen.
    """
    params = examples.params()
    params["predictor.heads"] = 0 * params["predictor.heads"]
    arrays = examples.pack([of_frames(8, 3), of_frames(3)])
    one = examples.pack([[], of_frames(1)])
    for given, row, expected in ((arrays, 0, 6), (arrays, 1, 2), (one, 1, 1)):
        total, sums = sums_by_key(params, only(given, rows_are(row)), keys(0))
        assert total.chosen == expected
        cost = np.asarray(sums.cross_entropy[:, 1:])
        np.testing.assert_allclose(cost, expected * np.log(examples.CODES), rtol=1e-5)
        assert not sums.correct[:, 1:].any()
    is_frame = arrays["codes"][..., 1:] >= 0
    arrays["codes"][..., 1:] = np.where(is_frame, 0, -1)
    total, sums = sums_by_key(params, arrays, keys(0))
    assert total.chosen == 8 and (sums.correct[:, 1:] == 8).all()


def test_chosen_frames_stand_for_all():
    """The mean over 32 draws is the loss of all frames, within four standard errors."""
    params = examples.params()
    params["predictor.heads"] *= 20  # frames of unlike cost
    arrays = examples.batch(2, frames=(8, 9))  # 12 of 24 frames a row: no rounding
    found = []
    for number in range(4):
        total, sums = sums_by_key(params, arrays, keys(number))
        assert (total.frames, total.chosen) == (48, 24)
        found += (sums.cross_entropy[:, 1:].mean(axis=1) / total.chosen).tolist()
    full = score(fresh(params=params), arrays)["cross_entropy"][1:].mean()
    spread = np.std(found)
    assert len(set(found)) == 32 and spread > 1e-3 * full
    assert abs(np.mean(found) - full) < 4 * spread / np.sqrt(32)


def test_held_out_rows_are_scored_by_all_their_frames():
    """Whatever share of them training takes; no draw is involved."""
    (before, _), (_, metrics) = trained()[:2]
    scored = score(before, batch())
    for name, value in scored.items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5, err_msg=name)
    again = score(before.replace(key=jax.random.key(99)), batch())
    assert len(equal(scored, again)) == len(scored)


# ------------------------------------------------------------------ nothing leaks


def dirty(arrays: dict, where: np.ndarray) -> dict:
    """The same arrays with garbage at some positions; where: bool [B, L]."""
    draw, made = np.random.default_rng(7), dict(arrays)
    for name, top in dict(text=150_000, codes=64, position=500, speaker_at=3).items():
        garbage = draw.integers(0, top, arrays[name].shape, arrays[name].dtype)
        here = where[..., None] if name == "codes" else where
        made[name] = np.where(here, garbage, arrays[name])
    return made


def test_padding_is_never_read():
    """Neither by a loss nor by a gradient: not a bit changes."""
    padding = batch()["segment"] == 0
    assert padding.any(axis=1).all()
    arrays = dirty(batch(), padding)
    (before, _), (after, metrics) = trained()[:2]
    other, other_metrics = step_of(RECIPE)(before, arrays)
    assert len(equal(metrics, other_metrics)) == len(metrics)
    assert len(equal(after.params, other.params)) == len(after.params)


def test_other_rows_are_never_read():
    """One row's labels alone; the other rows are of other utterances, or garbage."""
    mine, others = rows_are(1), examples.batch(2, seed=9)
    mixed = {
        name: np.where(mine.reshape(-1, *[1] * (x.ndim - 1)), x, others[name])
        for name, x in batch().items()
    }
    found = [
        score(trained()[0][0], only(arrays, mine))
        for arrays in (
            batch(),
            mixed,
            dirty(batch(), np.broadcast_to(~mine, (2, examples.LENGTH))),
        )
    ]
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("place", range(3))
def test_an_utterance_alone_is_an_utterance_in_company(place):
    three, state = examples.examples(3), trained()[0][0]
    packed = examples.pack([three, []])
    mine = only(packed, packed["segment"] == place + 1)
    alone = score(state, examples.pack([[three[place]], []]))
    for name, value in score(state, mine).items():
        close = dict(rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(value, alone[name], **close)
    if place:  # without the borders it would show
        merged = mine | dict(segment=np.minimum(mine["segment"], 1))
        leaked = score(state, merged)["cross_entropy"]
        assert np.abs(leaked - alone["cross_entropy"]).max() > 1e-3
