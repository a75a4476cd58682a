"""Attention on packed rows, against a dense mask; and what stacks do with it."""

import functools
import os
import subprocess
import sys

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import attention, packed_attention, transformer

HEADS, KV_HEADS, DIM = 4, 2, 16
# float32 sums in another order
CLOSE = dict(rtol=1e-5, atol=1e-5)
BLOCK = 16  # of the small runs, so that there are several


def dense(query, key, value, segment):
    """The definition: a mask of all pairs."""
    same = segment[:, :, None] == segment[:, None, :]
    mask = same & attention.causal_mask(query.shape[1])
    key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    return attention.attend(query, key, value, mask)


def blocks(query, key, value, segment, block=BLOCK):
    local = packed_attention.IMPLEMENTATIONS["blocks"]
    return local(query, key, value, segment, segment, None, block=block)


def splash(query, key, value, segment):
    """The TPU kernels, interpreted."""
    local = packed_attention.IMPLEMENTATIONS["splash"]
    return local(query, key, value, segment, segment, None, interpret=True)


def rows(length, rng, batch=2, most=6):
    """Segment ids int32 [B, T]: up to `most` segments, then padding in odd rows."""
    segment = np.zeros((batch, length), np.int32)
    for row in range(batch):
        cuts = rng.choice(length, min(most, length) - 1, replace=False)
        steps = np.zeros(length, np.int32)
        steps[cuts] = 1
        steps[0] = 1
        segment[row] = np.cumsum(steps)
        if row % 2 and length > 3:
            segment[row, -length // 4 :] = 0
    return jnp.asarray(segment)


def operands(length, dtype=jnp.float32, dim=DIM, seed=0):
    """(query, key, value, segment, weights of the outputs)."""
    rng = np.random.default_rng(seed)
    q, k, v, w = (
        jnp.asarray(rng.standard_normal((2, length, heads, dim)), dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    segment = rows(length, rng)
    return q, k, v, segment, w * (segment > 0)[..., None, None]


@functools.partial(contract.quick_jit, static_argnums=0)
def outcome(function, query, key, value, segment, weights):
    """(outputs where no padding is, gradients of their weighted sum)."""

    def loss(*args):
        y = function(*args, segment)
        total = jnp.vdot(weights.astype(jnp.float32), y.astype(jnp.float32))
        return total, jnp.where(segment[..., None, None] > 0, y, 0)

    grads, y = jax.grad(loss, (0, 1, 2), has_aux=True)(query, key, value)
    return y, *grads


def assert_same(got, expected, **tolerance):
    for made, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(made, right, **tolerance)


# ------------------------------------------------------------------------ values


@pytest.mark.parametrize("length", [1, 2, 16, 17, 80])
def test_blocks_equal_dense_attention(length):
    """Values and gradients, for lengths that fill their blocks and that do not."""
    args = operands(length)
    assert_same(outcome(blocks, *args), outcome(dense, *args), **CLOSE)


def test_splash_equals_dense_attention():
    """Two blocks of 128 a row; grouped heads; tables made of the segments."""
    args = operands(256, dim=128)
    assert_same(outcome(splash, *args), outcome(dense, *args), rtol=1e-4, atol=1e-4)


def test_segments_in_any_order_are_right():
    """Ids need not rise along a row, nor stand together: only skipping likes that."""
    q, k, v, _, w = operands(64)
    segment = jnp.asarray(np.random.default_rng(1).integers(1, 4, (2, 64)), jnp.int32)
    args = q, k, v, segment, w
    assert_same(outcome(blocks, *args), outcome(dense, *args), **CLOSE)


def test_bfloat16_is_as_close_as_its_roundings():
    """Against float32 on the same numbers: weights and results of 8 bits."""
    narrow = operands(80, jnp.bfloat16)
    wide = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in narrow]
    for got, right in zip(outcome(blocks, *narrow), outcome(dense, *wide)):
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float32) - right).max()
        assert error < 4 * 2**-8 * np.abs(right).max()


