"""One velocity of the 25 Hz DiT: the official one, its mask, and padded rows."""

import functools

import contract
import inputs_25hz
import jax
import jax.numpy as jnp
import numpy as np
import parity
import parity_25hz
import pytest
import small_dit

from qwen3tts_jax.models.tokenizer_25hz import dit as dits
from qwen3tts_jax.models.tokenizer_25hz import dit_blocks

TIME = inputs_25hz.TIME


def velocity(dit, mel, codes, length, voice, guided: bool):
    """float [R, T, M] of a whole utterance's mel [B, T, M], at TIME."""
    made = np.asarray(_velocity(dit, mel, codes, jnp.asarray(length), voice, guided))
    return made.reshape(len(made), -1, mel.shape[-1])[:, : mel.shape[1]]


@functools.partial(contract.quick_jit, static_argnums=5)
def _velocity(dit, mel, codes, length, voice, guided):
    first = jnp.zeros(len(mel), jnp.int32)
    nobody = dit.nobody() if guided else None
    window = dit.window(codes, length, voice, first, nobody)
    at = jax.tree.map(lambda x: x[0], dit.modulations(jnp.full(1, TIME)))
    blocks = dit_blocks.in_blocks(mel, dit.config.block)
    past = dit.nothing_before(len(window.valid))
    return dit.velocity(blocks, at, window, past)[0]


# ---------------------------------------------------------------------- official


def voice_of(golden) -> tuple:
    """x-vectors, reference mels and their lengths."""
    xvectors = inputs_25hz.xvectors(golden.seed, golden.config.dit.xvector_dim)
    mels = inputs_25hz.reference_mels(golden.seed)
    return xvectors, mels, jnp.full(len(mels), mels.shape[1])


@parity_25hz.over()
def test_embeddings_equal_the_official_ones(golden_25hz):
    dit, arrays = golden_25hz.parts["dit"], golden_25hz.arrays
    _, mels, length = voice_of(golden_25hz)
    embed = contract.quick_jit(type(dit.reference).__call__)
    compared = {
        "time_embedding": dit.time(jnp.full(1, TIME)),
        "reference_embedding": embed(dit.reference, mels, length),
    }
    # however many zeros there are: our unconditional rows take as few as possible
    for frames in (inputs_25hz.REFERENCE_FRAMES, dits.shortest_reference(dit.config)):
        silence = jnp.zeros((1, frames, dit.config.mel_bins))
        compared["no_reference_embedding"] = embed(
            dit.reference, silence, jnp.full(1, frames)
        )
        for name, ours in compared.items():
            parity.assert_close(
                f"25 Hz {name}", ours, arrays[f"dit/{name}"], parity.CLOSE
            )


@parity_25hz.over()
@pytest.mark.parametrize("row", [0, 1])
def test_velocities_equal_the_official_ones(golden_25hz, row):
    """Conditional and unconditional, of lengths that do not fill a block."""
    dit, seed = golden_25hz.parts["dit"], golden_25hz.seed
    count = inputs_25hz.DECODED[row]
    frames = count * dit.config.repeats
    assert frames % dit.config.block
    codes = inputs_25hz.full_codes(seed, dit.config.codes)[:1, :count]
    voice = small_dit.voice(dit, *voice_of(golden_25hz))[:1]
    noise = jnp.asarray(inputs_25hz.noise(seed)[:1, :frames])
    ours = velocity(dit, noise, codes, [count], voice, guided=True)
    theirs = golden_25hz.arrays[f"dit{'/short' * row}/velocity"]
    parity.assert_close("25 Hz velocity", ours, theirs, parity.CLOSE)


# -------------------------------------------------------------------------- mask

BLOCKS = 7


