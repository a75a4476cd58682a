"""BigVGAN: official waves; whole, streamed and ragged; what it hears, to a frame."""

import functools
import json

import contract
import inputs_25hz
import jax
import numpy as np
import parity
import parity_25hz
import plain_bigvgan
import pytest
import safetensors.numpy
from flax import nnx

from qwen3tts_jax.checkpoints import key_tables_25hz, weights
from qwen3tts_jax.config import tiny, tokenizer_25hz
from qwen3tts_jax.models.tokenizer_25hz import bigvgan
from qwen3tts_jax.nn import tree

TINY = tokenizer_25hz.Tokenizer25HzConfig.from_hf(tiny.tokenizer_25hz_config()).bigvgan
CHUNK = 32  # mel frames: 8 codes
SMALL = tokenizer_25hz.BigVGANConfig(
    mel_bins=4,
    channels=16,
    kernel_sizes=(3, 7),
    dilations=((1, 5), (2, 4)),
    upsample_rates=(5, 3, 2),
    upsample_kernel_sizes=(11, 7, 4),
)
HOP = SMALL.samples_per_mel
FRAMES, UNKNOWN = 48, 10**6
SEAM = 1e-5  # of the largest sample: float32 in another order, through some 30 parts

step = contract.quick_jit(bigvgan.BigVGAN.step)
finish = contract.quick_jit(bigvgan.BigVGAN.finish)
decode = contract.quick_jit(bigvgan.BigVGAN.decode)


@functools.cache
def make(config=SMALL) -> bigvgan.BigVGAN:
    """With random weights, each of which matters; few samples are clipped."""
    net = contract.random_part(lambda: bigvgan.BigVGAN(config, rngs=nnx.Rngs(0)))
    (last,) = net.last.convs
    return tree.with_leaves(net, {"last.convs.0.kernel": 0.1 * last.kernel[...]})


def zero_state(net, batch: int):
    """`init_state` without a program for each shape in it."""
    shapes = jax.eval_shape(lambda: net.init_state(batch))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def log_mel(frames, *, batch=1, bins=SMALL.mel_bins):
    """Levels of which some are clipped, at either end."""
    rng = np.random.default_rng(frames)
    return (4 * rng.standard_normal((batch, frames, bins)) - 3).astype(np.float32)


