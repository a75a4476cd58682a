"""Random weights from which a codec can learn.

The layers' own initial values are those of language models: linear kernels of 0.02
and branches scaled by 1e-6 or 0.01, behind which a code hardly moves the wave.  Kernels
that keep a signal's size are not enough: without biases a silent crop is zero all the
way, and every norm multiplies its gradient by 1/sqrt(eps) (measured: gradient norms of
1e6 to 1e12).  Here every layer keeps the size of what it is given, and silence is a
signal like any other.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

BRANCH = 0.3  # of a residual branch beside what it is added to
BIAS = 0.1  # deviation; a signal's is about 1
SPEECH = 0.1  # deviation of a wave: the first layer makes it 1 ...
WAVE = 0.05  # ... and the last layer's kernel makes it small again

SCALES = r"(attention_scale|mlp_scale|gamma)\.scale$"
BRANCH_ENDS = r"units\.\d+\.conv2\.kernel$"
NO_BIAS = r"norm|wave_conv"  # an offset would be heard


def scaled(params: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Path -> float32 array of a codec: the random ones given, scaled or drawn anew.

    Discriminators and codebooks stay as they are.
    """
    own = {
        path: value
        for path, value in sorted(params.items())
        if not path.startswith("discriminators.")
    }
    anew = {
        path: deviation for path in own if (deviation := _deviation(path, own[path]))
    }
    ends = np.cumsum([own[path].size for path in anew])
    # in one draw: XLA takes 0.1 s and more to compile each
    normal = jnp.split(jax.random.normal(key, ends[-1:]), ends[:-1])
    drawn = {
        path: values.reshape(own[path].shape) * anew[path]
        for path, values in zip(anew, normal)
    }
    kept = {path: _scaled(path, own[path]) for path in own.keys() - drawn.keys()}
    return dict(params) | kept | drawn


def _deviation(path: str, value: jax.Array) -> float:
    """Of what is drawn anew; 0: it is not."""
    if path.endswith("bias"):
        return 0.0 if re.search(NO_BIAS, path) else BIAS
    linear = path.endswith(".kernel") and value.ndim == 2
    return len(value) ** -0.5 if linear else 0.0


def _scaled(path: str, value: jax.Array) -> jax.Array:
    if re.search(SCALES, path):
        return jnp.full_like(value, BRANCH)
    if path == "encoder.first.kernel":
        return value / SPEECH
    if path == "decoder.wave_conv.kernel":
        return value * WAVE
    return value * BRANCH if re.search(BRANCH_ENDS, path) else value