@pytest.mark.parametrize("function", [blocks, splash])
def test_padding_never_leaks(function):
    """Large numbers in padding change no bit elsewhere, nor does another segment."""
    query, key, value, segment, weights = operands(256, dim=128)
    padding = (segment == 0)[..., None, None]
    loud = (jnp.where(padding, 1e4, x) for x in (query, key, value))
    quiet = outcome(function, query, key, value, segment, weights)
    made = outcome(function, *loud, segment, weights)
    for a, b in zip(made, quiet):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(function(query, key, value, segment)).all()
    second = (segment == 2)[..., None, None]
    y = function(query, jnp.where(second, 9.0, key), value, segment)
    y, before = (jnp.where(second, 0, x) for x in (y, function(*args_of(query, key))))
    np.testing.assert_array_equal(y, before)


def args_of(query, key):
    """The operands with this query and key."""
    _, _, value, segment, _ = operands(256, dim=128)
    return query, key, value, segment


def test_pairs_of_blocks_without_a_common_segment_are_skipped():
    """32 segments of 8 positions in blocks of 16: the diagonal alone has work."""
    segment = jnp.repeat(1 + jnp.arange(32, dtype=jnp.int32), 8)[None]
    seen = packed_attention._visible(segment, segment, 0, 16, 16)
    np.testing.assert_array_equal(seen[0], np.eye(16, dtype=bool))
    one = packed_attention._visible(segment * 0 + 1, segment * 0 + 1, 0, 16, 16)
    np.testing.assert_array_equal(one[0], np.tri(16, dtype=bool))


def test_what_the_kernel_reads_next_is_the_next_pair_with_work():
    seen = jnp.asarray([[1, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    expected = [[0, 1, 1], [1, 1, 1], [1, 1, 2]]
    np.testing.assert_array_equal(packed_attention._next_visible(seen), expected)
    seen = seen.at[2].set(False)  # after the last, the first again: of the next head
    expected = [[0, 1, 1], [1, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(packed_attention._next_visible(seen), expected)


def test_refusals_say_what_to_do():
    q, k, v, segment, _ = operands(4)
    with pytest.raises(ValueError, match="expected one of blocks, splash, cudnn"):
        packed_attention.attend(q, k, v, segment, implementation="dense")
    with pytest.raises(ValueError, match="got the platform 'abacus'"):
        packed_attention.default_implementation("abacus")
    with pytest.raises(ValueError, match="multiple of 128"):
        splash(q, k, v, segment)
    assert packed_attention.default_implementation("cpu") == "blocks"


# ------------------------------------------------------------------------ stacks

CONFIG = tts.TransformerConfig(
    dim=24,
    ffn=32,
    layers=3,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=8,
    rope_theta=100.0,
    norm_eps=1e-6,
    qk_norm=True,
)


@functools.partial(contract.quick_jit, static_argnames=("packed", "remat"))
def gradients(part, x, segment, packed=True, remat="none"):
    """(outputs, gradients) of a stack on packed rows."""
    mask = attention.Segments(segment, "blocks")
    if not packed:
        same = segment[:, :, None] == segment[:, None, :]
        mask = same & attention.causal_mask(x.shape[1])
    positions = jnp.broadcast_to(jnp.arange(x.shape[1])[None], segment.shape)

    def loss(part):
        y, _ = part(x, positions, mask, remat=remat)
        return jnp.vdot(x[::-1], y), y

    grads, y = jax.grad(loss, has_aux=True)(part)
    return y, *jax.tree.leaves(grads)


@functools.cache
def stack(stacked=True):
    return contract.random_part(
        lambda: transformer.Transformer(CONFIG, rngs=nnx.Rngs(0), stacked=stacked)
    )


def stack_inputs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 24, CONFIG.dim)), jnp.float32)
    return x, rows(24, rng) + 1  # no padding: all outputs count


def test_a_stack_takes_segments_for_a_mask():
    x, segment = stack_inputs()
    expected = gradients(stack(), x, segment, packed=False)
    for got, right in zip(gradients(stack(), x, segment), expected):
        scale = np.abs(right).max()
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "remat, stacked",
    [("full", True), ("full", False), ("attention", True), ("dots", True)],
)
def test_remat_changes_nothing(remat, stacked):
    x, segment = stack_inputs()
    expected = gradients(stack(stacked), x, segment)
    for got, right in zip(gradients(stack(stacked), x, segment, remat=remat), expected):
        scale = np.abs(right).max()
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5 * scale)


