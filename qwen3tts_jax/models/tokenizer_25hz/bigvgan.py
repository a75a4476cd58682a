"""BigVGAN, mel -> wave: upsampling and anti-aliased residual blocks; whole or streamed.

Source: arXiv 2206.04658; Qwen3TTSTokenizerV1DecoderBigVGANModel, which departs from it:
the first convolution of a pair is causal; in the first two stages the second one is
too, behind one more convolution that looks ahead; and each pair of a residual block
goes on from what the pair before it gave.

Nothing looks ahead without bound, so a stream is the whole, `BigVGAN.lag` samples late.
It keeps what each part has heard: to compute a chunk of 32 mel frames anew with all
that it hears (54 frames before it and 17 after) would take 3.2 times as long.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3tts_jax.config import tokenizer_25hz
from qwen3tts_jax.models.tokenizer_25hz import anti_aliased_snake, delayed_conv

FLOOR_DB, REFERENCE_DB = -115.0, 20.0  # of the released mel normalisation
CAUSAL_STAGES = 2  # the first ones, whose blocks are of the official type 2
FIRST_KERNEL, LAST_KERNEL = 5, 7


def normalize(mel: jax.Array) -> jax.Array:
    """Log amplitude to [-1, 1].  mel: float [B, T, M], natural logarithm.

    20 dB below the amplitude; the floor of -115 dB maps to -1, and 0 dB to 1.
    """
    mel = mel.astype(jnp.float32)  # amplitudes reach from 1e-6 up
    decibel = 20 * jnp.log10(jnp.maximum(jnp.exp(mel), 10 ** (FLOOR_DB / 20)))
    level = (decibel - REFERENCE_DB - FLOOR_DB) / -FLOOR_DB
    return jnp.clip(2 * level - 1, -1.0, 1.0)


def receptive_field(config: tokenizer_25hz.BigVGANConfig) -> tuple[int, int]:
    """(mel frames before, mel frames after) a frame that its own samples depend on.

    Walked back from the samples of frame 0, part by part; a test shows that no number
    is too small or too large.
    """
    first, last = 0, config.samples_per_mel - 1
    first -= anti_aliased_snake.REACH + LAST_KERNEL // 2
    last += anti_aliased_snake.REACH + LAST_KERNEL // 2
    stages = list(zip(config.upsample_rates, config.upsample_kernel_sizes))
    for i, (rate, size) in reversed(list(enumerate(stages))):
        back, ahead = _reach(config, causal=i < CAUSAL_STAGES)
        cut = (size - rate) // 2
        first = -((size - 1 - cut - first + back) // rate)  # rounded up
        last = (last + ahead + cut) // rate
    return FIRST_KERNEL // 2 - first, last + FIRST_KERNEL // 2


def _reach(config: tokenizer_25hz.BigVGANConfig, *, causal: bool) -> tuple[int, int]:
    """Steps before and after a step that the residual blocks of a stage hear."""
    back, ahead = [], []
    for size, dilations in zip(config.kernel_sizes, config.dilations):
        half, snakes = size // 2, anti_aliased_snake.REACH * 2 * len(dilations)
        dilated = sum(dilations) * (size - 1)
        if causal:
            lead = half + anti_aliased_snake.REACH
            back.append(lead + snakes + dilated + len(dilations) * (size - 1))
            ahead.append(lead + snakes)
        else:
            back.append(snakes + dilated + len(dilations) * half)
            ahead.append(snakes + len(dilations) * half)
    return max(back), max(ahead)


class Stage(nnx.Module):
    """Upsampling, then the mean of AMP blocks of several kernel sizes.

    A block is the sum of its input and of three rounds, each of which goes on from the
    last one: snake, causal dilated convolution, snake, convolution.  The blocks run
    side by side, so that there are a third as many programs to compile and to start.
    """

    def __init__(
        self, config: tokenizer_25hz.BigVGANConfig, index: int, *, rngs: nnx.Rngs
    ):
        dim = config.channels >> index + 1
        self.up = delayed_conv.Upsample(
            2 * dim,
            dim,
            kernel_size=config.upsample_kernel_sizes[index],
            rate=config.upsample_rates[index],
            rngs=rngs,
        )
        causal = index < CAUSAL_STAGES
        snakes = dict(groups=len(config.kernel_sizes))
        convs = dict(kernel_sizes=config.kernel_sizes, rngs=rngs)
        lead = []
        if causal:
            lead.append(delayed_conv.Convs(dim, dim, shared=True, **convs))
            lead.append(anti_aliased_snake.AntiAliasedSnakes(dim, **snakes))
        self.lead = delayed_conv.Chain(lead)
        rounds = []
        for dilations in zip(*config.dilations):
            shared = not causal and not rounds  # the upsampled signal itself
            parts = (
                anti_aliased_snake.AntiAliasedSnakes(dim, shared=shared, **snakes),
                delayed_conv.Convs(dim, dim, dilations=dilations, causal=True, **convs),
                anti_aliased_snake.AntiAliasedSnakes(dim, **snakes),
                delayed_conv.Convs(dim, dim, causal=causal, **convs),
            )
            rounds.append(delayed_conv.Chain(parts))
        self.rounds = nnx.List(rounds)
        self.dim = dim

    @property
    def delay(self) -> int:
        """Steps, at the rate after upsampling."""
        return self.up.delay + sum(self._waits())

    def _waits(self) -> list[int]:
        """Steps that the sum so far waits for each round."""
        waits = [part.delay for part in self.rounds]
        return [self.lead.delay + waits[0], *waits[1:]]

    def init_state(self, batch: int, dtype=jnp.float32):
        return (
            self.up.init_state(batch, dtype),
            self.lead.init_state(batch, dtype),
            tuple(part.init_state(batch, dtype) for part in self.rounds),
            tuple(jnp.zeros((batch, 1, n, self.dim), dtype) for n in self._waits()),
        )

    def step(self, signal: delayed_conv.Signal, state):
        """Signal [B, 1, T, C] -> (Signal [B, 1, T * rate, C / 2], state)."""
        up, lead, rounds, waiting = state
        signal, up = self.up.step(signal, up)
        steps, total = signal.x.shape[2], signal.x
        signal, lead = self.lead.step(signal, lead)
        after = []
        for part, part_state, wait in zip(self.rounds, rounds, waiting):
            signal, part_state = part.step(signal, part_state)
            total = jnp.concatenate([wait, total], axis=2)
            after.append((part_state, total[:, :, steps:]))
            total = total[:, :, :steps] + jnp.mean(signal.x, axis=1, keepdims=True)
        return signal.replace(x=total), (up, lead, *zip(*after))


@struct.dataclass
class BigVGANState:
    """What a stream remembers between chunks of mel frames; rows come first.

    A row begins anew when all of its state is that of `init_state`.

    Attributes:
        position: int32 [B], mel frames heard so far.
        parts: a state for each part of the network.
    """

    position: jax.Array
    parts: Any


class BigVGAN(nnx.Module):
    """Mel to wave, whole or in chunks."""

    def __init__(self, config: tokenizer_25hz.BigVGANConfig, *, rngs: nnx.Rngs):
        stages = range(len(config.upsample_rates))
        dim = config.channels >> len(stages)
        self.first = delayed_conv.Convs(
            config.mel_bins, config.channels, kernel_sizes=(FIRST_KERNEL,), rngs=rngs
        )
        self.stages = nnx.List([Stage(config, i, rngs=rngs) for i in stages])
        self.snake = anti_aliased_snake.AntiAliasedSnakes(dim)
        self.last = delayed_conv.Convs(
            dim, 1, kernel_sizes=(LAST_KERNEL,), bias=False, rngs=rngs
        )
        self.config = config

    @property
    def lag(self) -> int:
        """Samples by which a stream comes late: what the network looks ahead."""
        delay = self.first.delay
        for stage in self.stages:
            delay = delay * stage.up.rate + stage.delay
        return delay + self.snake.delay + self.last.delay

    @property
    def dtype(self):
        """Of everything between normalised mel and wave but snakes and filters."""
        return self.first.convs[0].kernel[...].dtype

    def init_state(self, batch: int, dtype=jnp.float32) -> BigVGANState:
        """The state before the first mel frame."""
        return BigVGANState(
            position=jnp.zeros(batch, jnp.int32),
            parts=delayed_conv.init_states(self._parts(), batch, dtype),
        )

    def step(self, mel: jax.Array, state: BigVGANState, end: jax.Array | None = None):
        """The next samples of a stream.

        The samples of all steps and of `finish`, less the first `lag` of them, which
        are zeros, are those of `decode`.

        Args:
            mel: float [B, T, M], the next frames, as for `decode`.
            state: from `init_state` or the last `step`.
            end: int32 [B], frames of each row in all, where known; what follows them in
                `mel` is not heard, and samples after them are zeros.
        Returns:
            (wave: float32 [B, T*240], 24 kHz, in [-1, 1]; state).
        """
        if end is None:  # int32 even at twice the rate of samples: after 12 hours
            never = 2**30 // self.config.samples_per_mel
            end = jnp.full_like(state.position, never)
        x = normalize(mel).astype(state.parts[0].dtype)
        signal = delayed_conv.Signal(x[:, None], state.position, end)
        signal, parts = delayed_conv.run(self._parts(), signal, state.parts)
        wave = signal.zeroed()[:, 0, :, 0].astype(jnp.float32)
        position = state.position + mel.shape[1]
        return jnp.clip(wave, -1.0, 1.0), BigVGANState(position, parts)

    def finish(self, state: BigVGANState, end: jax.Array | None = None) -> jax.Array:
        """Float32 [B, lag]: the samples that are still to come after the last frame.

        end: as for `step`; None: all frames heard so far count.
        """
        frames = -(-self.lag // self.config.samples_per_mel)
        mel = jnp.zeros((len(state.position), frames, self.config.mel_bins))
        end = state.position if end is None else end
        return self.step(mel, state, end)[0][:, : self.lag]

    def decode(self, mel: jax.Array, length: jax.Array | None = None) -> jax.Array:
        """Wave of mel; `step` from the zero state.

        Args:
            mel: float [B, T, M], natural logarithm of amplitudes, 100 frames a second.
            length: int32 [B], frames of each row that count; None: all.
        Returns:
            float32 [B, T*240], 24 kHz, in [-1, 1]; zeros after a row's end.
        """
        batch, frames, _ = mel.shape
        if length is None:
            length = jnp.full(batch, frames, jnp.int32)
        hop = self.config.samples_per_mel
        mel = jnp.pad(mel, ((0, 0), (0, -(-self.lag // hop)), (0, 0)))
        wave, _ = self.step(mel, self.init_state(batch, self.dtype), length)
        return wave[:, self.lag : self.lag + hop * frames]

    __call__ = decode

    def _parts(self) -> tuple:
        return self.first, *self.stages, self.snake, self.last
