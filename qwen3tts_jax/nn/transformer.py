"""Block and Transformer: the stack in talker, predictor, encoder and decoder."""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3tts_jax.config import tts
from qwen3tts_jax.nn import attention, layers, packed_attention

_attention = jax.checkpoint_policies.save_only_these_names(packed_attention.SAVED)
REMAT = {  # what a layer keeps for its backward pass, besides its input
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": _attention,  # and its attention: of all parts the dearest to redo
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _attention
    ),
    "none": None,  # everything: nothing is computed twice
}


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each branch optionally scaled."""

    def __init__(self, config: tts.TransformerConfig, *, rngs: nnx.Rngs):
        norm = layers.RMSNorm if config.norm == "rms" else layers.LayerNorm
        mlp = layers.SwiGLU if config.mlp == "swiglu" else layers.GeluMLP
        self.attention_norm = norm(config.dim, eps=config.norm_eps)
        self.attention = attention.Attention(config, rngs=rngs)
        self.mlp_norm = norm(config.dim, eps=config.norm_eps)
        self.mlp = mlp(config.dim, config.ffn, rngs=rngs)
        self.scaled = config.layer_scale is not None
        if self.scaled:
            scale = config.layer_scale
            self.attention_scale = layers.LayerScale(config.dim, initial=scale)
            self.mlp_scale = layers.LayerScale(config.dim, initial=scale)

    def __call__(self, x, angles, mask, cache=None):
        """(float [B, T, D], cache): see `Attention`."""
        y, cache = self.attention(self.attention_norm(x), angles, mask, cache)
        x = x + (self.attention_scale(y) if self.scaled else y)
        y = self.mlp(self.mlp_norm(x))
        return x + (self.mlp_scale(y) if self.scaled else y), cache


class Transformer(nnx.Module):
    """Blocks with rotary positions and, unless the configuration says no, a last norm.

    Its layers are kept in one of two forms that compute the same:
    - stacked: every parameter has a leading layer axis [L, ...] and `lax.scan` runs
      them; compiles in constant time, made for training.
    - a list: unrolled; XLA then reads each weight in place, where a scan first copies
      its slice (measured on CPU: 36 against 13 GB/s), made for generation.
    """

    def __init__(
        self,
        config: tts.TransformerConfig,
        *,
        rngs: nnx.Rngs,
        stacked: bool = False,
    ):
        def block(key):
            return Block(config, rngs=nnx.Rngs(key))

        keys = jax.random.split(rngs.params(), config.layers)
        self.layers = (
            jax.vmap(block)(keys) if stacked else nnx.List([block(k) for k in keys])
        )
        if config.final_norm:
            norm = layers.RMSNorm if config.norm == "rms" else layers.LayerNorm
            self.norm = norm(config.dim, eps=config.norm_eps)
        self.config = config
        self.stacked = stacked

    def __call__(
        self, x, positions, mask, caches=None, *, remat: str = "none", gather=None
    ):
        """Run the stack.

        Args:
            x: float [B, T, D].
            positions: int [B, T] (or [1, T]), rotary positions.
            mask: bool [B or 1, T, S], or `attention.Segments`.
            caches: None, or one cache per layer (a tuple; stacked: one with leading L).
            remat: a key of REMAT, what is kept for a backward pass; the rest of each
                layer is then computed again.
            gather: None, or a function of a Block that its parameters pass through
                just before they are used, as when each device keeps a part of them.
        Returns:
            (float [B, T, D], the extended caches or None).
        Raises:
            ValueError for any other remat.
        """
        c = self.config
        angles = attention.rope_angles(positions, c.head_dim, c.rope_theta)
        run = _runner(remat, gather, in_scan=self.stacked)
        if self.stacked:
            x, caches = jax.lax.scan(
                lambda x, layer: run(layer[0], x, angles, mask, layer[1]),
                x,
                (self.layers, caches),
            )
        else:
            pairs = []
            for i, block in enumerate(self.layers):
                cache = None if caches is None else caches[i]
                x, cache = run(block, x, angles, mask, cache)
                pairs.append(cache)
            caches = None if caches is None else tuple(pairs)
        return (self.norm(x) if c.final_norm else x), caches

    def init_cache(self, batch: int, size: int, dtype) -> tuple:
        """Empty KVCaches for `size` positions, in the form `__call__` takes."""
        caches = tuple(
            attention.KVCache.zeros(self.config, batch, size, dtype)
            for _ in range(self.config.layers)
        )
        return (
            jax.tree.map(lambda *c: jnp.stack(c), *caches) if self.stacked else caches
        )


def _runner(remat: str, gather, *, in_scan: bool):
    """The function that calls a block with the rest of its arguments."""

    def run(block, *args):
        return (block if gather is None else gather(block))(*args)

    if remat not in REMAT:
        raise ValueError(f"got remat {remat!r}, expected one of {', '.join(REMAT)}")
    if remat == "none":
        return run
    # a scan's body is compiled apart: there is nothing outside to share work with
    return jax.checkpoint(run, policy=REMAT[remat], prevent_cse=not in_scan)
