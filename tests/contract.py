"""What every causal part promises, as checks that all its tests share.

The streaming contract: steps over any chunking of a sequence give, joined, what one
call over the whole gives; outputs and gradients.  Causality: input from some step on
changes no output before it, not even in its last bit.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Programs that run once or twice: compiling them takes longer than running them.
quick_jit = functools.partial(
    jax.jit, compiler_options=dict(xla_backend_optimization_level=0)
)
RAGGED = (5, 2)  # chunk lengths of the mixed run, taken in turn


def random_part(build, seed: int = 0):
    """The module that `build` makes, with parameters drawn so that each one matters.

    Fresh modules hide much: layer scales near zero, biases at zero, tiny heads.
    """
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _draw(rng, path, leaf.shape), jax.eval_shape(build)
    )


def _draw(rng, path, shape) -> jax.Array:
    name = [entry.name for entry in path if getattr(entry, "name", "value") != "value"][
        -1
    ]
    normal = rng.standard_normal(shape, np.float32)
    if name == "scale":
        normal = 1 + 0.3 * normal
    elif len(shape) < 2:
        normal = 0.3 * normal
    elif name == "heads":  # [Q, D, V]
        normal = normal * shape[-2] ** -0.5
    elif name != "embedding":  # the last axis of a kernel is its output
        normal = normal * math.prod(shape[:-1]) ** -0.5
    return jnp.asarray(normal)


def check_streaming(
    step,
    init_state,
    x,
    whole,
    *,
    part,
    chunks: tuple[int, ...] = (1, 3, 7),
    unit: int = 1,
    tolerance: float = 1e-5,
    gradients: bool = True,
) -> jax.Array:
    """Assert the streaming contract at each chunk length, and for a ragged mix.

    Args:
        step: (part, x, state) -> (y, state), time on axis 1 of x and y.
        init_state: the state before the first chunk.
        x: array [B, T, ...]; T a multiple of unit times each chunk length, as of 21.
        whole: (part, x) -> y.
        part: the pytree of parameters that `step` and `whole` take.
        unit: steps of x that a chunk length counts in (the stride).
        tolerance: largest difference of outputs, and of gradients per array, in units
            of the largest value; float32 sums in another order differ by some 1e-6.
        gradients: also compare, for the plain chunk lengths, those of a fixed random
            projection of the output to every parameter and, if x is float, to x.
    Returns:
        the output of the whole.
    """
    expected = _outcome(whole, part, x, gradients)
    for lengths in (*((n,) for n in chunks), RAGGED):
        run = _chunked(step, init_state, [unit * n for n in lengths])
        got = _outcome(run, part, x, gradients and lengths != RAGGED)
        jax.tree_util.tree_map_with_path(
            lambda path, a, b, lengths=lengths: _assert_close(
                a, b, tolerance, f"chunks of {lengths}: {jax.tree_util.keystr(path)}"
            ),
            got,
            {name: expected[name] for name in got},
        )
    return expected["output"]


def _chunked(step, init_state, sizes: list[int]):
    """(part, x) -> y by steps of these sizes in turn.

    A loop: a step is compiled once, and its state has to keep its shapes and dtypes.
    """

    def run(part, x):
        def one_round(state, x):
            outputs = []
            for chunk in jnp.split(x, np.cumsum(sizes)[:-1], axis=1):
                y, state = step(part, chunk, state)
                outputs.append(y)
            return state, jnp.concatenate(outputs, axis=1)

        rounds = x.reshape(len(x), -1, sum(sizes), *x.shape[2:])
        _, y = jax.lax.scan(one_round, init_state, jnp.moveaxis(rounds, 1, 0))
        y = jnp.moveaxis(y, 0, 1)  # [B, rounds, time in a round, ...]
        return y.reshape(len(x), -1, *y.shape[3:])

    return run


def _outcome(run, part, x, gradients: bool) -> dict:
    """The output and its projection's gradients, as one program."""
    if not gradients:
        return dict(output=quick_jit(run)(part, x))

    def project(part, x):
        y = run(part, x)
        weights = np.random.default_rng(0).standard_normal(y.shape, np.float32)
        return jnp.sum(weights * y), y

    argnums = (0, 1) if jnp.issubdtype(x.dtype, jnp.floating) else 0
    gradient = jax.grad(project, argnums, has_aux=True)
    gradient, y = quick_jit(gradient)(part, x)
    return dict(output=y, gradient=gradient)


def _assert_close(got, expected, tolerance: float, what: str) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, what
    assert np.isfinite(expected).all(), what
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=tolerance * scale, err_msg=what
    )


def check_causal(run, x, *, at: int, same: int) -> None:
    """Assert that x from step `at` on changes no output before `same`, but that one.

    run: x -> y, both with time on axis 1.
    """
    run = quick_jit(run)
    before, after = np.asarray(run(x)), np.asarray(run(x.at[:, at:].add(1)))
    np.testing.assert_array_equal(before[:, :same], after[:, :same])
    assert (before[:, same] != after[:, same]).any()
