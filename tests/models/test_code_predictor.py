"""The code predictor on given codes, against the official one; its own two ways."""

import inputs
import jax
import jax.numpy as jnp
import numpy as np
import parity

EVERY = 8  # every 8th code's logit is kept


def given(golden):
    """(talker hidden states [N, D], codes [N, 16])."""
    width = golden.model.config.talker.transformer.dim
    hidden, codes = inputs.predictor_inputs(golden.seed, width)
    np.testing.assert_array_equal(golden.arrays["predictor/hidden"], hidden)
    np.testing.assert_array_equal(golden.arrays["predictor/codes"], codes)
    return hidden, codes


@jax.jit
def _logits(lm, hidden, codes):
    return lm.predictor(hidden, lm.talker.embed_codec(codes[:, 0]), codes[:, 1:])


@parity.over("predictor")
def test_logits_of_given_codes(golden):
    logits = np.asarray(_logits(golden.model.language_model, *given(golden)))
    arrays = golden.arrays
    theirs = arrays["predictor/logits_of_every_8th_code"]
    assert_close = parity.assert_close
    assert_close("predictor logits", logits[..., ::EVERY], theirs, parity.CLOSE)
    # the others, through what normalises them; its error is that of a logit
    ours = np.logaddexp.reduce(logits.astype(np.float64), axis=-1)
    theirs, scale = arrays["predictor/logsumexp"], theirs.std()
    assert_close("predictor logsumexp", ours, theirs, parity.CLOSE, scale=scale)


@parity.over("predictor")
def test_loss_of_given_codes(golden):
    hidden, codes = given(golden)
    logits = np.asarray(_logits(golden.model.language_model, hidden, codes))
    scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, codes[:, 1:, None], axis=-1)
    theirs = golden.arrays["predictor/loss"]
    parity.assert_close("predictor loss", -chosen.mean(), theirs, 1e-4, scale=1)


@parity.over("predictor")
def test_generating_chooses_by_the_logits_of_given_codes(golden):
    """Greedy codes, given back, score highest: both ways see the same logits."""
    lm = golden.model.language_model
    hidden, codes = given(golden)
    made = np.asarray(_greedy(lm, hidden, codes[:, 0]))
    codes = np.concatenate([codes[:, :1], made], axis=1)
    logits = np.asarray(_logits(lm, hidden, codes))
    chosen = np.take_along_axis(logits, made[..., None], axis=-1)[..., 0]
    best = logits.max(-1)
    parity.assert_close("predictor step", chosen, best, parity.CLOSE)
    assert len(np.unique(made)) > made.size / 2  # not one code over and over


@jax.jit
def _greedy(lm, hidden, first):
    first = lm.talker.embed_codec(first)
    return lm.predictor.generate(hidden, first, lambda s, i: jnp.argmax(s, axis=-1))
