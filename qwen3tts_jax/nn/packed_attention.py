"""Causal attention over rows of several packed examples, for training.

A position sees the positions up to its own that have its segment id.  No [T, T] mask is
kept, and pairs of blocks without a common segment are skipped: rows of 8,192 positions
hold some forty utterances, so that most blocks are.

Implementations, and why these:
- "blocks": plain JAX, online softmax over pairs of blocks; runs anywhere, for the CPU.
- "splash": the Pallas kernels of `jax.experimental.pallas.ops.tpu.splash_attention`,
  which know segments and grouped heads.  What they skip is normally fixed beforehand
  by a static mask; here the same tables are made from the segments of each row.
- "cudnn": `jax.nn.dot_product_attention` on NVIDIA GPUs, with the segments as a mask.
  cuDNN wants it as a bfloat16 bias [B, 1, T, T] (134 MB a row of 8,192 positions, 2.1
  GB of 32,768) and skips the future but not other segments.  Its packed layout, which
  needs no mask, is not public in JAX; `pallas.ops.gpu.attention.mha` knows segments but
  is deprecated from jax 0.11 on.  NOT YET RUN: no GPU has been at hand.

On a mesh each device works on its rows (axes data and fsdp), heads (tensor) and queries
(sequence); keys and values are gathered over `sequence`, their gradients scattered.  A
kernel is not cut by the compiler, so the cut is written here and not in `sharding`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as splash_mask,
)
from jax.sharding import Mesh, PartitionSpec

SAVED = "attention"  # what the backward pass needs of attention, for remat policies
BATCH, SEQUENCE, HEADS = ("data", "fsdp"), "sequence", "tensor"  # axes of the mesh

BLOCK = 512  # positions; pairs of blocks are the unit of work and of skipping
LANES = 128  # the smallest block of the TPU kernels
PADDING = jnp.iinfo(jnp.int32).max  # padding stands last: ids then rise along a row
LEAST = jnp.finfo(jnp.float32).min  # finite: a masked score less another is not NaN


def default_implementation(platform: str) -> str:
    """The implementation for a device's `platform`: cpu, tpu, gpu, cuda.

    Raises: ValueError for any other platform.
    """
    known = {"cpu": "blocks", "tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
    if platform not in known:
        raise ValueError(
            f"got the platform {platform!r}, expected one of {', '.join(known)}; name "
            f"an implementation, one of {', '.join(IMPLEMENTATIONS)}"
        )
    return known[platform]


def attend(query, key, value, segment, *, implementation: str, mesh=None):
    """softmax(query key^T / sqrt(H)) value over the past of each position's segment.

    Args:
        query: float [B, T, N, H]; key, value: float [B, T, K, H], each kv head shared
            by N/K query heads.
        segment: int32 [B, T]; ids >= 1, 0 is padding.  Padding sees padding: its
            output is finite where its input is, and nothing else reads it.
        implementation: a key of IMPLEMENTATIONS.
        mesh: None, or a Mesh with the axes of `sharding.AXES`, over which B (data and
            fsdp), T (sequence), N and K (tensor) are cut.
    Returns:
        float [B, T, N, H].  Scores and softmax in float32.
    Raises:
        ValueError for an unknown implementation, or sizes that the mesh or the kernel
        cannot cut.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"got the implementation {implementation!r}, expected one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    local = IMPLEMENTATIONS[implementation]
    if mesh is None or mesh.size == 1:
        return local(query, key, value, segment, segment, None)
    _check_divides(query.shape, key.shape[2], mesh)
    gathered = functools.partial(_gather_keys, local, mesh.shape[SEQUENCE])
    heads = PartitionSpec(BATCH, SEQUENCE, HEADS, None)
    return jax.shard_map(
        gathered,
        mesh=mesh,
        in_specs=(heads, heads, heads, PartitionSpec(BATCH, SEQUENCE)),
        out_specs=heads,
        check_vma=False,  # the kernels do not say over which axes their results vary
    )(query, key, value, segment)


def _gather_keys(local, parts: int, query, key, value, segment):
    """One device's share: its queries, with the keys of the whole row."""
    if parts == 1:
        return local(query, key, value, segment, segment, None)
    whole = functools.partial(jax.lax.all_gather, axis_name=SEQUENCE, axis=1)
    key, value, keys = (whole(x, tiled=True) for x in (key, value, segment))
    start = jax.lax.axis_index(SEQUENCE) * query.shape[1]
    return local(query, key, value, segment, keys, start)


def _check_divides(shape, kv_heads: int, mesh: Mesh) -> None:
    rows, length, heads, _ = shape
    count = mesh.shape[BATCH[0]] * mesh.shape[BATCH[1]]
    for size, name, parts in (
        (rows, "rows", count),
        (length, "positions", mesh.shape[SEQUENCE]),
        (heads, "query heads", mesh.shape[HEADS]),
        (kv_heads, "kv heads", mesh.shape[HEADS]),
    ):
        if size % parts:
            raise ValueError(
                f"got {size} {name}, expected a multiple of {parts}, into which the "
                f"mesh {dict(mesh.shape)} cuts them; change one of them"
            )


