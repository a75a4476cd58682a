"""The 25 Hz solver: official mels, and streaming against the whole utterance."""

import contract
import inputs_25hz
import jax
import jax.numpy as jnp
import numpy as np
import parity
import parity_25hz
import pytest
import small_dit

from qwen3tts_jax.models.tokenizer_25hz import dit_blocks, flow_matching

CHUNK, REPEATS, BLOCK = small_dit.CHUNK, small_dit.REPEATS, small_dit.BLOCK
OTHER = flow_matching.Solver(*inputs_25hz.SOLVERS["other"])
SHORT = flow_matching.Solver(4, 0.0)  # 3 evaluations

whole = contract.quick_jit(flow_matching.sample, static_argnames="solver")
step = contract.quick_jit(flow_matching.step)
prepare = contract.quick_jit(flow_matching.plan, static_argnames="solver")


# ---------------------------------------------------------------------- official


def inputs_of(golden, rows):
    """codes, voice and noise of some voices of a golden file."""
    config, rows = golden.config.dit, np.array(rows)
    mels = inputs_25hz.reference_mels(golden.seed)[rows]
    xvectors = inputs_25hz.xvectors(golden.seed, config.xvector_dim)[rows]
    voice = small_dit.voice(
        golden.parts["dit"], xvectors, mels, jnp.full(len(rows), mels.shape[1])
    )
    codes = jnp.asarray(inputs_25hz.full_codes(golden.seed, config.codes)[rows])
    return codes, voice, jnp.asarray(inputs_25hz.noise(golden.seed)[rows])


@parity_25hz.over()
def test_mels_equal_the_official_ones(golden_25hz):
    """The official batch does not mask: what it decodes behind an end, counts here."""
    dit, long = golden_25hz.parts["dit"], max(inputs_25hz.DECODED)
    assert flow_matching.OFFICIAL == flow_matching.Solver(
        *inputs_25hz.SOLVERS["official"]
    )
    for key, rows, solver in (
        ("official", [0, 1], flow_matching.OFFICIAL),
        ("other", [0], OTHER),
    ):
        codes, voice, noise = inputs_of(golden_25hz, rows)
        length = jnp.full(len(rows), long)
        ours = whole(dit, codes, length, voice, noise, solver=solver)
        theirs = golden_25hz.arrays[f"dit/{key}"]
        parity.assert_close("25 Hz mel", ours, theirs, parity.CLOSE)


@parity_25hz.over()
def test_rows_of_a_ragged_batch_are_the_official_ones_alone(golden_25hz):
    dit, counts = golden_25hz.parts["dit"], inputs_25hz.DECODED
    codes, voice, noise = inputs_of(golden_25hz, [0, 0])
    length = jnp.array(counts)
    ours = whole(dit, codes, length, voice, noise, solver=flow_matching.OFFICIAL)
    for row, (count, key) in enumerate(zip(counts, ("official", "short/official"))):
        frames = count * dit.config.repeats
        theirs = golden_25hz.arrays[f"dit/{key}"][0]
        parity.assert_close("25 Hz mel", ours[row, :frames], theirs, parity.CLOSE)
        assert (ours[row, frames:] == 0).all()


# ------------------------------------------------------------------------ solver


def test_times():
    assert flow_matching.horizon(small_dit.make()) == 9  # with the official ones
    times = flow_matching.OFFICIAL.times()
    expected = 1 - np.cos(np.pi / 2 * np.arange(10) / 9)
    np.testing.assert_allclose(times, expected, atol=1e-7)
    even = flow_matching.Solver(5, sway=None).times()
    np.testing.assert_allclose(even, [0, 0.25, 0.5, 0.75, 1], atol=1e-7)


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(steps=1), "got steps 1, expected 2 or more"),
        (dict(guidance=-0.1), "got guidance -0.1, expected 0 or more"),
        (dict(guidance=float("nan")), "got guidance nan"),
        (dict(sway=-1.5), "got sway -1.5 for 10 steps"),
        (dict(sway=float("nan")), "got sway nan"),
    ],
)
def test_refuses_what_is_no_solver(fields, says):
    with pytest.raises(ValueError, match=says):
        flow_matching.Solver(**fields)


