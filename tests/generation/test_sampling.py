"""From scores to tokens: against the official processors, and by chi-square.

golden/sampling.safetensors: for six rows of logits and histories and 53 settings, which
ids the official processors keep, and the 16 highest probabilities (dump_sampling.py).
"""

import dataclasses

import inputs
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import scipy.stats

from qwen3tts_jax.generation import sampling

# Float32 softmax: both sum 3072 terms in some order and round to 6e-8 of 1.
PROBABILITY_CLOSE = 1e-6
UNDECIDED = 1e-5  # top_p meets a cumulative probability, within float32 sums
DRAWS = 10_000
REJECT = 1e-3


@pytest.fixture(scope="module")
def golden():
    arrays, notes = parity.read(parity.GOLDEN / "sampling.safetensors")
    assert notes["sampling/settings"] == [repr(s) for s in inputs.SETTINGS]
    seed = notes["made_with"]["seed"]
    logits, history = inputs.sampling_logits(seed), inputs.sampling_history(seed)
    return arrays, logits, history


def choice(setting: inputs.Setting, **other) -> sampling.Choice:
    names = ("temperature", "top_k", "top_p")
    given = {name: getattr(setting, name) for name in names} | other
    return sampling.Options(**given).sampling().talker


def scores(setting: inputs.Setting, logits, history) -> jax.Array:
    """Before the choice: float32 [B, V]."""
    if not setting.talker:
        return jnp.asarray(logits)
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, history[:, : setting.step], True, axis=1)
    penalty = setting.repetition_penalty
    return sampling.talker_scores(
        jnp.asarray(logits),
        seen=jnp.asarray(seen),
        step=jnp.int32([setting.step]),
        sampling=sampling.Options(repetition_penalty=penalty).sampling(),
        eos=inputs.CODEC_EOS,
    )


@jax.jit
def distribution(scores, choice):
    warped = sampling.warp(scores, choice)
    return jnp.isfinite(warped), jax.nn.softmax(warped, axis=-1)


@pytest.fixture(scope="module")
def ours(golden):
    """(kept, probabilities) of each setting: [B, V] each."""
    _, logits, history = golden
    made = [
        distribution(scores(s, logits, history), choice(s)) for s in inputs.SETTINGS
    ]
    return [tuple(map(np.asarray, pair)) for pair in made]


def test_distributions_equal_the_official_ones(golden, ours):
    arrays = golden[0]
    kept_bits = np.unpackbits(arrays["sampling/kept_bits"], axis=-1).astype(bool)
    for i, (setting, (kept, probabilities)) in enumerate(zip(inputs.SETTINGS, ours)):
        for row in range(len(kept)):
            if row == inputs.TIED_ROW and setting.top_p < 1:
                continue
            if arrays["sampling/top_p_gap"][i, row] < UNDECIDED:
                assert (kept[row] != kept_bits[i, row]).sum() <= 1, (setting, row)
                continue  # the others share what the undecided one has
            assert (kept[row] == kept_bits[i, row]).all(), (setting, row)
            best = probabilities[row, arrays["sampling/top_ids"][i, row]]
            assert_probabilities(best, arrays["sampling/top_probabilities"][i, row])


def test_distributions_of_tied_scores_equal_the_official_ones(golden, ours):
    """Which of equal scores stay is open; how many is not."""
    arrays, row = golden[0], inputs.TIED_ROW
    for i, (setting, (kept, probabilities)) in enumerate(zip(inputs.SETTINGS, ours)):
        if setting.top_p < 1:
            assert kept[row].sum() == arrays["sampling/kept_count"][i, row], setting
            theirs = arrays["sampling/top_probabilities"][i, row]
            best = -np.sort(-probabilities[row])[: len(theirs)]
            assert_probabilities(best, theirs)


def assert_probabilities(ours, theirs) -> None:
    close = PROBABILITY_CLOSE
    parity.assert_close("probability (absolute)", ours, theirs, close, scale=1)