def test_remat_keeps_less():
    """Numbers kept between the passes, by policy."""
    x, segment = stack_inputs()
    mask, positions = attention.Segments(segment, "blocks"), jnp.arange(24)[None]

    def kept(remat):
        def run(part):
            return part(x, positions, mask, remat=remat)[0]

        _, back = jax.eval_shape(lambda part: jax.vjp(run, part), stack())
        return sum(leaf.size for leaf in jax.tree.leaves(back))

    sizes = [kept(name) for name in ("full", "attention", "dots", "none")]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes), sizes


def test_parameters_pass_through_gather():
    """Each layer's own, just before it runs: here they are halved there."""
    x, segment = stack_inputs()
    mask, positions = attention.Segments(segment, "blocks"), jnp.arange(24)[None]

    def half(tree):
        return jax.tree.map(lambda leaf: leaf / 2, tree)

    part = stack()
    flat, tree = jax.tree_util.tree_flatten_with_path(part)
    halved = [x / 2 if "layers" in str(path) else x for path, x in flat]
    got, _ = part(x, positions, mask, gather=half)
    right, _ = jax.tree.unflatten(tree, halved)(x, positions, mask)
    np.testing.assert_allclose(got, right, **CLOSE)


def test_an_unknown_remat_is_refused():
    x, segment = stack_inputs()
    with pytest.raises(ValueError, match="got remat 'some', expected one of full"):
        gradients(stack(), x, segment, remat="some")


# ------------------------------------------------------------------------ meshes

SHARDED = """
import functools
import jax, jax.numpy as jnp, numpy as np
import test_packed_attention as t
from qwen3tts_jax import sharding
from qwen3tts_jax.nn import packed_attention

def doubled(args):
    return [jnp.concatenate([x, x[::-1]]) for x in args]

def check(implementation, local, args, **shape):
    mesh = sharding.make_mesh(**shape)
    def on_mesh(q, k, v, segment):
        return packed_attention.attend(
            q, k, v, segment, implementation=implementation, mesh=mesh)
    alone = functools.partial(packed_attention.attend, implementation=implementation)
    got, right = t.outcome(on_mesh, *args), t.outcome(local, *args)
    t.assert_same(got, right, rtol=1e-4, atol=1e-4)
    print(implementation, shape)

args = doubled(t.operands(40))
for shape in (dict(data=2, fsdp=2), dict(tensor=2, sequence=2)):
    check("blocks", t.blocks, args, **shape)
packed_attention.IMPLEMENTATIONS["splash"] = functools.partial(
    packed_attention.IMPLEMENTATIONS["splash"], interpret=True)
check("splash", t.dense, doubled(t.operands(256, dim=128)), fsdp=2, sequence=2)
try:
    check("blocks", t.blocks, t.operands(40), fsdp=4)
except ValueError as error:
    print(error)
"""


def test_a_mesh_changes_nothing():
    """Values and gradients on simulated devices, over every axis."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    paths = os.pathsep.join([*sys.path, os.path.dirname(__file__)])
    result = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ
        | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "blocks {'data': 2, 'fsdp': 2}" in result.stdout
    assert "blocks {'tensor': 2, 'sequence': 2}" in result.stdout
    assert "splash {'fsdp': 2, 'sequence': 2}" in result.stdout
    assert "got 2 rows, expected a multiple of 4" in result.stdout
