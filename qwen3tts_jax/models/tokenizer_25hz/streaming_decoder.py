"""25Hz streaming decoder, codes -> wave: the DiT block after block, BigVGAN behind it.

A block of mel (8 codes) is made when its codes and those of `lookahead` blocks after it
are there; see `flow_matching.py` for what it then equals.  Its sound follows, less the
samples that BigVGAN looks ahead.  When no code comes any more, `finish` makes the rest,
so that T codes give T * 960 samples in all.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qwen3tts_jax.models.tokenizer_25hz import bigvgan as bigvgans
from qwen3tts_jax.models.tokenizer_25hz import dit as dits
from qwen3tts_jax.models.tokenizer_25hz import flow_matching


@struct.dataclass
class StreamState:
    """What a decoder remembers between chunks of codes; each row stands where it is.

    Attributes:
        codes: int32 [B, K], of which the first `count` are not sound yet.
        count: int32 [B].
        skip: int32 [B], samples to come that nobody is to hear: those before the wave
            begins, or of a reference.
        flow: flow.Stream; vocoder: state of BigVGAN.
    """

    codes: jax.Array
    count: jax.Array
    skip: jax.Array
    flow: flow_matching.Stream
    vocoder: Any


@struct.dataclass
class Decoder:
    """DiT and BigVGAN of a tokenizer, as one streaming decoder.

    Attributes:
        plan: of the DiT and the solver; see `flow_matching.plan`.
        lookahead: blocks that a block waits for.
    """

    dit: dits.DiT
    bigvgan: bigvgans.BigVGAN
    plan: flow_matching.Plan
    lookahead: int = struct.field(pytree_node=False)

    @property
    def chunk(self) -> int:
        """Codes of a block, and the most that `stream` takes at once."""
        return flow_matching.window_codes(self.dit.config, 0)

    @property
    def window(self) -> int:
        """Codes with which a block is made: its own and those ahead."""
        return flow_matching.window_codes(self.dit.config, self.lookahead)

    @property
    def samples_per_code(self) -> int:
        return self.dit.config.repeats * self.bigvgan.config.samples_per_mel

    def init_state(self, voice: jax.Array, noise: jax.Array) -> StreamState:
        """The state before the first code.  Arguments: see `flow_matching.sample`."""
        rows = len(voice)
        nothing = jnp.zeros(rows, jnp.int32)
        return StreamState(
            codes=jnp.zeros((rows, self.window + self.chunk), jnp.int32),
            count=nothing,
            skip=nothing + self.bigvgan.lag,
            flow=flow_matching.init_stream(self.dit, self.plan, voice, noise),
            vocoder=self.bigvgan.init_state(rows, self.bigvgan.dtype),
        )

    def stream(self, codes: jax.Array, count: jax.Array, state: StreamState):
        """Take the next codes; make the next block of the rows that can.

        Args:
            codes: int [B, T, 1], T at most `chunk`.
            count: int32 [B], codes that each row has; 0: it rests.
        Returns:
            (wave: float32 [B, chunk * 960], 24 kHz, in [-1, 1]; samples: int32 [B], how
            many of each row count, the first ones; state).
        """
        state = self.take(codes, count, state)

        def make(state):
            mel, after = self.block(state)
            wave, vocoder = self.bigvgan.step(mel, state.vocoder)
            wave, samples, after = self.sound(wave, after.replace(vocoder=vocoder))
            return wave, jnp.where(ready, samples, 0), _where(ready, after, state)

        def wait(state):
            samples = self.chunk * self.samples_per_code
            nothing = jnp.zeros_like(state.count)
            return jnp.zeros((len(nothing), samples)), nothing, state

        ready = self.ready(state)
        return jax.lax.cond(jnp.any(ready), make, wait, state)

    # What `stream` is made of, for who has one row and knows where it stands.

    def take(self, codes: jax.Array, count: jax.Array, state: StreamState):
        """The state with more codes: see `stream`."""
        assert codes.shape[1] <= self.chunk
        rows = jnp.arange(len(codes))[:, None]
        at = state.count[:, None] + jnp.arange(codes.shape[1])[None]
        codes = state.codes.at[rows, at].set(codes[..., 0])
        return state.replace(codes=codes, count=state.count + count)

    def ready(self, state: StreamState) -> jax.Array:
        """Bool [B]: rows that have the codes of a block and of those ahead."""
        return state.count >= self.window

    def block(self, state: StreamState) -> tuple[jax.Array, StreamState]:
        """Mel of the next block, float32 [B, T, 80], of the rows that are ready."""
        length = jnp.where(self.ready(state), self.window, 0)
        mel, flowed = flow_matching.step(
            self.dit, self.plan, state.codes[:, : self.window], length, state.flow
        )
        state = state.replace(
            codes=jnp.roll(state.codes, -self.chunk, axis=1),
            count=state.count - self.chunk,
            flow=flowed,
        )
        return mel[:, : self.dit.config.block], state

    def rest(self, state: StreamState) -> tuple[jax.Array, jax.Array]:
        """Mel of all codes that are left when no more come, and where it ends.

        Returns: (float32 [B, T, 80]; int32 [B], mel frames of the whole row).
        """
        mel, _ = flow_matching.step(
            self.dit, self.plan, state.codes[:, : self.window], state.count, state.flow
        )
        frames = state.count * self.dit.config.repeats
        return mel, state.vocoder.position + frames

    def sound(self, wave: jax.Array, state: StreamState):
        """What is heard of a wave, float32 [B, W], that BigVGAN has made.

        Returns: (wave, samples, state): see `stream`.
        """
        skipped = jnp.minimum(wave.shape[1], state.skip)
        at = jnp.arange(wave.shape[1])[None] + skipped[:, None]
        wave = jnp.take_along_axis(wave, jnp.minimum(at, wave.shape[1] - 1), axis=1)
        state = state.replace(skip=state.skip - skipped)
        return wave, wave.shape[1] - skipped, state


def _where(rows: jax.Array, after, before):
    """`after` in some rows, `before` in the others; rows: bool [B]."""

    def choose(after, before):
        return jnp.where(rows.reshape(-1, *[1] * (after.ndim - 1)), after, before)

    return jax.tree.map(choose, after, before)
