"""Teacher-forced losses, against the official parts on the same frames."""

import inputs
import jax
import jax.numpy as jnp
import numpy as np
import parity

from qwen3tts_jax.generation import prompt
from qwen3tts_jax.training.lm import losses

LOSS_CLOSE = 1e-4  # nats; float32 sums differ by some 1e-6
LENGTH, TRAILING, FRAMES = 64, 32, inputs.TRAINED + 3  # padded sizes

teacher_forced = jax.jit(losses.teacher_forced)


def run(golden, names) -> losses.Losses:
    """Losses of the training codes, padded with codes that must not count."""
    codes = np.zeros((len(names), FRAMES, inputs.CODEBOOKS), np.int32)
    codes[:, : inputs.TRAINED] = inputs.training_codes(golden.seed)[None]
    frames = np.full(len(names), inputs.TRAINED, np.int32)
    prompts = [u.prompt for name in names for u in golden.utterances(name)]
    batch = prompt.collate(
        golden.model.config, prompts, length=LENGTH, trailing=TRAILING
    )
    lm, batch = golden.model.language_model, parity.fields(batch)
    return jax.tree.map(np.asarray, teacher_forced(lm, batch, codes, frames))


def cases(golden) -> tuple[str, ...]:
    return inputs.TRAINING_CASES[golden.model.config.variant]


@parity.over("training")
def test_losses_of_every_codebook(golden):
    """Of both layouts, one by one; the end token only where it is asked for."""
    for name in cases(golden):
        made, key = run(golden, [name]), f"training/{name}"
        theirs = golden.arrays[f"{key}/losses"]
        parity.assert_close("losses", made.cross_entropy, theirs, LOSS_CLOSE, scale=1)
        theirs = golden.arrays[f"{key}/loss_0_with_eos"]
        parity.assert_close("losses", made.first_with_eos, theirs, LOSS_CLOSE, scale=1)
        total = made.first_with_eos + 0.3 * made.cross_entropy[1:].mean()
        parity.assert_close("total loss", made.total, total, LOSS_CLOSE, scale=1)


@parity.over("training")
def test_losses_of_a_ragged_batch_are_means_over_its_rows(golden):
    """Prompts of unlike lengths, each with the same number of frames."""
    names = cases(golden)
    made = run(golden, names)
    keys = [f"training/{name}" for name in names]
    theirs = np.mean([golden.arrays[f"{key}/losses"] for key in keys], axis=0)
    parity.assert_close("losses", made.cross_entropy, theirs, LOSS_CLOSE, scale=1)
    theirs = np.mean([golden.arrays[f"{key}/loss_0_with_eos"] for key in keys])
    parity.assert_close("losses", made.first_with_eos, theirs, LOSS_CLOSE, scale=1)


# ------------------------------------------------- faults of the official script


def wrong_losses(golden, name) -> dict[str, np.ndarray]:
    """Cross-entropies by codebook as the official fine-tuning script aligns them.

    QwenLM/Qwen3-TTS issues 179 and 371: labels one frame late, predictor labels one
    codebook late, a hidden state that has read its frame.
    """
    codes = inputs.training_codes(golden.seed)[None].astype(np.int32)
    (utterance,) = golden.utterances(name)
    batch = parity.fields(
        prompt.collate(
            golden.model.config, [utterance.prompt], length=LENGTH, trailing=TRAILING
        )
    )
    lm = golden.model.language_model
    hidden = losses._hidden(lm, batch, jnp.asarray(codes))
    first = losses.cross_entropy(lm.talker.logits(hidden[:, :-2]), codes[:, 1:, 0])
    rest = losses._predictor_logits(lm, hidden[:, :-1], codes)
    late = losses.cross_entropy(rest[:, :, :-1], codes[..., 2:])
    leaked = losses._predictor_logits(lm, hidden[:, 1:], codes)
    leaked = losses.cross_entropy(leaked, codes[..., 1:])
    return dict(
        frame_late=first.mean(axis=(0, 1))[None],
        codebook_late=late.mean(axis=(0, 1)),
        hidden_leaked=leaked.mean(axis=(0, 1)),
    )


@parity.over("training")
def test_the_wrong_alignments_of_the_official_script_are_told_apart(golden):
    for name in cases(golden):
        right = golden.arrays[f"training/{name}/losses"]
        wrong = wrong_losses(golden, name)
        expected = dict(
            frame_late=right[:1],
            codebook_late=right[2:],  # the head that scores it in truth
            hidden_leaked=right[1:],
        )
        for fault, value in wrong.items():
            apart = np.abs(np.asarray(value) - expected[fault]).max()
            assert apart > 100 * LOSS_CLOSE, (name, fault)
