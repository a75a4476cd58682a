"""Figures by hand, and what holds for all of them."""

import itertools

import numpy as np
import pytest

from qwen3tts_jax import metrics
from qwen3tts_jax.audio import io as audio_io

RNG = np.random.default_rng(7)


# ------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "text, plain",
    [
        ("Hello, World!", "hello world"),
        ("  call-back —  now … ", "call back now"),
        ("L’heure d'été", "l'heure d'été"),
        ("'quoted' words' end", "quoted words end"),
        ("rock 'n' roll", "rock n roll"),
        ("Straße", "strasse"),
        ("ＡＢＣ １２", "abc 12"),
        ("ｱ", "ア"),
        ("e\u0301te\u0301", "été"),
        ("¿Qué? ¡Sí!", "qué sí"),
        ("नमस्ते।", "नमस्ते"),
        ("19 $", "19"),
        ("...", ""),
    ],
)
def test_texts_are_normalised(text, plain):
    assert metrics.normalize(text) == plain
    assert metrics.normalize(plain) == plain


def test_the_seed_tts_eval_variant_drops_signs_without_a_space():
    assert metrics.seed_tts_normalize("Call-back, it's “Fine”.", "en") == (
        "callback it's fine"
    )
    assert metrics.seed_tts_normalize("L’Été", "fr") == "LÉté"
    assert metrics.seed_tts_normalize("你好，世界。", "zh") == "你好世界"


@pytest.mark.parametrize(
    "said, heard, language, counts",
    [
        ("one two three", "one two three", "en", (0, 0, 0, 3)),
        ("one two three", "one three", "en", (0, 1, 0, 3)),
        ("one two three", "one two two three", "en", (0, 0, 1, 3)),
        ("one two three", "one too three", "en", (1, 0, 0, 3)),
        ("one two three", "", "en", (0, 3, 0, 3)),
        ("", "one two", "en", (0, 0, 2, 0)),
        ("a b", "b c", "en", (0, 1, 1, 2)),  # b is kept; not two substitutions
        ("a b c d", "b c d e", "en", (0, 1, 1, 4)),
        ("x a b", "y z a", "en", (1, 1, 1, 3)),
        ("你好，世界。", "你好世间", "zh", (1, 0, 0, 4)),
        ("你好 世界", "你好世界呀", "chinese", (0, 0, 1, 4)),
        ("こんにちは", "こんにちわ", "ja", (1, 0, 0, 5)),
        ("你好 世界", "你好世界", "en", (1, 1, 0, 2)),  # words elsewhere
    ],
)
def test_edits_by_hand(said, heard, language, counts):
    found = metrics.word_edits(said, heard, language)
    kinds = (found.substitutions, found.deletions, found.insertions, found.length)
    assert kinds == counts


def slow_edits(a, b) -> tuple[int, int]:
    """(edits, substitutions) by the textbook, fewest of both in this order."""
    table = {(i, 0): (i, 0) for i in range(len(a) + 1)}
    table |= {(0, j): (j, 0) for j in range(len(b) + 1)}
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        same = a[i - 1] == b[j - 1]
        (e, s), left, up = (table[k] for k in ((i - 1, j - 1), (i, j - 1), (i - 1, j)))
        ways = [(e, s) if same else (e + 1, s + 1)]
        ways += [(left[0] + 1, left[1]), (up[0] + 1, up[1])]
        table[i, j] = min(ways)
    return table[len(a), len(b)]


def test_edits_equal_the_textbook_on_random_sequences():
    for _ in range(60):
        a, b = (RNG.integers(0, 4, RNG.integers(0, 14)).tolist() for _ in range(2))
        found = metrics.edits(a, b)
        assert (found.count, found.substitutions) == slow_edits(a, b)
        assert len(a) - found.deletions + found.insertions == len(b)
        back = metrics.edits(b, a)
        assert back.count == found.count
        assert (back.insertions, back.deletions) == (found.deletions, found.insertions)


def test_rates_pooled_and_macro():
    short, long = metrics.Edits(1, 0, 0, 2), metrics.Edits(0, 1, 1, 18)
    assert short.rate == 0.5 and long.rate == pytest.approx(1 / 9)
    assert metrics.pooled([short, long]) == metrics.Edits(1, 1, 1, 20)
    assert metrics.pooled([short, long]).rate == 0.15
    assert metrics.macro([short, long]) == pytest.approx((0.5 + 1 / 9) / 2)
    assert metrics.Edits().rate == 0 and metrics.Edits(insertions=3).rate == 1