def test_the_settings_reach_every_processor(golden):
    """The golden settings are worth comparing: each cuts what the others leave."""
    arrays = golden[0]
    counts = arrays["sampling/kept_count"]
    by = {setting: counts[i] for i, setting in enumerate(inputs.SETTINGS)}
    plain = inputs.Setting(top_k=0)
    assert (by[dataclasses.replace(plain, top_p=0.5)] < by[plain]).all()
    assert (by[inputs.Setting()] < by[plain]).all()
    eos = np.unpackbits(arrays["sampling/kept_bits"], axis=-1)[..., inputs.CODEC_EOS]
    early = [s.talker and s.step < sampling.MIN_NEW_TOKENS for s in inputs.SETTINGS]
    assert any(early) and not eos[early].any() and eos[np.logical_not(early)].any()


# ------------------------------------------------------------------------ draws


def expected(logits: np.ndarray, *, temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """Probabilities, float64 [V], straight from the definitions."""
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p < 1:  # the fewest best ids that hold top_p
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
    return p / p.sum()


def p_value(tokens: np.ndarray, probabilities: np.ndarray) -> float:
    """Of Pearson's chi-square test; rare ids are taken together."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    if counts[probabilities == 0].any():
        return 0.0
    often = probabilities * len(tokens) >= 5
    observed = [*counts[often], counts[~often].sum()]
    likely = [*probabilities[often], probabilities[~often].sum()]
    keep = np.asarray(likely) > 0
    likely = np.asarray(likely)[keep] * len(tokens)
    return float(scipy.stats.chisquare(np.asarray(observed)[keep], likely).pvalue)


@jax.jit
def draw(logits, choice, keys):
    scores = jnp.broadcast_to(logits[None], (len(keys), len(logits)))
    return sampling.choose(scores, choice, keys)


DRAWN = [
    dict(temperature=0.9, top_k=50),
    dict(temperature=1.7, top_k=0),
    dict(temperature=0.9, top_k=0, top_p=0.8),
    dict(temperature=0.5, top_k=5, top_p=0.9),
]
WRONG = [*(dict(temperature=t) for t in (1.0, 1.5, 0.8)), dict(top_p=0.5)]


@pytest.fixture(scope="module")
def row(golden) -> np.ndarray:
    return golden[1][1, :256]  # [V]; fewer ids to draw from, each of them often


def drawn(row, seed: int = 0, **options) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return np.asarray(draw(row, sampling.Options(**options).sampling().talker, keys))


@pytest.mark.parametrize("options", DRAWN, ids=repr)
def test_draws_follow_the_distribution(row, options):
    assert p_value(drawn(row, **options), expected(row, **options)) > REJECT


@pytest.mark.parametrize(("options", "wrong"), [*zip(DRAWN, WRONG)], ids=repr)
def test_draws_from_another_distribution_are_told_apart(row, options, wrong):
    assert p_value(drawn(row, **options | wrong), expected(row, **options)) < REJECT


def test_other_keys_draw_other_tokens_and_the_same_keys_the_same(row):
    first, again = drawn(row, **DRAWN[0]), drawn(row, **DRAWN[0])
    np.testing.assert_array_equal(first, again)
    assert (first != drawn(row, seed=1, **DRAWN[0])).mean() > 0.5


def test_greedy_takes_the_best(row):
    options = sampling.Options(do_sample=False)
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = draw(row, options.sampling().talker, keys)
    np.testing.assert_array_equal(tokens, row.argmax())


def test_options_are_merged_and_checked():
    merged = sampling.Options.merge(
        dict(top_k=None, temperature=0.5), dict(top_k=7, temperature=0.7, other=1)
    )
    assert (merged.top_k, merged.temperature, merged.top_p) == (7, 0.5, 1.0)
    with pytest.raises(TypeError, match="got unknown option topk, expected .*top_k"):
        sampling.Options.merge(dict(topk=3), {})
    for bad in (
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(temperature=0.0),
        dict(repetition_penalty=-1.0),
        dict(subtalker_top_p=1.5),
        dict(max_new_tokens=1),
    ):
        (name,) = bad
        with pytest.raises(ValueError, match=f"got {name}=.*, expected "):
            sampling.Options.merge(bad, {})
