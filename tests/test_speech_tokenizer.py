"""Qwen3TTSTokenizer: every form of input, and one clear error per mistake."""

import numpy as np
import pytest

from qwen3tts_jax import EncoderOutput, Qwen3TTSTokenizer


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Qwen3TTSTokenizer.from_pretrained(checkpoint("base") / "speech_tokenizer")


def wave(seconds: float, seed: int = 0, rate: int = 24000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.3, 0.3, int(seconds * rate)).astype(np.float32)


def test_encode_forms_agree(tokenizer, tmp_path):
    one = wave(0.5)
    codes = tokenizer.encode(one, sr=24000).audio_codes[0]
    assert codes.shape == (7, 16) and codes.dtype == np.int32
    forms = [(one, 24000), [one], [(one, 24000)], one[:, None]]
    for form in forms:
        rate = None if isinstance(form, tuple) or form[0] is forms[2][0] else 24000
        again = tokenizer.encode(form, sr=rate)
        assert isinstance(again, EncoderOutput)
        np.testing.assert_array_equal(again.audio_codes[0], codes)
    assert isinstance(tokenizer.encode(one, sr=24000, return_dict=False), tuple)
    assert tokenizer.encode([]).audio_codes == []
    with pytest.raises(ValueError, match="rate"):
        tokenizer.encode(one)


def test_ragged_batch_equals_single_up_to_the_last_frame(tokenizer):
    waves = [wave(0.55, 1), wave(1.3, 2), wave(0.2, 3)]
    batch = tokenizer.encode(waves, sr=24000).audio_codes
    for one, codes in zip(waves, batch, strict=True):
        alone = tokenizer.encode(one, sr=24000).audio_codes[0]
        assert codes.shape == alone.shape
        np.testing.assert_array_equal(codes[:-1], alone[:-1])


def test_decode_forms_agree(tokenizer):
    rng = np.random.default_rng(5)
    long, short = rng.integers(0, 2048, (40, 16)), rng.integers(0, 2048, (5, 16))
    waves, rate = tokenizer.decode([long, short])
    assert rate == 24000
    assert [w.shape for w in waves] == [(40 * 1920,), (5 * 1920,)]
    assert waves[0].dtype == np.float32 and np.abs(waves[0]).max() <= 1
    padded = np.full((2, 40, 16), -1)
    padded[0], padded[1, :5] = long, short
    forms = [
        EncoderOutput([long, short]),
        {"audio_codes": [long, short]},
        [{"audio_codes": long}, {"audio_codes": short}],
        {"audio_codes": padded},
    ]
    for form in forms:
        for a, b in zip(tokenizer.decode(form)[0], waves, strict=True):
            np.testing.assert_array_equal(a, b)
    for codes, expected in zip((long, short), waves, strict=True):
        [alone], _ = tokenizer.decode({"audio_codes": codes})
        # other batch size, other summation order
        np.testing.assert_allclose(alone, expected, atol=1e-5)


BAD_CODES = [
    (np.zeros((3, 15), int), r"\(3, 15\).*\[T, 16\]"),
    (np.zeros((0, 16), int), "0 frames"),
    (np.full((2, 16), 2048), "2048.*0 to 2047"),
    (np.where(np.arange(16) == 3, -1, np.zeros((2, 16), int)), "-1"),
    (np.zeros((2, 16)), "float64.*integers"),
]


@pytest.mark.parametrize("codes, message", BAD_CODES)
def test_bad_codes_are_one_clear_error(tokenizer, codes, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode([codes])


def test_no_codes(tokenizer):
    with pytest.raises(ValueError, match="no codes"):
        tokenizer.decode([])


def test_names_and_rates(tokenizer):
    assert tokenizer.get_model_type() == "qwen3_tts_tokenizer_12hz"
    assert tokenizer.get_input_sample_rate() == tokenizer.get_output_sample_rate()
    assert tokenizer.get_encode_downsample_rate() == 1920
    assert tokenizer.get_decode_upsample_rate() == 1920


def test_export_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "out")
    again = Qwen3TTSTokenizer.from_pretrained(tmp_path / "out")
    one = wave(0.3, 7)
    np.testing.assert_array_equal(
        again.encode(one, sr=24000).audio_codes[0],
        tokenizer.encode(one, sr=24000).audio_codes[0],
    )
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