@pytest.mark.parametrize(
    "back, ahead",
    [((), ()), ((0, 2), (1,)), ((0, 1), (0, 2)), ((), (0, 2))],
)
def test_a_velocity_sees_the_blocks_that_its_layers_see(back, ahead):
    """A change in one block changes those that see it, and of the others no bit."""
    dit = small_dit.make(look_back=back, look_ahead=ahead)
    assert (dit.back, dit.ahead) == (len(back), len(ahead))
    count, changed = small_dit.CHUNK * BLOCKS, 3
    codes, voice = small_dit.codes(1, count), small_dit.voices(dit, 1)
    mel = small_dit.random(1, BLOCKS * small_dit.BLOCK, dit.config.mel_bins)

    def blocks(mel, codes):
        made = velocity(dit, mel, codes, [count], voice, guided=False)
        return made.reshape(BLOCKS, -1)

    before = blocks(mel, codes)
    others = mel.at[:, changed * small_dit.BLOCK].add(1)  # its first frame
    last = (changed + 1) * small_dit.CHUNK - 1  # its last code
    other_codes = codes.at[:, last].set(codes[0, last] % 8 + 1)
    seeing = range(changed - len(ahead), changed + len(back) + 1)
    for after in (blocks(others, codes), blocks(mel, other_codes)):
        different = (after != before).any(axis=1)
        assert different.tolist() == [i in seeing for i in range(BLOCKS)]


def test_products_depend_on_distances_alone_in_every_head():
    dit = small_dit.make()
    size, heads = small_dit.BLOCK, dit.config.heads
    vector = small_dit.random(heads, dit.config.head_dim)
    same = jnp.broadcast_to(vector, (1, 2, size, *vector.shape))
    noise = jnp.zeros((1, 2 * small_dit.CHUNK), jnp.int32)
    window = dit.window(noise, jnp.full(1, 4), small_dit.voices(dit, 1), jnp.full(1, 3))
    rotated = dit_blocks.rotate(same, window.angles).reshape(2 * size, heads, -1)
    products = np.einsum("TNH,SNH->NTS", rotated, rotated)
    for head in products:
        for distance in range(2 * size):
            diagonal = np.diagonal(head, distance)
            np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
        assert np.ptp(head[0]) > 0.1  # and do depend on them


# ----------------------------------------------------------------------- padding

COUNTS = (7, 4)  # codes; seven do not fill their last block


def padded_batch(dit):
    rows, longest = len(COUNTS), max(COUNTS)
    mel = small_dit.random(rows, longest * small_dit.REPEATS, dit.config.mel_bins)
    return mel, small_dit.codes(rows, longest), small_dit.voices(dit, rows)


def test_a_padded_row_gives_what_it_gives_alone():
    dit, rows = small_dit.make(), len(COUNTS)
    mel, codes, voice = padded_batch(dit)
    ended = np.arange(max(COUNTS))[None] >= np.array(COUNTS)[:, None]
    padding = np.repeat(ended, small_dit.REPEATS, axis=1)[..., None]
    noisy = jnp.where(padding, jnp.nan, mel)
    ours = velocity(dit, noisy, jnp.where(ended, -1, codes), COUNTS, voice, True)
    assert (ours[:rows][padding[..., 0]] == 0).all()
    for row, count in enumerate(COUNTS):
        frames, one = count * small_dit.REPEATS, slice(row, row + 1)
        alone = velocity(
            dit, mel[one, :frames], codes[one, :count], [count], voice[one], True
        )  # conditional and unconditional
        np.testing.assert_allclose(ours[row::rows, :frames], alone, rtol=0, atol=1e-5)


def test_what_stands_behind_the_end_changes_no_bit():
    dit = small_dit.make()
    mel, codes, voice = padded_batch(dit)
    ended = np.arange(max(COUNTS))[None] >= np.array(COUNTS)[:, None]
    padding = np.repeat(ended, small_dit.REPEATS, axis=1)[..., None]
    clean = velocity(
        dit, jnp.where(padding, 0, mel), codes * ~ended, COUNTS, voice, True
    )
    for filling, code in ((np.nan, -1), (1e30, 10**6)):
        other = jnp.where(padding, filling, mel), jnp.where(ended, code, codes)
        np.testing.assert_array_equal(clean, velocity(dit, *other, COUNTS, voice, True))


def test_a_padded_reference_gives_what_it_gives_alone():
    """1e-5: means over as many frames, summed in another order."""
    dit = small_dit.make()
    lengths = jnp.array([20, dits.shortest_reference(dit.config)])
    mel = small_dit.random(2, 20, dit.config.mel_bins)
    xvector = small_dit.random(2, dit.config.xvector_dim, seed=3)
    ended = np.arange(20)[None] >= np.asarray(lengths)[:, None]
    voice = small_dit.voice
    ours = voice(dit, xvector, jnp.where(ended[..., None], jnp.nan, mel), lengths)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = voice(dit, xvector[one], mel[one, :length], lengths[one])
        np.testing.assert_allclose(ours[one], alone, rtol=1e-5, atol=1e-5)
