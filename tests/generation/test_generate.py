"""Greedy generation, frame by frame, against the official package."""

import functools

import inputs
import make
import numpy as np
import parity
import pytest

from qwen3tts_jax import runtime
from qwen3tts_jax.generation import generate, sampling

pytestmark = pytest.mark.usefixtures("optimized")
PENALTIES = (1.05, 1.0)
MAX_NEW_TOKENS = 50
ENOUGH = 48  # frames
FEW = 9  # new tokens, where waves are compared
LONGEST_TRAILING = 27  # of the French text, in streaming layout


@pytest.fixture(autouse=True)
def one_group(monkeypatch):
    """The longest trailing text fills a group of frames to the last place."""
    monkeypatch.setattr(generate, "GROUP", LONGEST_TRAILING)


def greedy(penalty: float, max_new_tokens: int = MAX_NEW_TOKENS) -> dict:
    return dict(
        do_sample=False,
        subtalker_dosample=False,
        repetition_penalty=penalty,
        max_new_tokens=max_new_tokens,
    )


@functools.cache
def generated(golden, name: str, penalty: float) -> list[generate.Generated]:
    prompts = [u.prompt for u in golden.utterances(name)]
    options = sampling.Options.merge(greedy(penalty), {})
    with runtime.exact():
        return generate.generate(
            golden.model.language_model,
            golden.model.config,
            prompts,
            options,
            seed=0,
            guard=False,
        )


def assert_row(golden, key: str, row: int, made: generate.Generated) -> int:
    """One row against the golden arrays under `key`; how many frames were compared."""
    arrays = golden.arrays
    length = int(arrays[f"{key}/lengths"][row])
    ties = arrays[f"{key}/residual/near_ties"]
    mine = ties[:, 0] == row
    compared = parity.assert_greedy(
        made.codes,
        arrays[f"{key}/codes"][row],
        length,
        arrays[f"{key}/first_margin"][row],
        ties[mine, 1:],
        arrays[f"{key}/residual/near_tie_margins"][mine],
    )
    if compared == length:
        ends_early = length < MAX_NEW_TOKENS - 1
        assert made.stop_reason == (generate.EOS if ends_early else generate.MAX_FRAMES)
    return compared


def test_the_longest_trailing_text_is_known(goldens):
    golden = goldens(make.SPECS[-1])
    prompts = [u.prompt for name in golden.cases for u in golden.utterances(name)]
    assert max(len(p.trailing) for p in prompts) == LONGEST_TRAILING


@pytest.mark.parametrize("penalty", PENALTIES)
@parity.over("generation")
def test_greedy_codes_equal_the_official_ones(golden, penalty):
    """Every layout, one row and three; three quarters run to 48 frames or more."""
    compared, expected = [], []
    for name in golden.cases:
        key = f"greedy_{penalty}/{name}"
        for row, made in enumerate(generated(golden, name, penalty)):
            compared.append(assert_row(golden, key, row, made))
            expected.append(int(golden.arrays[f"{key}/lengths"][row]))
    if golden.committed:
        assert np.mean(np.asarray(expected) >= ENOUGH) >= 0.75
    assert sum(compared) >= 0.9 * sum(expected)  # the rest is excused by near ties


@parity.over("generation")
def test_a_row_that_ends_lets_the_others_go_on(golden):
    ragged = 0
    for penalty in PENALTIES:
        for name, case in golden.cases.items():
            made = generated(golden, name, penalty)
            reasons = {row.stop_reason for row in made}
            ragged += reasons == {generate.EOS, generate.MAX_FRAMES}
            assert len(made) == len(case.texts)
    assert ragged or not golden.committed


@parity.over("generation")
def test_the_penalty_matters(golden):
    """Else equality at both penalties would prove little."""
    pairs = [
        [generated(golden, name, penalty) for penalty in PENALTIES]
        for name in golden.cases
    ]
    differ = [
        not np.array_equal(a.codes, b.codes) for two in pairs for a, b in zip(*two)
    ]
    assert np.mean(differ) >= 0.25


def cloned(golden) -> list[str]:
    """The cases whose waves are kept."""
    return sorted({key.split("/")[1] for key in golden.arrays if "clone/" in key})


@parity.over("references")
def test_waves_after_the_reference_is_cut_off(golden):
    """Exactly frames * 1920 samples; the official cut is one early for some lengths."""
    for name in cloned(golden):
        utterances = golden.utterances(name)
        speeches = golden.model.speak(utterances, **greedy(PENALTIES[0], FEW))
        samples = golden.notes[f"clone/{name}/samples"]
        for row, (speech, theirs) in enumerate(zip(speeches, samples, strict=True)):
            assert len(speech.wave) == inputs.SAMPLES_PER_FRAME * len(speech.codes)
            assert theirs - len(speech.wave) in (0, 1)
            key = f"clone/{name}/{row}"
            parity.assert_wave("wave after the cut", speech.wave, golden.arrays, key)
