"""Qwen3TTSTokenizer of 25 Hz: forms of input, rows alone, streams, files, mistakes."""

import types

import inputs_25hz
import jax
import numpy as np
import parity
import parity_25hz
import pytest

from qwen3tts_jax import Qwen3TTSTokenizer
from qwen3tts_jax.codecs import codec_25hz
from qwen3tts_jax.models.tokenizer_25hz import flow_matching, streaming_decoder

RATE = 16_000
CODES = 512  # of the tiny codebook
QUICK = flow_matching.Solver(steps=3)  # a block depends on two blocks after it


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Qwen3TTSTokenizer.from_pretrained(
        checkpoint("base_25hz", "1.7B") / "speech_tokenizer"
    )


@pytest.fixture(scope="module")
def quick(tokenizer):
    """The same with a solver of two steps, and streams that wait for all they need."""
    return tokenizer.streaming(lookahead=None, solver=QUICK)


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like a voice, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (120 + 60 * np.sin((4 + seed) * t)) * t)
    return (0.3 * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def codes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(CODES, size=count)


def voice(seed: int = 0, frames: int = 60) -> dict:
    """A random x-vector and reference mel, by their official names."""
    rng = np.random.default_rng(seed)
    vector, mel = rng.standard_normal(20), rng.standard_normal((frames, 80)) - 5
    return dict(
        xvectors=np.float32(vector / np.linalg.norm(vector)), ref_mels=np.float32(mel)
    )


def request(count: int, seed: int = 0) -> dict:
    """One utterance, for `decode`."""
    return dict(audio_codes=codes(count, seed)) | voice(seed)


# ------------------------------------------------------------------------- encoding


def test_encode_forms_agree(tokenizer):
    one = wave(1.0)
    found = tokenizer.encode(one, sr=RATE)
    assert isinstance(found, codec_25hz.EncoderOutput25Hz)
    assert found.audio_codes[0].shape == (25,)
    assert found.audio_codes[0].dtype == np.int32
    assert len(set(found.audio_codes[0])) > 3
    assert found.xvectors[0].shape == (20,) and found.ref_mels[0].shape == (100, 80)
    assert np.linalg.norm(found.xvectors[0]) == pytest.approx(1)
    for form in ((one, RATE), [(one, RATE)], np.stack([one, one], 1)):
        rate = RATE if isinstance(form, np.ndarray) else None
        again = tokenizer.encode(form, sr=rate, return_dict=False)
        assert isinstance(again, tuple)
        for ours, theirs in zip(again, (found.audio_codes, found.xvectors)):
            np.testing.assert_array_equal(ours[0], theirs[0])
    assert tokenizer.encode([]).audio_codes == []
    with pytest.raises(ValueError, match="rate"):
        tokenizer.encode(one)


def test_a_row_is_encoded_as_alone(tokenizer):
    waves = [wave(0.55, 1), wave(2.31, 2), wave(0.2, 3)]
    batch = tokenizer.encode(waves, sr=RATE)
    for i, one in enumerate(waves):
        alone = tokenizer.encode(one, sr=RATE)
        for name in ("audio_codes", "xvectors", "ref_mels"):
            ours, theirs = getattr(batch, name)[i], getattr(alone, name)[0]
            np.testing.assert_array_equal(ours, theirs)
        assert len(alone.audio_codes[0]) == -(-len(one) // 640)


def test_a_wave_without_a_voice_is_refused(tokenizer):
    with pytest.raises(ValueError, match="799 samples.*seconds of speech"):
        tokenizer.encode(np.zeros(799, np.float32), sr=RATE)


# ------------------------------------------------------------------------- decoding


def test_decode_forms_agree(quick):
    long, short = request(16, 1), request(9, 2)
    both = {key: [long[key], short[key]] for key in long}
    waves, rate = quick.decode([long, short])
    assert rate == 24000 and [len(w) for w in waves] == [16 * 960, 9 * 960]
    assert waves[0].dtype == np.float32 and np.abs(waves[0]).max() <= 1
    assert all(w.std() > 0.01 for w in waves)
    padded = np.full((2, 16), -1)
    padded[0], padded[1, :9] = both["audio_codes"]
    arrays = dict(both, audio_codes=padded, xvectors=np.stack(both["xvectors"]))
    arrays["ref_mels"] = np.stack(both["ref_mels"])
    for form in (both, types.SimpleNamespace(**both), arrays):
        for ours, expected in zip(quick.decode(form)[0], waves, strict=True):
            np.testing.assert_array_equal(ours, expected)
    for one, expected in zip((long, short), waves, strict=True):
        column = dict(one, audio_codes=one["audio_codes"][:, None])
        for form in (one, [one], column):  # a row gives what it gives alone
            [alone], _ = quick.decode(form)
            np.testing.assert_allclose(alone, expected, atol=1e-5)


def test_solver_and_noise(tokenizer, quick):
    one = request(9)
    [usual], _ = tokenizer.decode(one)
    [again], _ = quick.decode(one, solver=flow_matching.OFFICIAL)
    np.testing.assert_array_equal(usual, again)
    [other], _ = quick.decode(one)
    assert np.abs(other - usual).max() > 1e-3
    [drawn], _ = quick.decode(one, seed=1)
    [drawn_again], _ = quick.decode(one, seed=1)
    np.testing.assert_array_equal(drawn, drawn_again)
    assert np.abs(drawn - other).max() > 1e-3
    with pytest.raises(ValueError, match="steps 1"):
        tokenizer.decode(one, solver=flow_matching.Solver(steps=1))


def test_what_comes_after_a_reference(quick):
    """It sounds as behind it, and the reference is cut off to the sample."""
    one, reference = request(5), codes(11, 5)
    vector, mel = one["xvectors"], one["ref_mels"]
    context = quick.condition(vector, mel, reference)
    [after], _ = quick.decode([one["audio_codes"]], states=[context])
    joined = np.concatenate([reference, one["audio_codes"]])
    [whole], _ = quick.decode(dict(one, audio_codes=joined))
    np.testing.assert_allclose(after, whole[11 * 960 :], atol=1e-5)
    [without], _ = quick.decode(one)
    assert np.abs(after - without).max() > 1e-3


@parity_25hz.over()
def test_waves_equal_the_official_ones(golden_25hz, tmp_path):
    """The longer row of its batch, and the other alone, where it hears no padding."""
    found = Qwen3TTSTokenizer.from_pretrained(golden_25hz.directory)
    seed, size = golden_25hz.seed, found.config.dit.codes
    vectors = inputs_25hz.xvectors(seed, found.config.dit.xvector_dim)
    fields = dict(
        audio_codes=inputs_25hz.codes(seed, size),
        xvectors=vectors,
        ref_mels=inputs_25hz.reference_mels(seed),
    )
    noise = inputs_25hz.noise(seed)
    for row, key in enumerate(("decode/0", "decode_alone/1")):
        alone = {name: values[row] for name, values in fields.items()}
        count = int((alone["audio_codes"] >= 0).sum())
        [ours], _ = found.decode(alone, noise=[noise[row, : 4 * count]])
        theirs = golden_25hz.arrays[key]
        parity.assert_close("25Hz decoded wave", ours, theirs, parity.WAVE_CLOSE)


# -------------------------------------------------------------------------- streams


STREAM = jax.jit(streaming_decoder.Decoder.stream)


def streamed(tokenizer, context, parts: list[np.ndarray]) -> tuple[np.ndarray, list]:
    """(the whole wave, samples after each part and at the end) of one row."""
    state, waves = tokenizer.own_state(context), []
    for part in parts:
        row = np.zeros((1, tokenizer.chunk, 1), np.int32)
        row[0, : len(part), 0] = part
        count = np.int32([len(part)])
        wave, samples, state = STREAM(tokenizer.decoder, row, count, state)
        waves.append(np.asarray(wave[0, : samples[0]]))
    waves.append(tokenizer.finish(state))
    return np.concatenate(waves), [len(w) for w in waves]


@pytest.mark.parametrize("reference", [0, 13])
def test_an_exact_stream_is_the_whole(quick, reference):
    """With as many blocks ahead as a block depends on; in chunks that fill no block."""
    assert quick.decoder.lookahead == 2 and quick.chunk == 8
    one = request(35)
    vector, mel = one["xvectors"], one["ref_mels"]
    context = quick.condition(vector, mel, codes(reference, 5))
    [whole], _ = quick.decode([one["audio_codes"]], states=[context])
    at = [0, 8, 11, 19, 19, 27, 35]
    parts = [one["audio_codes"][a:b] for a, b in zip(at, at[1:])]
    wave, lengths = streamed(quick, context, parts)
    assert len(wave) == 35 * 960
    np.testing.assert_allclose(wave, whole, atol=1e-5)
    made = [min(max(0, n - 16 + reference), reference + 35) // 8 for n in at[1:]]
    lag, hop = quick.bigvgan.lag, 8 * 960
    heard = [max(0, n * hop - lag - reference * 960) for n in made]
    assert lengths[:-1] == np.diff([0, *heard]).tolist()


def test_with_the_official_solver_a_stream_needs_nine_blocks(tokenizer):
    """Ten points in time are nine looks at one block more; with one block alone the
    difference shows, so that this can fail."""
    one = request(107)
    [whole], _ = tokenizer.decode(one)
    parts = np.split(one["audio_codes"], range(8, 107, 8))
    gaps = {}
    for lookahead in (None, 1):
        other = tokenizer.streaming(lookahead=lookahead)
        context = other.condition(one["xvectors"], one["ref_mels"])
        wave, lengths = streamed(other, context, parts)
        assert sum(length > 0 for length in lengths[:-1]) >= 3
        gaps[other.decoder.lookahead] = np.abs(wave - whole).max()
    assert gaps.keys() == {9, 1}
    assert gaps[9] < 1e-5 < gaps[1] < 1e-2


def test_a_stream_begins_after_sixteen_codes(tokenizer, quick):
    """One block ahead, as in the paper.  It is what whole decoding makes of the codes
    that are there, so that the beginning of this one is exact."""
    assert tokenizer.decoder.lookahead == 1 and tokenizer.decoder.window == 16
    usual = tokenizer.streaming(solver=QUICK)
    one = request(16)
    context = usual.condition(one["xvectors"], one["ref_mels"])
    wave, lengths = streamed(usual, context, np.split(one["audio_codes"], 2))
    assert lengths[0] == 0 and lengths[1] == 8 * 960 - usual.bigvgan.lag
    [whole], _ = quick.decode(one)
    np.testing.assert_allclose(wave[: lengths[1]], whole[: lengths[1]], atol=1e-5)


def test_a_state_after_codes_goes_on(quick):
    """What `state_after` has heard is as if it had been streamed."""
    one = request(29)
    context = quick.condition(one["xvectors"], one["ref_mels"])
    [whole], _ = quick.decode([one["audio_codes"]], states=[context])
    state = quick.state_after(one["audio_codes"], context)
    tail = quick.finish(state)
    np.testing.assert_allclose(tail, whole[len(whole) - len(tail) :], atol=1e-5)
    assert 0 < len(tail) < len(whole)


# ---------------------------------------------------------------------------- files


def test_names_and_rates(tokenizer):
    assert tokenizer.get_model_type() == "qwen3_tts_tokenizer_25hz"
    assert tokenizer.get_input_sample_rate() == 16000
    assert tokenizer.get_output_sample_rate() == 24000
    assert tokenizer.get_encode_downsample_rate() == 640
    assert tokenizer.get_decode_upsample_rate() == 960


def test_export_round_trip(tokenizer, tmp_path):
    source = tokenizer._source
    tokenizer.save_pretrained(tmp_path / "out")
    again = Qwen3TTSTokenizer.from_pretrained(tmp_path / "out")
    assert again.fingerprint == tokenizer.fingerprint
    for path in source.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    one = wave(0.3, 7)
    for ours, theirs in zip(
        again.encode(one, sr=RATE, return_dict=False),
        tokenizer.encode(one, sr=RATE, return_dict=False),
        strict=True,
    ):
        np.testing.assert_array_equal(ours[0], theirs[0])


# ------------------------------------------------------------------------- mistakes


BAD_REQUESTS = [
    ({"audio_codes": codes(3)}, "no xvectors and no ref_mels"),
    ([codes(3)], "no xvectors and no ref_mels.*do not say who speaks"),
    (dict(request(3), xvectors=None), "no xvectors"),
    (dict(request(3), xvectors=np.ones(7, np.float32)), r"\(7,\).*\[20\]"),
    (dict(request(3), ref_mels=np.ones((60, 8), np.float32)), r"\(60, 8\).*80"),
    (dict(request(3), ref_mels=np.ones((4, 80), np.float32)), r"\(4, 80\).*5 frames"),
    (dict(request(3), ref_mels=np.full((9, 80), np.nan, np.float32)), "NaN"),
    (dict(request(3), audio_codes=np.zeros((3, 16), int)), r"\(3, 16\)|3 audio_codes"),
    (dict(request(3), audio_codes=np.zeros(0, int)), "0 codes"),
    (dict(request(3), audio_codes=np.full(3, CODES)), "512.*0 to 511"),
    (dict(request(3), audio_codes=np.array([1, -1, 2])), "-1"),
    (dict(request(3), audio_codes=np.zeros(3)), "float64.*integers"),
    ([], "no codes"),
]


@pytest.mark.parametrize(("form", "message"), BAD_REQUESTS)
def test_bad_requests_are_one_clear_error(tokenizer, form, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(form)


def test_lists_of_different_lengths(tokenizer):
    form = dict(request(3), audio_codes=[codes(3), codes(4)])
    with pytest.raises(ValueError, match="2 audio_codes, 1 xvectors and 1 ref_mels"):
        tokenizer.decode(form)