def streamed(net, mel, *, chunks: tuple[int, ...], end=None):
    """The wave by steps of these sizes in turn, and state; `finish` if no end is known.

    With an end NaN follows the mel, until all that is final has come.
    """
    batch, frames, _ = mel.shape
    late = 0 if end is None else -(-net.lag // net.config.samples_per_mel)
    room = ((0, 0), (0, late + max(chunks)), (0, 0))
    padded = np.pad(mel, room, constant_values=np.nan)
    state, outputs, at = zero_state(net, batch), [], 0
    while at < frames + late:
        size = chunks[len(outputs) % len(chunks)]
        known = np.full(batch, UNKNOWN, np.int32) if end is None else end
        wave, state = step(net, padded[:, at : at + size], state, known)
        outputs.append(wave)
        at += size
    if end is None:
        assert at == frames
        outputs.append(finish(net, state))
    wave = np.concatenate(outputs, axis=1)
    np.testing.assert_array_equal(wave[:, : net.lag], 0)
    return wave[:, net.lag :][:, : frames * net.config.samples_per_mel]


def assert_same(ours, theirs, tolerance: float):
    """Within `tolerance` of the largest sample."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert 0.01 < theirs.std() and (np.abs(theirs) < 1).mean() > 0.9
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max()
    )


# ---------------------------------------------------------------------- official


@parity_25hz.over()
def test_waves_equal_the_official_ones(golden_25hz):
    net, arrays = golden_25hz.parts["bigvgan"], golden_25hz.arrays
    cases = dict(staged=inputs_25hz.STAGED, wave=inputs_25hz.VOCODED)
    for name, frames in cases.items():
        mel = inputs_25hz.mel(golden_25hz.seed, frames)
        wave = streamed(net, mel, chunks=(CHUNK,), end=np.int32([frames]))
        theirs = arrays[f"bigvgan/{name}"]
        parity.assert_close("wave of a mel", wave, theirs, parity.CLOSE)


@parity_25hz.over()
def test_normalised_mel_equals_the_official_one(golden_25hz):
    ours = bigvgan.normalize(inputs_25hz.mel(golden_25hz.seed, inputs_25hz.STAGED))
    theirs = golden_25hz.arrays["bigvgan/normalized"].transpose(0, 2, 1)
    parity.assert_close("normalised mel", ours, theirs, parity.CLOSE)


@parity_25hz.over()
def test_saved_tensors_are_the_loaded_ones(golden_25hz, tmp_path):
    config, net = golden_25hz.config.bigvgan, golden_25hz.parts["bigvgan"]
    weights.save(tmp_path, dict(bigvgan=(net, key_tables_25hz.bigvgan_rules(config))))
    saved = safetensors.numpy.load_file(tmp_path / weights.WEIGHTS)
    found = safetensors.numpy.load_file(golden_25hz.directory / weights.WEIGHTS)
    found = {k: v for k, v in found.items() if k.startswith("decoder.bigvgan.")}
    assert set(saved) == set(found)
    for key, tensor in found.items():
        np.testing.assert_array_equal(saved[key], tensor, err_msg=key)


# --------------------------------------------------------------- whole and chunks


@pytest.mark.parametrize("lengths", [(FRAMES, 17), (1, 2), (0, FRAMES - 1)], ids=str)
def test_a_ragged_batch_gives_the_waves_of_its_rows(lengths):
    """1e-5 of the largest sample: float32 against float64, through some 30 parts."""
    net, mel = make(), log_mel(FRAMES, batch=2)
    mel[np.arange(FRAMES)[None] >= np.reshape(lengths, (2, 1))] = np.nan
    waves = np.asarray(decode(net, mel, np.int32(lengths)))
    assert waves.shape == (2, FRAMES * HOP)
    for wave, row, length in zip(waves, mel, lengths):
        if length:
            plain = plain_bigvgan.decode(net, row[:length].astype(np.float64))
            assert_same(wave[: length * HOP], plain, 1e-5)
        np.testing.assert_array_equal(wave[length * HOP :], 0)


@pytest.mark.parametrize("chunks", [(4,), (12, 28, 4)], ids=str)
def test_chunks_are_the_whole(chunks):
    """Of 1, 3 and 7 codes; of 8 above.  One row ends in the midst of a chunk."""
    net, ends = make(), np.int32([FRAMES, 29])
    mel = log_mel(FRAMES, batch=2)
    whole = decode(net, mel, ends)
    assert_same(streamed(net, mel, chunks=chunks, end=ends), whole, SEAM)


def test_finish_gives_what_a_stream_keeps_back():
    net, mel = make(), log_mel(FRAMES, batch=2)
    whole = decode(net, mel, np.int32([FRAMES, FRAMES]))
    assert_same(streamed(net, mel, chunks=(4,)), whole, SEAM)


def test_what_follows_the_end_is_not_heard():
    net, ends = make(), np.int32([FRAMES, 29])
    mel = log_mel(FRAMES, batch=2)
    quiet, loud = mel.copy(), mel.copy()
    quiet[1, 29:], loud[1, 29:] = 0, np.nan
    np.testing.assert_array_equal(decode(net, quiet, ends), decode(net, loud, ends))


def test_a_row_begins_anew_while_others_go_on():
    net, mel, ends = make(), log_mel(FRAMES, batch=2), np.int32([FRAMES, 8])
    size, again, fresh = 4, 12, zero_state(net, 2)
    state, outputs = fresh, []
    for at in range(0, FRAMES, size):
        if at == again:  # the second row, in the midst of its end
            state = jax.tree.map(
                lambda new, old: np.stack([old[0], new[1]]), fresh, state
            )
            ends = np.int32([FRAMES, FRAMES])
        chunk = mel[:, at : at + size].copy()
        chunk[1] = mel[1, (at - again) % FRAMES :][:size]
        wave, state = step(net, chunk, state, ends)
        outputs.append(wave)
    wave = np.concatenate(outputs, axis=1)
    whole = decode(net, mel, np.int32([FRAMES, FRAMES]))
    heard = FRAMES * HOP - net.lag
    assert_same(wave[0, net.lag :], whole[0, :heard], SEAM)
    heard -= again * HOP
    assert_same(wave[1, again * HOP + net.lag :], whole[1, :heard], SEAM)


# ---------------------------------------------------------------- receptive field


def test_the_receptive_field_is_exact():
    """NaN in one mel frame reaches each sample that depends on it, however little."""
    net, config = make(TINY), TINY
    before, after = bigvgan.receptive_field(config)
    hop, at = config.samples_per_mel, after + 3
    mel = log_mel(at + before + 3, bins=config.mel_bins)
    end = np.int32([mel.shape[1]])
    clean = streamed(net, mel, chunks=(CHUNK,), end=end)
    mel[:, at] = np.nan
    heard = streamed(net, mel, chunks=(CHUNK,), end=end)
    lost = np.isnan(heard).reshape(-1, hop)
    frames = np.flatnonzero(lost.any(axis=1))
    assert frames[0] == at - after and frames[-1] == at + before
    assert lost[at - after + 1 : at + before].all()
    kept = ~np.isnan(heard)
    np.testing.assert_array_equal(heard[kept], clean[kept])
    # a stream waits for not one sample more
    first = np.flatnonzero(lost.ravel())[0]
    assert net.lag == at * hop - first


def test_the_released_model_hears_54_frames_before_and_17_after():
    assert bigvgan.receptive_field(TINY) == (54, 17)
    assert make(TINY).lag == 3914  # samples: 163 ms


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(upsample_initial_channel=96), "got 96, expected a multiple of 2\\^6"),
        (dict(upsample_kernel_sizes=[10, 7, 4, 4, 4, 4]), "the rate plus an even"),
        (dict(upsample_rates=[5, 3, 2]), "for each of upsample_rates \\[5, 3, 2\\]"),
        (dict(resblock_kernel_sizes=[3, 7, 10]), "got \\[3, 7, 10\\], expected odd"),
        (dict(resblock_dilation_sizes=[[1, 3]] * 3), "expected three for each"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_cannot_be_built_is_named(change, expected):
    values = tiny.tokenizer_25hz_config()["decoder_config"]["bigvgan_config"]
    values = json.loads(json.dumps(values)) | change
    with pytest.raises(ValueError, match=expected):
        tokenizer_25hz.BigVGANConfig.from_hf(values)
