"""One clip: what is found wrong with it, and what is made of it."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
import pytest
import soundfile

from data import optional
from data.preparation import cleaning, scoring
from data.preparation import clip as raw
from qwen3tts_jax.audio import io as audio_io

RATE = 24_000
RULES = cleaning.Rules()
RECORDING = pathlib.Path(__file__).parents[2] / "recordings/allison_en.flac"
TEXT = (
    "Your call is now first in line and will be answered by the next available "
    "representative."
)


def voice(seconds: float, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    """Something with the ups and downs of speech."""
    rng = np.random.default_rng(0)
    time = np.arange(int(seconds * rate)) / rate
    envelope = 0.2 + np.abs(np.sin(2 * np.pi * 2 * time))
    noise = rng.standard_normal(len(time) + 15)
    low = np.convolve(noise, np.full(16, 1 / 4), "valid")  # neighbours are alike
    return (level * envelope * low / 4).astype(np.float32)


def silence(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.zeros(int(seconds * rate), np.float32)


def take(
    wave, text: str = "Hello there, you.", rate: int = RATE, **rules
) -> cleaning.Take:
    clip = raw.Clip("x", (wave, rate), text)
    return cleaning.take(clip, dataclasses.replace(RULES, **rules))


# ---------------------------------------------------------------------- dropping


@pytest.mark.parametrize(
    "wave, text, reason",
    [
        (voice(1), "", "no_text"),
        (voice(1), " ... ?!", "no_text"),
        (silence(2), "Hello.", "silence"),
        (voice(1, level=1e-4), "Hello.", "silence"),
        (voice(0.1), "Hello.", "too_short"),
        (np.zeros(0, np.float32), "Hello.", "unreadable"),
        (np.full(RATE, np.nan, np.float32), "Hello.", "unreadable"),
    ],
)
def test_what_cannot_be_used_is_dropped(wave, text, reason):
    found = take(wave, text)
    assert (found.reason, found.wave) == (reason, None)
    assert reason in cleaning.REASONS
    assert bool(found.detail) == (reason == "unreadable")


def test_a_long_clip_is_dropped_by_its_header_or_when_trimmed():
    assert take(voice(2.5), max_seconds=2).reason == "too_long"
    assert take(voice(7), max_seconds=2).reason == "too_long"  # never decoded
    padded = np.concatenate([silence(2), voice(1.5), silence(2)])
    assert take(padded, max_seconds=2).reason == ""


def test_two_words_with_a_long_pause_are_mostly_silence():
    wave = np.concatenate([voice(0.3), silence(9), voice(0.3)])
    assert take(wave).reason == "silence"


def test_a_reason_of_the_source_is_enough():
    found = cleaning.take(
        raw.Clip("x", "nowhere.wav", "Hello.", problem="remark"), RULES
    )
    assert found.reason == "remark"


def test_a_bad_file_is_named_and_raises_nothing(tmp_path):
    whole = RECORDING.read_bytes()
    bad = dict(missing=None, empty=b"", text=b"no sound at all", broken=whole[:50_000])
    for name, content in bad.items():
        path = tmp_path / f"{name}.flac"
        if content is not None:
            path.write_bytes(content)
        found = cleaning.take(raw.Clip(name, str(path), TEXT), RULES)
        assert found.reason == "unreadable" and found.detail, name


def test_an_address_is_no_file():
    found = cleaning.take(raw.Clip("x", "http://localhost:1/a.wav", "Hello."), RULES)
    assert (found.reason, found.detail) == ("unreadable", "no such file")


# ----------------------------------------------------------------------- marking


def test_clipping_is_marked_and_a_loud_wave_is_not():
    loud = voice(2, level=1.0)
    cut = np.clip(loud, -0.4, 0.4)
    assert take(loud).marks == ()
    assert take(cut).marks == ("clipping",)
    assert take(cut * 0.3).marks == ("clipping",)  # turned down afterwards
    assert cleaning.flat_share(np.round(voice(1, 0.003) * 2**15) / 2**15) == 0
    sine = np.sin(np.arange(RATE) / 20).astype(np.float32)
    assert cleaning.flat_share(sine) < RULES.max_flat


@pytest.mark.parametrize(
    "text, seconds, marks",
    [
        ("Hello there.", 1.0, []),
        ("A", 0.6, []),
        ("A sentence of forty letters and some more of it.", 1.0, ["too_fast"]),
        ("Hello there.", 9.0, ["too_slow"]),
        ("1234567890", 1.0, ["too_fast"]),  # ten words
        ("今日はいい天気です", 1.5, []),
        ("今日はいい天気ですね、散歩に行きましょう", 1.0, ["too_fast"]),
    ],
)
def test_text_that_does_not_fit_the_time_is_marked(text, seconds, marks):
    assert cleaning.pace(text, seconds, RULES) == marks


# -------------------------------------------------------------------- processing


def test_silence_at_the_ends_goes_and_a_margin_stays():
    wave = np.concatenate([silence(1.0), voice(1.5), silence(0.7)])
    found = take(wave)
    assert len(found.wave) / RATE == pytest.approx(1.5 + 0.2, abs=0.03)
    assert not found.wave[: int(0.08 * RATE)].any()


@pytest.mark.parametrize("level", [0.03, 0.1, 1.0])
def test_speech_comes_to_one_level(level):
    found = take(voice(2, level))
    loud = cleaning.speech_frames(found.wave, RULES)
    frames = found.wave[: len(found.wave) // 240 * 240].reshape(-1, 240)
    rms = np.sqrt(np.mean(frames[loud[: len(frames)]] ** 2))
    assert 20 * np.log10(rms) == pytest.approx(-23, abs=0.1)


def test_a_peak_is_not_raised_over_the_limit():
    wave = voice(2, 0.02)
    wave[RATE] = 0.5
    assert np.abs(take(wave).wave).max() == pytest.approx(cleaning.PEAK_LIMIT, rel=1e-3)


def test_the_level_can_be_left_alone():
    wave = voice(1.5)
    found = take(wave, level_db=None)
    assert np.array_equal(found.wave, wave[: len(found.wave)])


def test_other_rates_channels_and_pcm_come_to_24_khz():
    wave = voice(2, rate=16_000)
    stereo = np.stack([wave, wave], axis=1)
    pcm = np.round(wave * 2**15).astype(np.int16)
    mono = take(wave, rate=16_000).wave
    assert len(mono) == pytest.approx(2 * RATE, abs=480)
    assert np.array_equal(take(stereo, rate=16_000).wave, mono)
    assert np.allclose(take(pcm, rate=16_000).wave, mono, atol=2e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_files_of_every_kind_are_read(tmp_path, suffix):
    wave, rate = soundfile.read(RECORDING)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, wave, rate)
    found = cleaning.take(raw.Clip("a", path, TEXT), RULES)
    assert (found.reason, found.marks) == ("", ())
    assert len(found.wave) / RATE == pytest.approx(5.3, abs=0.2)


@pytest.mark.skipif(
    importlib.util.find_spec("G722") is None, reason="G722 is optional (extra data)"
)
def test_g722_is_read_and_every_file_begins_anew(tmp_path):
    import G722

    pcm = (voice(2, 0.5, rate=16_000) * 2**15).astype(np.int16)
    path = tmp_path / "a.g722"
    path.write_bytes(bytes(G722.G722(16_000, 64_000).encode(pcm)))
    module = optional.load("data.preparation.g722")
    assert module.seconds(path) == pytest.approx(2.0)
    first, rate = module.read(path)
    assert rate == 16_000 and np.array_equal(first, module.read(path)[0])
    delay = 22  # of the filters, samples
    assert np.corrcoef(first[delay:], pcm[:-delay])[0, 1] > 0.95
    assert cleaning.take(raw.Clip("a", path, "Hello there, you."), RULES).reason == ""


# ----------------------------------------------------------------------- scoring


@pytest.mark.parametrize(
    "said, heard, error",
    [
        ("Hello, World!", "hello world", 0),
        ("abcd", "abxd", 0.25),
        ("abcd", "abd", 0.25),
        ("abcd", "abccd", 0.25),
        ("abcd", "", 1),
        ("ab", "xyzw", 2),
        ("kitten", "sitting", 0.5),
        ("...", "", 0),
        ("...", "a", 1),
        ("ｱ１", "ア1", 0),  # widths do not count
    ],
)
def test_character_errors_are_counted(said, heard, error):
    assert scoring.cer(said, heard) == pytest.approx(error)


class Quality:
    """Stands for DNSMOS."""

    def __init__(self, ovrl: float, p808: float):
        self.scores = dict(ovrl=ovrl, p808=p808)

    def score(self, wave):
        assert wave.dtype == np.float32 and np.abs(wave).max() <= 1
        return self.scores


class Ear:
    """Stands for a recogniser."""

    def __init__(self, text: str):
        self.text, self.asked = text, []

    def transcribe(self, wave, language):
        self.asked.append((len(wave), language))
        return self.text


@pytest.mark.parametrize(
    "quality, heard, marks, tier",
    [
        (None, None, (), "medium"),
        ((3.3, 3.9), None, (), "high"),
        ((2.4, 3.9), None, (), "medium"),
        ((1.9, 3.9), None, ("dnsmos",), "low"),
        ((3.3, 2.0), None, ("dnsmos",), "low"),
        (None, "Hello there, you.", (), "high"),
        (None, "Hello their you", (), "medium"),
        (None, "Something else", ("mismatch",), "low"),
        ((3.3, 3.9), "Hello their you", (), "medium"),
        ((1.0, 1.0), "Something else", ("dnsmos", "mismatch"), "low"),
    ],
)
def test_scorers_mark_and_give_the_tier(quality, heard, marks, tier):
    panel = scoring.Scorers(scoring.Spec())
    panel._dnsmos = quality and Quality(*quality)
    panel._asr = heard and Ear(heard)
    clip = raw.Clip("x", (voice(1.5), RATE), "Hello there, you.", language="italian")
    found, level = panel.judge(cleaning.take(clip, RULES))
    assert (found.marks, level) == (marks, tier)
    if heard:
        samples, language = panel._asr.asked[0]
        assert samples == len(audio_io.resample(found.wave, RATE, 16_000))
        assert language == "it"


def test_a_marked_clip_is_low_whatever_the_models_say():
    panel = scoring.Scorers(scoring.Spec())
    panel._dnsmos = Quality(4.0, 4.0)
    found = panel.judge(take(np.clip(voice(2, 1.0), -0.4, 0.4)))
    assert (found[0].marks, found[1]) == (("clipping",), "low")


def test_scorers_whose_package_is_missing_say_so(tmp_path):
    missing = importlib.util.find_spec("speechmos") is None
    if missing:
        with pytest.raises(ModuleNotFoundError, match=r"speechmos.*\.\[eval\]"):
            scoring.Scorers(scoring.Spec(dnsmos=True))
    else:
        panel = scoring.Scorers(scoring.Spec(dnsmos=True))
        clip = raw.Clip("x", str(RECORDING), TEXT)
        assert panel.judge(cleaning.take(clip, RULES))[1] in ("medium", "high")
