"""The golden files fit their checkpoints, and the comparisons with them can fail."""

import inputs
import make
import numpy as np
import parity
import pytest

LARGEST = 6e6  # bytes, all files together


def test_files_are_few_and_cover_both_sizes_twice():
    files = list(parity.GOLDEN.glob("*.safetensors"))
    specs = (*make.SPECS, *make.TOKENIZERS_25HZ)
    assert sorted(f.stem for f in files) == sorted(
        [make.SAMPLING, make.TEACHERS, *(spec.name for spec in specs)]
    )
    assert sum(f.stat().st_size for f in files) < LARGEST
    for size in ("0.6B", "1.7B"):
        assert len({spec.seed for spec in make.SPECS if spec.size == size}) >= 2
    for part in (*make.LANGUAGE, *make.CODEC, *make.CLONING):
        assert {s.size for s in make.SPECS if part in s.parts} == {"0.6B", "1.7B"}


def test_another_checkpoint_is_refused(checkpoint):
    path = parity.GOLDEN / "base_0.6B.safetensors"
    with pytest.raises(AssertionError, match="checkpoint is not the one.*talker.model"):
        parity.Golden.read(path, checkpoint("base", seed=1))
    with pytest.raises(AssertionError, match="config.json.*changed"):
        parity.Golden.read(path, checkpoint("custom_voice", seed=1))


def test_other_inputs_are_refused(monkeypatch):
    monkeypatch.setattr(inputs, "_DECODE", inputs._DECODE + 1)
    with pytest.raises(AssertionError, match="inputs are not those.*decode/0"):
        parity.read(parity.GOLDEN / "base_0.6B.safetensors")


# ------------------------------------------------------------------ comparisons

FRAMES = 6
TIES = np.array([[2, 3]])  # frame, codebook


@pytest.fixture
def codes() -> np.ndarray:
    return inputs.codes(FRAMES, 0)


def changed(codes, *at: tuple[int, int]) -> np.ndarray:
    codes = codes.copy()
    for place in at:
        codes[place] += 1
    return codes


def test_codes_may_differ_after_a_near_tie_of_their_frame_alone(codes):
    margins = np.array([1e-5])
    assert parity.assert_codes(codes, codes, TIES, margins) == 0
    flipped = changed(codes, (2, 3), (2, 9))
    assert parity.assert_codes(flipped, codes, TIES, margins) == 1
    for bad in ((2, 2), (2, 4), (3, 3)):
        with pytest.raises(AssertionError):
            parity.assert_codes(changed(codes, bad), codes, TIES, margins)
    with pytest.raises(AssertionError):  # no tie, after all
        parity.assert_codes(flipped, codes, TIES, np.array([9e-4]))
    with pytest.raises(AssertionError):
        parity.assert_codes(codes[1:], codes, TIES, margins)


def greedy(ours, theirs, *, first=(), length: int = FRAMES) -> int:
    """Compare where codebook 4 of frame 2, and codebook 0 of `first`, nearly tie."""
    margins = np.ones(FRAMES)
    margins[list(first)] = 1e-5
    return parity.assert_greedy(ours, theirs, length, margins, TIES, np.array([1e-5]))


def test_greedy_codes_may_differ_from_a_near_tie_on(codes):
    assert greedy(codes, codes) == FRAMES
    assert greedy(codes[:4], codes, length=4) == 4  # what follows the end is nothing
    assert greedy(changed(codes, (2, 4), (3, 0), (5, 7)), codes) == 2
    assert greedy(changed(codes, (3, 0), (3, 1)), codes, first=[3]) == 3
    assert greedy(codes[:3], codes, first=[3]) == 3  # it chose the end instead
    assert greedy(codes, codes, first=[4], length=4) == 4  # it did not
    for bad in ((0, 0), (2, 3), (2, 5), (3, 4)):
        with pytest.raises(AssertionError, match="not the official choice"):
            greedy(changed(codes, bad, (4, 0)), codes)
    for ours, length in ((codes[:3], FRAMES), (codes, 4)):
        with pytest.raises(AssertionError, match="not the official choice"):
            greedy(ours, codes, length=length)


def test_arrays_are_compared_by_their_spread():
    theirs = np.linspace(-100, 100, 50)
    error = 1e-4 * theirs.std()
    parity.assert_close("test", theirs + 0.9 * error, theirs, 1e-4)
    with pytest.raises(AssertionError, match="test: off by 0.00011"):
        parity.assert_close("test", theirs + 1.1 * error, theirs, 1e-4)
    for ours in (theirs[:-1], theirs * np.nan):
        with pytest.raises(AssertionError):
            parity.assert_close("test", ours, theirs, 1e-4)
    del parity.worst["test"]