def test_characters_leave_spaces_out():
    assert metrics.character_edits("ab cd", "abcd").count == 0
    assert metrics.character_edits("L’été", "l'ete").rate == pytest.approx(2 / 5)


# ------------------------------------------------------------------------- sound


def test_cosine():
    a, b = np.float32([1, 0]), np.float32([1, 1])
    assert metrics.cosine(a, b) == pytest.approx(0.5**0.5)
    assert metrics.cosine(3 * a, a) == 1 and metrics.cosine(a, -a) == -1
    for bad in (np.zeros(2), np.ones(3), np.float32([np.nan, 1])):
        with pytest.raises(
            ValueError, match=r"got vectors .*expected two finite \[D\]"
        ):
            metrics.cosine(a, bad)


def test_mel_distance_hears_level_and_ignores_a_longer_end():
    wave = RNG.normal(0, 0.1, 9000).astype(np.float32)
    assert metrics.mel_distance(wave, wave) == 0
    assert metrics.mel_distance(wave, 2 * wave) == pytest.approx(np.log(2), abs=1e-3)
    longer = np.concatenate([wave, np.ones(3000, np.float32)])
    # frames at the end of the shorter one are cut off in both
    assert metrics.mel_distance(wave, longer) == 0
    far = metrics.mel_distance(wave, RNG.normal(0, 0.1, 9000))
    assert far == pytest.approx(metrics.mel_distance(wave[::-1], wave), rel=0.2)
    with pytest.raises(ValueError, match="at least 256"):
        metrics.mel_distance(wave, wave[:100])


def test_speaking_rate_counts_letters_between_the_first_and_last_sound():
    rate = 1000
    quiet, loud = np.full(500, 1e-4), np.tile([0.5, -0.5], 500)
    wave = np.concatenate([quiet, loud, quiet, loud[:300], quiet]).astype(np.float32)
    seconds = metrics.speech_seconds(wave, rate)
    assert seconds == pytest.approx(1.8, abs=0.011)  # the pause inside counts
    assert metrics.speech_seconds(np.zeros(700, np.float32), rate) == 0
    assert metrics.speaking_rate(["Ab, c!", "de"], [1.0, 1.5]) == 2
    with pytest.raises(ValueError, match="0.0 s of speech"):
        metrics.speaking_rate(["a"], [0.0])


def test_real_time_factor():
    assert (
        metrics.real_time_factor(0.5, audio_io.SAMPLE_RATE, audio_io.SAMPLE_RATE) == 0.5
    )


# ------------------------------------------------------------------------- codes


def test_codebook_use_by_hand():
    codes = np.array([[0, 3], [0, 2], [1, 1], [1, 0]])
    found = metrics.codebook_use(codes, 4)
    np.testing.assert_allclose(found.used, [0.5, 1.0])
    np.testing.assert_allclose(found.perplexity, [2.0, 4.0])
    assert found.chance == pytest.approx(1 - 0.75**4)


def test_uniform_codes_are_used_as_chance_says():
    found = metrics.codebook_use(RNG.integers(0, 64, (100, 16)), 64)
    assert found.used.mean() == pytest.approx(found.chance, abs=0.03)


# -------------------------------------------------------------------- how sure


def test_mean_and_its_error():
    found = metrics.mean([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert found.error == pytest.approx(1 / 3**0.5)
    assert np.isnan(metrics.mean([1.0]).error)
    with pytest.raises(ValueError, match="no values"):
        metrics.mean([])


def test_interval_holds_the_ratio_shrinks_and_repeats():
    def interval(n, seed=0):
        lengths = np.full(n, 10)
        return metrics.ratio_interval(np.arange(n) % 2 * 2, lengths, seed=seed)

    few, many = interval(20), interval(2000)
    assert few[0] < 0.1 < few[1] and many[0] < 0.1 < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 5
    assert interval(20) == few and interval(20, seed=1) != few
    # a binomial's own width: 1.96 * 0.1 / sqrt(n)
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.1 / 2000**0.5, rel=0.15)
    assert metrics.ratio_interval([3, 3], [3, 3], seed=0) == (1, 1)