@contract.quick_jit
def evaluate(dit, mel, time, codes, voice):
    """A velocity, float [1, J, T, M], of conditional rows alone."""
    length, first = jnp.full(1, codes.shape[1]), jnp.zeros(1, jnp.int32)
    window = dit.window(codes, length, voice, first)
    at = jax.tree.map(lambda x: x[0], dit.modulations(time[None]))
    return dit.velocity(mel, at, window, dit.nothing_before(1))[0]


@pytest.mark.parametrize(
    "solver",
    [
        SHORT,
        flow_matching.Solver(2, 0.0),
        flow_matching.Solver(3, 0.7, 0.5),
        flow_matching.OFFICIAL,
    ],
    ids=str,
)
def test_any_solver_is_eulers_rule(solver):
    """By a plain loop, its unconditional rows from a voice of zeros and no code."""
    dit, count = small_dit.make(), 5
    codes, voice, noise = utterance(dit, count)
    frames = 9  # of silence
    nobody = small_dit.voice(
        dit,
        jnp.zeros((1, dit.config.xvector_dim)),
        jnp.zeros((1, frames, dit.config.mel_bins)),
        jnp.full(1, frames),
    )

    mel, times = dit_blocks.in_blocks(noise, BLOCK), solver.times()
    for time, after in zip(times[:-1], times[1:]):
        velocity = evaluate(dit, mel, time, codes, voice)
        if solver.guidance:
            null = evaluate(dit, mel, time, jnp.zeros_like(codes), nobody)
            velocity = velocity + (velocity - null) * solver.guidance
        mel = mel + (after - time) * velocity
    expected = mel.reshape(1, -1, dit.config.mel_bins)[:, : count * REPEATS]
    ours = whole(dit, codes, jnp.full(1, count), voice, noise, solver=solver)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.std(expected))


# ------------------------------------------------------------------------- noise


def test_noise_is_a_function_of_key_and_frame():
    keys = jax.random.split(jax.random.key(3), 2)
    frames = jnp.arange(50)[None].repeat(2, 0)
    draw = contract.quick_jit(flow_matching.frame_noise, static_argnums=2)
    noise = np.asarray(draw(keys, frames, 7))
    assert noise.shape == (2, 50, 7) and abs(noise.std() - 1) < 0.1
    assert len(np.unique(noise)) == noise.size
    some = draw(keys[1:], jnp.array([[40, 3]]), 7)
    np.testing.assert_array_equal(some[0], noise[1, [40, 3]])


def test_fixed_noise_makes_a_fixed_mel():
    dit, counts = small_dit.make(), jnp.array([7, 4])
    codes, voice = small_dit.codes(2, 7), small_dit.voices(dit, 2)
    keys = jax.random.split(jax.random.key(3), 2)
    noise = flow_matching.frame_noise(keys, jnp.arange(21)[None].repeat(2, 0), 6)
    mel = whole(dit, codes, counts, voice, keys, solver=SHORT)
    again = whole(dit, codes, counts, voice, keys, solver=SHORT)
    np.testing.assert_array_equal(mel, again)
    given = whole(dit, codes, counts, voice, noise, solver=SHORT)
    np.testing.assert_allclose(mel, given, rtol=0, atol=1e-5)
    other = whole(dit, codes, counts, voice, keys[::-1], solver=SHORT)
    assert np.abs(other - mel).max() > 0.1


@pytest.mark.parametrize("filling", [np.nan, 1e30])
def test_what_stands_behind_the_end_changes_no_bit(filling):
    dit, counts = small_dit.make(), np.array([7, 4])
    codes, voice = small_dit.codes(2, 7), small_dit.voices(dit, 2)
    noise = small_dit.random(2, 21, 6)
    ended = np.arange(7)[None] >= counts[:, None]
    padding = np.repeat(ended, REPEATS, axis=1)[..., None]
    mel = whole(dit, codes, jnp.asarray(counts), voice, noise, solver=SHORT)
    assert np.isfinite(mel).all()
    noisy = jnp.where(ended, -7, codes), jnp.asarray(counts), voice
    noisy = whole(dit, *noisy, jnp.where(padding, filling, noise), solver=SHORT)
    np.testing.assert_array_equal(mel, noisy)


