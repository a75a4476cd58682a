"""Losses of packed rows: those of the official modules, whoever shares the row."""

import inputs
import jax
import numpy as np
import parity

from data.loading import packed_rows as packing
from qwen3tts_jax.training import fsdp
from qwen3tts_jax.training.lm import losses, params

LOSS_CLOSE = 1e-4  # nats; float32 sums differ by some 1e-6
LENGTH = 160
ALONE = fsdp.Gather(None, "float32")


def parts_of(golden) -> params.Parts:
    lm = golden.model.language_model
    return params.Parts(lm.talker, lm.predictor, None)


def packed_rows(golden, rows: list[list[str]], *, frames=inputs.TRAINED) -> dict:
    """Arrays of rows of golden training cases."""
    codes = inputs.training_codes(golden.seed)[:frames]
    examples = [
        [
            packing.Example(u.prompt, codes, u.prompt.speaker)
            for name in row
            for u in golden.utterances(name)
        ]
        for row in rows
    ]
    shape = packing.Shape(LENGTH, voices=max(map(len, examples)))
    return packing.pack(golden.model.config, examples, shape)


def measure(parts, arrays, seed=0, **settings) -> tuple[dict, losses.Sums]:
    setting = losses.Packing(**settings)

    @jax.jit
    def run(parts, arrays, key):
        eos = parts.talker.config.codec_eos_id
        total = losses.counts(arrays, eos, setting)
        loss, sums = losses.packed(
            parts, arrays, total, key, packing=setting, gather=ALONE
        )
        return losses.means(sums, total, setting) | dict(total=loss), total, sums

    made = run(parts, arrays, jax.random.key(seed))
    return jax.tree.map(np.asarray, made)


@parity.over("training")
def test_packed_losses_are_those_of_the_official_modules(golden):
    """Alone in a row, and side by side with others."""
    names = inputs.TRAINING_CASES[golden.model.config.variant]
    keys = [f"training/{name}" for name in names]
    theirs = np.mean([golden.arrays[f"{key}/losses"] for key in keys], axis=0)
    first = np.mean([golden.arrays[f"{key}/loss_0_with_eos"] for key in keys])
    for rows in ([list(names)], [[name] for name in names]):
        made, _, _ = measure(parts_of(golden), packed_rows(golden, rows))
        parity.assert_close(
            "packed losses", made["cross_entropy"], theirs, LOSS_CLOSE, scale=1
        )
        parity.assert_close(
            "packed losses", made["loss_first"], first, LOSS_CLOSE, scale=1
        )
        total = first + losses.PREDICTOR_WEIGHT * theirs[1:].mean()
        for name in ("loss", "total"):
            parity.assert_close("packed losses", made[name], total, LOSS_CLOSE, scale=1)
