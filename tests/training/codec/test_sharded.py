"""Codebooks of a mesh learn from the rows of all its devices."""

import functools

import examples
import numpy as np

CLOSE = 1e-4  # of a loss near 100: other meshes add float32 numbers in another order


@functools.cache
def runs() -> dict[str, dict]:
    """mesh -> what run_codec_sharded.py says of it."""
    return examples.on_simulated_devices("run_codec_sharded.py", 4)


def test_four_devices_have_the_losses_of_one():
    one, four = (runs()[name]["losses"] for name in ("one", "data"))
    np.testing.assert_allclose(four, one, rtol=CLOSE)


def test_four_devices_have_the_codebooks_of_one():
    """Rows of every device count, dead entries are replaced by the same vectors."""
    one, four = (runs()[name]["usage"] for name in ("one", "data"))
    assert one.keys() == four.keys() and len(one) == 4
    for path in one:
        np.testing.assert_allclose(four[path], one[path], rtol=0, atol=CLOSE)