# --------------------------------------------------------------------- streaming


def stream(dit, codes, voice, noise, *, solver, lookahead: int, chunk: int = CHUNK):
    """The mel of one utterance, made block after block; its codes may come all late."""
    plan = prepare(dit, solver=solver)
    state = flow_matching.init_stream(dit, plan, voice, noise)
    size, count = flow_matching.window_codes(dit.config, lookahead), codes.shape[1]
    padded = np.pad(codes, ((0, 0), (0, size)), constant_values=-1)
    made = []
    for start in range(0, count, chunk):
        known = min(size, count - start)
        window = padded[:, start : start + size]
        mel, state = step(dit, plan, window, np.full(1, known), state)
        mel = np.asarray(mel)
        if start + known == count:  # there is nothing behind: all of it counts
            made.append(mel[:, : known * dit.config.repeats])
            break
        made.append(mel[:, : dit.config.block])
    return np.concatenate(made, axis=1)


def utterance(dit, count: int):
    noise = small_dit.random(1, count * REPEATS, dit.config.mel_bins)
    return small_dit.codes(1, count), small_dit.voices(dit, 1), noise


BLOCKS = 7


def difference(dit, count: int, *, solver, lookahead: int) -> np.ndarray:
    """Of each block of a streamed mel from the whole, in standard deviations."""
    codes, voice, noise = utterance(dit, count)
    expected = whole(dit, codes, jnp.full(1, count), voice, noise, solver=solver)
    ours = stream(dit, codes, voice, noise, solver=solver, lookahead=lookahead)
    assert ours.shape == expected.shape
    error = np.abs(ours - expected).max(axis=(0, 2)) / np.std(expected)
    return np.maximum.reduceat(error, range(0, len(error), BLOCK))


@pytest.mark.parametrize("count", [1, CHUNK * BLOCKS - 1])
def test_without_looks_ahead_streaming_is_the_whole(count):
    """With no overlap at all.  1e-5: float32 sums in another order."""
    dit = small_dit.make(look_back=(0, 1), look_ahead=())
    assert flow_matching.horizon(dit, SHORT) == 0
    assert difference(dit, count, solver=SHORT, lookahead=0).max() < 1e-5


@pytest.mark.parametrize(
    "back, ahead, guidance",
    [((0, 2), (1,), 0.5), ((0, 1), (0, 2), 0.0)],
)
def test_with_the_horizon_ahead_streaming_is_the_whole(back, ahead, guidance):
    dit = small_dit.make(look_back=back, look_ahead=ahead)
    solver = flow_matching.Solver(3, guidance)
    horizon = flow_matching.horizon(dit, solver)
    assert horizon == 2 * len(ahead)
    count = CHUNK * (horizon + 4) - 1
    assert difference(dit, count, solver=solver, lookahead=horizon).max() < 1e-5


def test_with_fewer_blocks_ahead_it_is_near_the_whole():
    """Each further block brings it nearer; none at all costs most."""
    dit, count = small_dit.make(), CHUNK * BLOCKS
    assert flow_matching.horizon(dit, SHORT) == 3
    none, one, two = (
        difference(dit, count, solver=SHORT, lookahead=n).max() for n in range(3)
    )
    assert 1e-5 < two < one / 5 and one < none / 5 and one < 0.05


def test_all_blocks_up_to_the_end_are_as_good_as_the_horizon():
    """Two blocks, one ahead: nothing is left to be seen."""
    dit, count = small_dit.make(), 2 * CHUNK - 1
    assert difference(dit, count, solver=SHORT, lookahead=1).max() < 1e-5


