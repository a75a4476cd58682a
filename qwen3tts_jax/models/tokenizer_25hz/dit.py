"""DiT: codes, x-vector and reference mel -> the velocity of a noisy mel.

Source: Qwen3TTSTokenizerV1DecoderDiTModel; the flow-matching decoder of the
Qwen2.5-Omni report (arXiv 2503.20215, section 2.4).  `flow_matching.py` integrates the
velocity.

Mel frames stand in blocks of `config.block`, see `dit_blocks.py`.  Through the whole
stack a velocity sees as many blocks back as there are layers that look back, and as
many ahead as there are layers that look ahead; what a later block needs of an earlier
one is that block's keys and values in the layers that look back (`Past`).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax.config import tokenizer_25hz
from qwen3tts_jax.models import speaker_encoder
from qwen3tts_jax.models.tokenizer_25hz import dit_blocks
from qwen3tts_jax.nn import layers

TIME_DIM = 256  # of the sinusoids, in DiTTimestepEmbedding
TIME_SCALE = 1000.0  # time runs from 0 to 1
TIME_PERIOD = 10000.0
NO_CODE = 0  # the official code drops a code by putting a 0, a real code, in its place


@struct.dataclass
class Past:
    """The block before a window, at one time of the solver.

    Attributes:
        keys, values: float [L, B, T, N, H], L layers that look back; keys are rotated.
    """

    keys: jax.Array
    values: jax.Array


@struct.dataclass
class Modulation:
    """Shifts, scales and gates that a time gives to every layer.

    Attributes:
        blocks: float [..., L, 6, D]; last: float [..., 2, D].
    """

    blocks: jax.Array
    last: jax.Array


class TimeEmbedding(nnx.Module):
    """Sinusoids of a time, then two linear layers.  time: float [S] -> [S, D]."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.fc1 = layers.Linear(TIME_DIM, dim, bias=True, rngs=rngs)
        self.fc2 = layers.Linear(dim, dim, bias=True, rngs=rngs)

    def __call__(self, time: jax.Array) -> jax.Array:
        half = TIME_DIM // 2
        exponent = -math.log(TIME_PERIOD) / (half - 1)
        frequency = jnp.exp(exponent * jnp.arange(half, dtype=jnp.float32))
        # in float32: the fastest sinusoid turns 160 times
        angle = TIME_SCALE * time.astype(jnp.float32)[:, None] * frequency[None]
        x = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        x = x.astype(self.fc1.kernel[...].dtype)
        return self.fc2(jax.nn.silu(self.fc1(x)))


