"""Codebooks of a mesh learn from the rows of all its devices."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import examples
import numpy as np

CLOSE = 1e-4  # of a loss near 100: other meshes add float32 numbers in another order


@functools.cache
def runs() -> dict[str, dict]:
    """mesh -> what run_codec_sharded.py says of it."""
    flags = {"xla_force_host_platform_device_count": 4} | examples.QUICK
    env = os.environ | {
        "XLA_FLAGS": " ".join(f"--{k}={str(v).lower()}" for k, v in flags.items()),
        # threads: with fewer than devices, two collectives can wait for each other
        "NPROC": "32",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    program = pathlib.Path(__file__).with_name("run_codec_sharded.py")
    done = subprocess.run(
        [sys.executable, program], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = map(json.loads, done.stdout.splitlines())
    return {line["mesh"]: line for line in lines}


def test_four_devices_have_the_losses_of_one():
    one, four = (runs()[name]["losses"] for name in ("one", "data"))
    np.testing.assert_allclose(four, one, rtol=CLOSE)


def test_four_devices_have_the_codebooks_of_one():
    """Rows of every device count, dead entries are replaced by the same vectors."""
    one, four = (runs()[name]["usage"] for name in ("one", "data"))
    assert one.keys() == four.keys() and len(one) == 4
    for path in one:
        np.testing.assert_allclose(four[path], one[path], rtol=0, atol=CLOSE)