def test_a_mel_sees_as_far_as_its_horizon():
    """A code behind it changes no bit, one at its end does."""
    dit = small_dit.make()
    horizon, count = flow_matching.horizon(dit, SHORT), CHUNK * BLOCKS
    codes, voice, noise = utterance(dit, count)

    def blocks(codes):
        mel = whole(dit, codes, jnp.full(1, count), voice, noise, solver=SHORT)
        return np.asarray(mel).reshape(BLOCKS, -1)

    changed = BLOCKS - 1
    other = codes.at[:, changed * CHUNK :].set(codes[:, changed * CHUNK :] % 8 + 1)
    different = (blocks(codes) != blocks(other)).any(axis=1)
    assert different.tolist() == [i >= changed - horizon for i in range(BLOCKS)]


def test_rows_stream_at_blocks_of_their_own(compiled):
    """One has begun earlier, one waits for a while; nothing is compiled twice."""
    dit, solver = small_dit.make(), SHORT
    plan, size = prepare(dit, solver=solver), flow_matching.window_codes(dit.config, 1)
    codes, voice = small_dit.codes(2, CHUNK * 5), small_dit.voices(dit, 2)
    noise = small_dit.random(2, CHUNK * 5 * REPEATS, dit.config.mel_bins)
    expected = [
        stream(
            dit,
            codes[i : i + 1],
            voice[i : i + 1],
            noise[i : i + 1],
            solver=solver,
            lookahead=1,
        )
        for i in (0, 1)
    ]
    state, made, at = (
        flow_matching.init_stream(dit, plan, voice, noise),
        [[], []],
        [0, 0],
    )
    padded = np.pad(codes, ((0, 0), (0, size)))
    before = len(compiled())
    for active in ((0,), (0, 1), (0,), (1,), (0, 1), (1,)):
        window = np.stack([padded[i, a : a + size] for i, a in enumerate(at)])
        length = np.array([size * (i in active) for i in (0, 1)])
        mel, state = step(dit, plan, jnp.asarray(window), jnp.asarray(length), state)
        for i in active:
            made[i].append(mel[i, :BLOCK])
            at[i] += CHUNK
    assert len([m for m in compiled()[before:] if "step" in m]) == 1
    assert state.block.tolist() == [4, 4]
    for mel, theirs in zip(made, expected):
        np.testing.assert_allclose(
            np.concatenate(mel), theirs[0, : 4 * BLOCK], rtol=0, atol=1e-5
        )


def test_what_is_not_there_yet_changes_no_bit():
    """NaN noise, which stands behind the end, and codes that are none."""
    dit, count = small_dit.make(), 3
    plan = prepare(dit, solver=SHORT)
    codes, voice = small_dit.codes(1, 2 * CHUNK), small_dit.voices(dit, 1)
    noise = small_dit.random(1, 4 * BLOCK, dit.config.mel_bins)
    results = []
    for filling, code in ((0, 1), (np.nan, -1)):
        filled = noise.at[:, count * REPEATS :].set(filling)
        window = codes.at[:, count:].set(code)
        state = flow_matching.init_stream(dit, plan, voice, filled)
        results.append(step(dit, plan, window, jnp.full(1, count), state))
    (mel, state), (other, after) = results
    assert np.isfinite(mel).all()
    np.testing.assert_array_equal(mel, other)
    np.testing.assert_array_equal(state.keys, after.keys)
    np.testing.assert_array_equal(state.values, after.values)


def test_windows_are_whole_codes():
    config = small_dit.CONFIG
    assert flow_matching.window_codes(config, 0) == CHUNK
    assert flow_matching.window_codes(config, 2) == 3 * CHUNK
    with pytest.raises(ValueError, match="blocks of 7 mel frames, expected a multiple"):
        flow_matching.window_codes(small_dit.make(block=7).config, 0)
    with pytest.raises(ValueError, match="got lookahead_blocks -1"):
        flow_matching.window_codes(config, -1)


def test_a_block_that_is_no_whole_number_of_codes_is_made_whole():
    """Blocks are of mel frames: a code may stand in two."""
    dit, count = small_dit.make(block=7), 5
    codes, voice, noise = utterance(dit, count)
    mel = whole(dit, codes, jnp.full(1, count), voice, noise, solver=SHORT)
    assert mel.shape == (1, count * REPEATS, dit.config.mel_bins)
    assert np.isfinite(mel).all() and np.std(mel) > 0.1