def _visible(queries, keys, start, block_q: int, block_k: int):
    """Boolean [B, T/block_q, S/block_k]: pairs of blocks that may have work.

    queries, keys: int32 [B, T], [B, S] segment ids; start: position of the first query
    among the keys.  Ids are compared by their range in a block, which is exact enough
    where ids rise along the row, and never wrong.
    """

    def ranges(ids, size):
        ids = jnp.where(ids <= 0, PADDING, ids).reshape(len(ids), -1, size)
        return ids.min(axis=2), ids.max(axis=2)

    low_q, high_q = (x[:, :, None] for x in ranges(queries, block_q))
    low_k, high_k = (x[:, None, :] for x in ranges(keys, block_k))
    last = start + (1 + jnp.arange(queries.shape[1] // block_q)) * block_q - 1
    first = jnp.arange(keys.shape[1] // block_k) * block_k
    causal = first[None, None, :] <= last[None, :, None]
    return causal & (low_q <= high_k) & (low_k <= high_q)


# ------------------------------------------------------------------- plain JAX


def _blocks(query, key, value, queries, keys, start, block: int = BLOCK):
    """Online softmax over pairs of blocks; memory grows as T * block."""
    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    block = min(block, -(-max(length, key.shape[1]) // 8) * 8)
    q = _cut(query.reshape(batch, length, kv_heads, -1, dim), block)
    k, v = _cut(key, block), _cut(value, block)
    # two kinds of filler that see neither each other nor any segment
    queries, keys = _cut(queries, block, fill=-1), _cut(keys, block, fill=-2)
    start = jnp.int32(0 if start is None else start)
    y = _flash(q, k, v, queries, keys, start)  # [n, B, t, K, G, H]
    y = jnp.moveaxis(y, 0, 1).reshape(batch, -1, heads, dim)
    return y[:, :length]


def _cut(x, block: int, fill=0):
    """[n, B, block, ...] of [B, T, ...], the last block filled up."""
    more = -x.shape[1] % block
    width = [(0, more if axis == 1 else 0) for axis in range(x.ndim)]
    x = jnp.pad(x, width, constant_values=fill)
    return jnp.moveaxis(x.reshape(len(x), -1, block, *x.shape[2:]), 1, 0)


def _bounds(queries, keys, start):
    """(first, end) int32 [n]: the blocks of keys that any row of a block reads."""
    n, batch, block = queries.shape
    flat = [jnp.moveaxis(x, 0, 1).reshape(batch, -1) for x in (queries, keys)]
    visible = _visible(*flat, start, block, block).any(axis=0)  # [n, m]
    first = jnp.argmax(visible, axis=1)
    end = visible.shape[1] - jnp.argmax(visible[:, ::-1], axis=1)
    return first, jnp.where(visible.any(axis=1), end, first)


def _scores(q, k, ids_q, ids_k, i, j, start):
    """(scores, mask) float32 and bool, [B, K, G, t, s], of one pair of blocks."""
    block = q.shape[1]
    steps = jnp.arange(block)
    causal = (j * block + steps)[None, :] <= (start + i * block + steps)[:, None]
    mask = causal[None] & (ids_q[:, :, None] == ids_k[:, None, :])  # [B, t, s]
    mask = mask[:, None, None]
    scores = _einsum("BtKGH,BsKH->BKGts", q, k) * q.shape[-1] ** -0.5
    return jnp.where(mask, scores, LEAST), mask


def _einsum(rule, *operands):
    return jnp.einsum(rule, *operands, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _flash(q, k, v, queries, keys, start):
    """[n, B, t, K, G, H] of q in that shape and k, v [m, B, s, K, H]."""
    return _flash_forward(q, k, v, queries, keys, start)[0]


def _flash_forward(q, k, v, queries, keys, start):
    first, end = _bounds(queries, keys, start)

    def of_queries(args):
        i, q_i, ids = args

        def step(j, carry):
            most, total, y = carry
            scores, mask = _scores(q_i, k[j], ids, keys[j], i, j, start)
            higher = jnp.maximum(most, scores.max(axis=-1))
            weights = jnp.where(mask, jnp.exp(scores - higher[..., None]), 0)
            fade = jnp.exp(most - higher)
            total = total * fade + weights.sum(axis=-1)
            more = _einsum("BKGts,BsKH->BKGtH", weights.astype(v.dtype), v[j])
            return higher, total, y * fade[..., None] + more

        batch, block, kv_heads, groups, dim = q_i.shape
        shape = (batch, kv_heads, groups, block)
        zero = jnp.zeros(shape, jnp.float32)
        carry = (zero + LEAST, zero, jnp.zeros((*shape, dim), jnp.float32))
        most, total, y = jax.lax.fori_loop(first[i], end[i], step, carry)
        total = jnp.where(total > 0, total, 1)  # filler has seen nothing
        y = (y / total[..., None]).astype(q.dtype)
        return jnp.moveaxis(y, 3, 1), most + jnp.log(total)

    y, sums = jax.lax.map(of_queries, (jnp.arange(len(q)), q, queries))
    y, sums = checkpoint_name(y, SAVED), checkpoint_name(sums, SAVED)
    return y, (q, k, v, queries, keys, start, y, sums)


def _flash_backward(saved, dy):
    q, k, v, queries, keys, start, y, sums = saved
    first, end = _bounds(queries, keys, start)
    # softmax's own derivative: weights * (dweights - sum(weights * dweights))
    inner = _einsum("nBtKGH,nBtKGH->nBKGt", dy, y)

    def of_queries(carry, args):
        i, q_i, dy_i, ids, sums_i, inner_i = args

        def step(j, carry):
            dq, dk, dv = carry
            scores, mask = _scores(q_i, k[j], ids, keys[j], i, j, start)
            weights = jnp.where(mask, jnp.exp(scores - sums_i[..., None]), 0)
            dweights = _einsum("BtKGH,BsKH->BKGts", dy_i, v[j])
            dscores = weights * (dweights - inner_i[..., None]) * q.shape[-1] ** -0.5
            dscores, weights = dscores.astype(q.dtype), weights.astype(q.dtype)
            dq = dq + _einsum("BKGts,BsKH->BtKGH", dscores, k[j])
            dk = dk.at[j].add(_einsum("BKGts,BtKGH->BsKH", dscores, q_i))
            dv = dv.at[j].add(_einsum("BKGts,BtKGH->BsKH", weights, dy_i))
            return dq, dk, dv

        dq = jnp.zeros(q_i.shape, jnp.float32)
        dq, *carry = jax.lax.fori_loop(first[i], end[i], step, (dq, *carry))
        return tuple(carry), dq

    carry = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
    each = (jnp.arange(len(q)), q, dy, queries, sums, inner)
    (dk, dv), dq = jax.lax.scan(of_queries, carry, each)
    grads = (x.astype(like.dtype) for x, like in ((dq, q), (dk, k), (dv, v)))
    return (*grads, None, None, None)


_flash.defvjp(_flash_forward, _flash_backward)


# ------------------------------------------------------------------ TPU kernels


def _splash(query, key, value, queries, keys, start, interpret: bool = False):
    """The splash kernels, one row at a time, with tables made of the row's segments."""
    length, size = query.shape[1], key.shape[1]
    if length % LANES or size % LANES:
        raise ValueError(
            f"got {length} positions a device, expected a multiple of {LANES}, the "
            "smallest block of the TPU kernels; change the rows' length or the mesh"
        )
    block = next(b for b in (BLOCK, BLOCK // 2, LANES) if not (length % b or size % b))
    start = jnp.int32(0 if start is None else start)
    visible = _visible(queries, keys, start, block, block)
    row = functools.partial(_splash_row, start, block, interpret)
    query = query * query.shape[-1] ** -0.5  # the kernels do not scale
    by_head = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, N, T, H]
    return jax.vmap(row)(*by_head, queries, keys, visible).swapaxes(1, 2)


def _splash_row(start, block, interpret, query, key, value, queries, keys, visible):
    """[N, T, H] of query [N, T, H], key and value [K, T, H]."""
    position = start + jnp.arange(query.shape[1])
    seen = visible.astype(jnp.int32)

    def table(next_block):
        return splash_mask.MaskInfo(next_block[None], None, seen[None], None, position)

    by_queries = table(_next_visible(visible))
    by_keys = table(_next_visible(visible.T).T)
    kernel = splash_kernel.SplashAttentionKernel(
        by_queries,
        by_queries,
        by_keys,
        block_sizes=splash_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=SAVED,
        mask_function=jnp.greater_equal,
        interpret=interpret,
    )
    return kernel(query, key, value, splash_kernel.SegmentIds(queries, keys))


def _next_visible(visible):
    """int32 like visible [n, m]: the column that the kernel should read next.

    At a pair with work its own column; where there is none, that of the next pair with
    work, row by row, which the kernel fetches meanwhile.
    """
    flat = visible.reshape(-1)
    place = jnp.where(flat, jnp.arange(flat.size), flat.size)
    following = jax.lax.cummin(place, reverse=True)
    following = jnp.where(following == flat.size, following[0], following)
    return (following % visible.shape[1]).astype(jnp.int32).reshape(visible.shape)


# -------------------------------------------------------------------------- GPU


def _cudnn(query, key, value, queries, keys, start):
    """cuDNN's flash attention, the segments as a mask.  bfloat16 or float16 only."""
    mask = queries[:, None, :, None] == keys[:, None, None, :]  # [B, 1, T, S]
    if start is not None:
        steps = jnp.arange(keys.shape[1])
        own = start + jnp.arange(queries.shape[1])
        mask &= (steps[None, :] <= own[:, None])[None, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=start is None, implementation="cudnn"
    )


IMPLEMENTATIONS = {"blocks": _blocks, "splash": _splash, "cudnn": _cudnn}