class DiT(nnx.Module):
    """The velocity of a mel that flows from noise, block-wise."""

    def __init__(self, config: tokenizer_25hz.DiTConfig, *, rngs: nnx.Rngs):
        c = config
        self.time = TimeEmbedding(c.dim, rngs=rngs)
        self.code_embedding = layers.Embed(c.codes + 1, c.code_dim, rngs=rngs)
        self.reference = speaker_encoder.SpeakerEncoder(c.reference, rngs=rngs)
        width = c.mel_bins + c.reference.dim + c.code_dim + c.xvector_dim
        self.input = layers.Linear(width, c.dim, bias=True, rngs=rngs)
        exponent = jnp.arange(0, c.head_dim, 2, dtype=jnp.float32) / c.head_dim
        self.inv_freq = nnx.Param(1.0 / c.rope_theta**exponent)  # a buffer in the file
        looks = [(i in c.look_back, i in c.look_ahead) for i in range(c.layers)]
        blocks = [dit_blocks.Block(c, back=b, ahead=a, rngs=rngs) for b, a in looks]
        self.blocks = nnx.List(blocks)
        self.modulation = layers.Linear(c.dim, 2 * c.dim, bias=True, rngs=rngs)
        self.project = layers.Linear(c.dim, c.mel_bins, bias=True, rngs=rngs)
        self.config = config

    @property
    def back(self) -> int:
        """Blocks before its own that a velocity depends on."""
        return sum(block.back for block in self.blocks)

    @property
    def ahead(self) -> int:
        """Blocks after its own that a velocity depends on."""
        return sum(block.ahead for block in self.blocks)

    @property
    def dtype(self):
        """Of everything but the mel."""
        return self.project.kernel[...].dtype

    # ---------------------------------------------------- what does not change

    def voice(self, xvector: jax.Array, mel: jax.Array, length: jax.Array):
        """What a voice adds to the input of every frame.

        Args:
            xvector: float [B, X].
            mel: float [B, T, M], reference mel at 16 kHz, hop 160; what stands behind
                `length` is not seen (the official code does not mask it).
            length: int [B], frames that count; see `shortest_reference`.
        Returns:
            float [B, D].
        """
        _, reference, _, voice = self._kernels()
        embedded = self.reference(mel.astype(self.dtype), length)
        return embedded @ reference + xvector.astype(self.dtype) @ voice

    def nobody(self) -> jax.Array:
        """float [D]: all but the mel in the input of the unconditional rows.

        No code, and a voice of zeros, which the reference encoder makes one vector of,
        however many there are.
        """
        c, frames = self.config, shortest_reference(self.config)
        mel = jnp.zeros((1, frames, c.mel_bins), self.dtype)
        xvector = jnp.zeros((1, c.xvector_dim), self.dtype)
        code = self.code_embedding(jnp.full(1, NO_CODE)) @ self._kernels()[2]
        voice = self.voice(xvector, mel, jnp.full(1, frames))
        return (code + voice)[0] + self.input.bias[...]

    def window(self, codes, length, voice, first, nobody=None) -> dit_blocks.Window:
        """Blocks to make.

        Args:
            codes: int [B, T], T * repeats mel frames; the last block may be short.
            length: int [B], codes that the row has; those behind may be anything.
            voice: float [B, D], from `voice`.
            first: int [B], number of the block that the codes begin with.
            nobody: from `nobody`, to append unconditional rows: 2B rows come out.
        """
        known = jnp.arange(codes.shape[1])[None] < length[:, None]
        embedded = self.code_embedding(jnp.where(known, codes, NO_CODE))
        code_kernel = self._kernels()[2]
        x = embedded @ code_kernel + voice[:, None]
        x = self._in_blocks(x + layers.per_channel(self.input.bias, x))
        angles = self._angles(self._positions(first, x.shape[1]))
        window = dit_blocks.Window(x, angles, self._in_blocks(known), first > 0)
        if nobody is None:
            return window
        nothing = jnp.broadcast_to(nobody.reshape(1, 1, 1, -1), x.shape)
        return double(window).replace(conditions=jnp.concatenate([x, nothing]))

    def modulations(self, times: jax.Array) -> Modulation:
        """Of float32 times [S], for all layers: [S, L, 6, D] and [S, 2, D].

        At once, since they depend on nothing else: two fifths of the weights that a
        velocity would otherwise read are these.
        """
        x = jax.nn.silu(self.time(times))
        blocks = [block.modulation(x).reshape(len(x), 6, -1) for block in self.blocks]
        last = self.modulation(x).reshape(len(x), 2, -1)
        return Modulation(jnp.stack(blocks, axis=1), last)

    # ----------------------------------------------------------- what does

    def velocity(
        self, mel, modulation: Modulation, window: dit_blocks.Window, past: Past
    ):
        """One evaluation.

        Args:
            mel: float [B, J, T, M], noisy; frames that are not valid may be anything.
            modulation: of one time, [L, 6, D] and [2, D].
            window: of the same blocks, with B or (guided) 2B rows.
            past: the block before, with as many rows.
        Returns:
            (float32, shaped like mel with the rows of `window`: the velocity, 0 at
            frames that are not valid; Past of the window's first block).
        """
        rows = len(window.valid)
        valid = window.valid[..., None]
        mel = jnp.where(valid[: len(mel)], mel, 0).astype(self.dtype)
        x = mel @ self._kernels()[0]
        x = (x if len(x) == rows else double(x)) + window.conditions
        looks, kept = iter(zip(past.keys, past.values)), []
        for i, block in enumerate(self.blocks):
            before = next(looks) if block.back else None
            x, made = block(x, modulation.blocks[i], window, before)
            if block.back:
                kept.append([part[:, 0] for part in made])
        scale, shift = (m.reshape(1, 1, 1, -1) for m in modulation.last)
        x = dit_blocks.normalize(x)
        x = x * (1 + scale.astype(x.dtype)) + shift.astype(x.dtype)
        velocity = jnp.where(valid, self.project(x).astype(jnp.float32), 0)
        if not kept:
            return velocity, past
        return velocity, Past(*(jnp.stack(parts) for parts in zip(*kept)))

    def nothing_before(self, rows: int) -> Past:
        """Past of a window that begins with block 0: zeros, which nobody sees."""
        c = self.config
        shape = (self.back, rows, c.block, c.heads, c.head_dim)
        return Past(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

    def _kernels(self) -> list[jax.Array]:
        """Rows of the input's kernel: for mel, reference, code and x-vector.

        Only the mel changes while it forms, and conditional and unconditional rows
        share it; the rest is multiplied once.
        """
        c = self.config
        ends = [c.mel_bins, c.mel_bins + c.reference.dim]
        return jnp.split(self.input.kernel[...], [*ends, ends[1] + c.code_dim])

    def _in_blocks(self, x: jax.Array) -> jax.Array:
        """At the rate of codes [B, T, ...] -> of mel, in blocks [B, J, T, ...]."""
        x = jnp.repeat(x, self.config.repeats, axis=1)
        return dit_blocks.in_blocks(x, self.config.block)

    def _positions(self, first: jax.Array, blocks: int) -> jax.Array:
        size = self.config.block
        frames = jnp.arange(blocks * size).reshape(1, blocks, size)
        return (first * size)[:, None, None] + frames  # [B, J, T]

    def _angles(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        frequency = jax.lax.stop_gradient(self.inv_freq[...]).astype(jnp.float32)
        position = position[..., None, None].astype(jnp.float32)
        angle = position * frequency.reshape(1, 1, 1, 1, -1)  # [B, J, T, 1, H/2]
        return jnp.cos(angle), jnp.sin(angle)


def shortest_reference(config: tokenizer_25hz.DiTConfig) -> int:
    """Mel frames that a reference needs: reflection reaches over all but one."""
    c = config.reference
    return 1 + max((k - 1) * d // 2 for k, d in zip(c.kernel_sizes, c.dilations))


def double(tree):
    """Every array twice along its first axis."""
    return jax.tree.map(lambda x: jnp.concatenate([x, x]), tree)
