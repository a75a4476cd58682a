"""Euler solver for the DiT: codes -> mel, the whole utterance or block after block.

How far ahead a block of mel must see.  One velocity sees `dit.ahead` blocks ahead (1 in
the class defaults: layer 10), and each of the S = steps - 1 Euler steps looks that far
again, at blocks that have themselves moved by what stands ahead of them.  So:

- Without layers that look ahead a block is final as soon as its codes are there.
- Else it is final with `horizon` = S * ahead blocks after it (9 for ten points in
  time), or with all blocks up to the end of the utterance.
- With fewer it is an approximation: as if the utterance ended with the last block that
  is there.  The paper waits for one block, 16 codes before the first output in blocks
  of 8 codes.  With random weights and ten points the error is then 0.02 to 0.07 % of
  the mel's standard deviation (RMS; 0.5 % at most in one value); 2 to 4 % with no block
  ahead, 0.001 % with two, float32 rounding with three.

Backwards nothing is lost: for every step of the solver and every layer that looks back
a `Stream` keeps the keys and values of the last block made.  What overlaps between two
calls of `step` are the blocks ahead, which are computed again: a call costs
1 + lookahead blocks.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qwen3tts_jax.config import tokenizer_25hz
from qwen3tts_jax.models.tokenizer_25hz import dit as dits
from qwen3tts_jax.models.tokenizer_25hz import dit_blocks


@dataclasses.dataclass(frozen=True)
class Solver:
    """How the velocity is integrated from 0 to 1.

    Attributes:
        steps: points in time, both ends counted: 10 are 9 evaluations (official
            num_steps).
        guidance: conditional + guidance * (conditional - unconditional); at 0 only the
            conditional rows are computed (official guidance_scale, which fails at 0).
        sway: moves the points to the beginning (-1: t = 1 - cos(pi t / 2)) or, up to
            1.7, to the end; None: evenly spaced (official sway_coefficient).
    Raises: ValueError for values that make no such points.
    """

    steps: int = 10
    guidance: float = 0.5
    sway: float | None = -1.0

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(
                f"got steps {self.steps}, expected 2 or more: both ends count"
            )
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"got guidance {self.guidance}, expected 0 or more")
        if not (np.diff(self.times()) > 0).all():
            raise ValueError(
                f"got sway {self.sway} for {self.steps} steps, whose times do not "
                "increase; expected None or a number from -1 to 1.7"
            )

    @property
    def guided(self) -> bool:
        return self.guidance > 0

    def times(self) -> np.ndarray:
        """float32 [steps], from 0 to 1."""
        t = np.linspace(0, 1, self.steps)
        if self.sway is not None:
            t = t + self.sway * (np.cos(np.pi / 2 * t) - 1 + t)
        return t.astype(np.float32)


OFFICIAL = Solver()


@struct.dataclass
class Plan:
    """What a solver and a DiT make before they see an utterance.

    Attributes:
        lengths: float32 [S], of the Euler steps.
        modulation: of their beginnings, with a leading S.
        nobody: float [D], from `DiT.nobody`; None without guidance.
        solver: what this is the plan of.
    """

    lengths: jax.Array
    modulation: dits.Modulation
    nobody: jax.Array | None
    solver: Solver = struct.field(pytree_node=False)


@struct.dataclass
class Stream:
    """What an utterance's next block needs; rows may stand at different blocks.

    Attributes:
        block: int32 [B], blocks made so far.
        voice: float [B, D], from `DiT.voice`.
        noise: typed keys [B], or float [B, T, M] from the utterance's first frame on.
        keys, values: float [B, S, L, G, T, N, H] of the last block made: S Euler steps,
            L layers that look back, G 2 with guidance (conditional, unconditional).
    """

    block: jax.Array
    voice: jax.Array
    noise: jax.Array
    keys: jax.Array
    values: jax.Array


def plan(dit: dits.DiT, solver: Solver = OFFICIAL) -> Plan:
    """The plan of a DiT and a solver; it serves any number of utterances."""
    times = solver.times()
    return Plan(
        lengths=jnp.asarray(np.diff(times)),
        modulation=dit.modulations(jnp.asarray(times[:-1])),
        nobody=dit.nobody() if solver.guided else None,
        solver=solver,
    )


def horizon(dit: dits.DiT, solver: Solver = OFFICIAL) -> int:
    """Blocks ahead with which a streamed block equals that of the whole utterance."""
    return (solver.steps - 1) * dit.ahead


def window_codes(config: tokenizer_25hz.DiTConfig, lookahead_blocks: int) -> int:
    """Codes that `step` takes: those of a block and of the blocks that it waits for.

    Raises: ValueError if a block is not a whole number of codes.
    """
    if config.block % config.repeats:
        raise ValueError(
            f"got blocks of {config.block} mel frames, expected a multiple of the "
            f"{config.repeats} frames of a code; decode the utterance as a whole"
        )
    if lookahead_blocks < 0:
        raise ValueError(f"got lookahead_blocks {lookahead_blocks}, expected 0 or more")
    return (1 + lookahead_blocks) * config.block // config.repeats


def sample(
    dit: dits.DiT,
    codes: jax.Array,
    length: jax.Array,
    voice: jax.Array,
    noise: jax.Array,
    *,
    solver: Solver = OFFICIAL,
) -> jax.Array:
    """Mel of whole utterances.

    Args:
        codes: int [B, T]; those behind the end of a row may be anything.
        length: int [B], codes of each row.
        voice: float [B, D], from `DiT.voice`.
        noise: typed keys [B], see `frame_noise`; or float [B, T * repeats, M].
    Returns:
        float32 [B, T * repeats, M], log-mel; 0 behind the end of a row.

    A row gives what it gives alone.  The official code does not: it decodes what stands
    behind a row's end as code 0, and the frames before hear of it.  That is what comes
    out here of codes that are 0 there and of lengths that count them.
    """
    planned = plan(dit, solver)
    stream = init_stream(dit, planned, voice, noise)
    mel, _ = _make(dit, planned, codes, length, stream)
    return mel[:, : codes.shape[1] * dit.config.repeats]


def init_stream(
    dit: dits.DiT, plan: Plan, voice: jax.Array, noise: jax.Array
) -> Stream:
    """Before the first block.  voice, noise: see `sample`."""
    rows, c = len(voice), dit.config
    sizes = rows, len(plan.lengths), dit.back, 1 + plan.solver.guided
    shape = (*sizes, c.block, c.heads, c.head_dim)
    nothing = jnp.zeros(shape, dit.dtype)
    return Stream(jnp.zeros(rows, jnp.int32), voice, noise, nothing, nothing)


def step(
    dit: dits.DiT, plan: Plan, codes: jax.Array, length: jax.Array, stream: Stream
) -> tuple[jax.Array, Stream]:
    """The next block of each row, and the blocks ahead of it.

    Args:
        codes: int [B, T], T = `window_codes`: the codes of each row's next block and of
            those ahead.  Codes that do not exist, or not yet, may be anything.
        length: int [B], how many of them do exist; a row with 0 waits.  Fewer than a
            block's only where the row ends in it.
    Returns:
        (float32 [B, T * repeats, M], log-mel; stream).
        The first block of mel is made: it counts, and the next call's codes begin
        one block later.  Where no code comes after these, all frames that exist count
        and the row is done; else what stands behind the first block is provisional.
    """
    assert codes.shape[1] * dit.config.repeats % dit.config.block == 0
    return _make(dit, plan, codes, length, stream)


def _make(dit, plan: Plan, codes, length, stream: Stream):
    window = dit.window(codes, length, stream.voice, stream.block, plan.nobody)
    mel = _first_state(stream, window, dit.config)

    def euler(mel, at):
        seconds, modulation, past = at
        velocity, kept = dit.velocity(mel, modulation, window, past)
        return mel + seconds * _guide(velocity, plan.solver), kept

    past = dits.Past(_by_step(stream.keys), _by_step(stream.values))
    mel, kept = jax.lax.scan(euler, mel, (plan.lengths, plan.modulation, past))
    made = length > 0
    stream = stream.replace(
        block=stream.block + made,
        keys=_advance(made, kept.keys, stream.keys),
        values=_advance(made, kept.values, stream.values),
    )
    return mel.reshape(len(mel), -1, mel.shape[-1]), stream


def _first_state(stream: Stream, window: dit_blocks.Window, config) -> jax.Array:
    """Noise in blocks, float32 [B, J, T, M]; 0 where there is no frame."""
    rows, (_, blocks, size) = len(stream.block), window.valid.shape
    frames = stream.block[:, None] * size + jnp.arange(blocks * size)[None]
    if jnp.issubdtype(stream.noise.dtype, jax.dtypes.prng_key):
        noise = frame_noise(stream.noise, frames, config.mel_bins)
    else:
        frames = jnp.minimum(frames, stream.noise.shape[1] - 1)  # no frames there
        noise = jnp.take_along_axis(stream.noise, frames[..., None], axis=1)
    noise = dit_blocks.in_blocks(noise.astype(jnp.float32), size)
    return jnp.where(window.valid[:rows, ..., None], noise, 0)


def frame_noise(key: jax.Array, frames: jax.Array, bins: int) -> jax.Array:
    """Normal noise of mel frames, float32 [B, T, M]: a function of key and frame alone.

    key: typed keys [B]; frames: int [B, T].
    """

    def one(key, frame):
        return jax.random.normal(jax.random.fold_in(key, frame), (bins,))

    return jax.vmap(jax.vmap(one, (None, 0)))(key, frames)


def _guide(velocity: jax.Array, solver: Solver) -> jax.Array:
    if not solver.guided:
        return velocity
    conditional, unconditional = jnp.split(velocity, 2)
    return conditional + (conditional - unconditional) * solver.guidance


def _by_step(x: jax.Array) -> jax.Array:
    """[B, S, L, G, T, N, H] -> [S, L, G * B, T, N, H], conditional rows first."""
    rows, steps, looks, doubled, *rest = x.shape
    x = x.transpose(1, 2, 3, 0, 4, 5, 6)
    return x.reshape(steps, looks, doubled * rows, *rest)


def _advance(made: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`_by_step` undone; rows that made nothing keep what they had."""
    rows, steps, looks, doubled, *rest = old.shape
    new = new.reshape(steps, looks, doubled, rows, *rest)
    new = new.transpose(3, 0, 1, 2, 4, 5, 6)  # [B, S, L, G, T, N, H]
    return jnp.where(made.reshape(-1, *[1] * (old.ndim - 1)), new, old)
