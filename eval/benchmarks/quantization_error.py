"""How far cheaper weights lead from the float ones: divergence of the scores, share of
equal choices.

Both models read the codes that the float model chooses (teacher forcing, in one pass
over prompt and frames, aligned as generation is), and then each goes its own way.  The
weights are those of generation; what generation on a CPU also rounds, the activations
of an integer product, is in the free run alone.  Tokens that are no codes are left out.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax import runtime
from qwen3tts_jax.generation import generate, prompt, sampling
from qwen3tts_jax.nn import attention, quantized


@jax.jit
def scores(lm: generate.LanguageModel, batch: dict, codes: jax.Array):
    """Scores of given frames after a prompt, before each choice.

    Args:
        batch: fields of `prompt.Batch` of one prompt without padding, its `trailing`
            as long as the frames.
        codes: int32 [T, Q].
    Returns:
        (float32 [T, V - 1024] of codebook 0, float32 [T, Q - 1, V] of the others, if
        there are any).
    """
    frames = lm.embed_frame(codes[None]) + lm.talker.embed_text(batch["trailing"])
    x = jnp.concatenate([lm.embed_prompt(batch), frames], axis=1)
    length = x.shape[1]
    positions, mask = jnp.arange(length)[None], attention.causal_mask(length)
    hidden, _ = lm.talker(x, positions, mask)
    hidden = hidden[0, -len(codes) - 1 : -1]  # before each frame
    first = lm.talker.logits(hidden)[:, : -sampling.SUPPRESSED_TAIL]
    if lm.predictor is None:
        return (first.astype(jnp.float32),)
    embedded = lm.talker.embed_codec(codes[:, 0])
    rest = lm.predictor(hidden, embedded, codes[:, 1:])
    return first.astype(jnp.float32), rest.astype(jnp.float32)


def with_float_heads(lm: generate.LanguageModel) -> generate.LanguageModel:
    """The same with predictor heads that a teacher-forced pass can read.

    They hold the values of the quantised ones.
    """
    if lm.predictor is None:
        return lm
    heads = lm.predictor.heads[...]
    if not isinstance(heads, quantized.QuantizedKernel):
        return lm
    predictor = jax.tree.map(lambda leaf: leaf, lm.predictor)
    predictor.heads = nnx.Param(heads.dequantize(lm.dtype))
    return lm.replace(predictor=predictor)


def divergence(exact: jax.Array, cheap: jax.Array) -> np.ndarray:
    """KL(exact || cheap) of the softmaxes of float32 [..., V] scores, in nats."""
    log_p, log_q = (jax.nn.log_softmax(x, axis=-1) for x in (exact, cheap))
    return np.asarray(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


def compare(config, item: prompt.Prompt, make, exact, cheap, frames: int) -> dict:
    """What a change of weights changes, from `exact` to `cheap` LanguageModels.

    make: (frames, language model) -> greedy codes int32 [frames, Q] of the prompt.
    Returns: for codebook 0 and, where there are, for 1..15: KL divergence (mean, max)
        and share of positions with the same best code; frames from the start that are
        equal in free runs.
    """
    codes, own = make(frames, exact), make(frames, cheap)
    batch = prompt.collate(config, [item], length=len(item.text), trailing=frames)
    batch = dataclasses.asdict(batch)
    with runtime.exact():
        pairs = zip(
            *(scores(with_float_heads(lm), batch, codes) for lm in (exact, cheap))
        )
        found = {}
        for name, (a, b) in zip(("codebook_0", "codebooks_1_15"), pairs):
            kl, same = divergence(a, b), a.argmax(-1) == b.argmax(-1)
            found[name] = dict(
                kl_mean=float(kl.mean()),
                kl_max=float(kl.max()),
                same_best=float(same.mean()),
            )
    equal = (codes == own).all(axis=1)
    free = frames if equal.all() else int(equal.argmin())
    return found | dict(frames=frames, frames_equal_in_free_runs=free)
