"""Texts to be read aloud: cutting, tidying, sifting, and the order of reading."""

import collections

import pytest

from data.small_family import held_out, passages, texts
from data.small_family import reading_plan as plan


def sentence(language: str, text: str) -> texts.Text:
    return texts.Text(language, "wesnoth", "sentence", text)


def words(number: int) -> str:
    """A sentence of letters alone that no other number has."""
    name = "".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")
    return f"The old ship {name} came home before the storm."


def pool(counts: dict[str, int]) -> list[texts.Text]:
    """English sentences of some sources."""
    sources = [source for source, count in counts.items() for _ in range(count)]
    return [texts.Text("en", s, "sentence", words(i)) for i, s in enumerate(sources)]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        (
            "en",
            "He left -- “quietly”… and came back.",
            "He left, quietly, and came back.",
        ),
        ("en", "Who is\n there ? It’s me…", "Who is there? It's me."),
        ("fr", "« Où est-il » ?", "Où est-il?"),
        ("zh", "他说：“走吧” …… 好的！", "他说：走吧，好的！"),
        ("ja", "「はい」、そう です……", "はい、そうです。"),
    ],
)
def test_tidy(language, text, expected):
    assert texts.tidy(text, language) == expected


def test_sentences_end_at_marks_before_a_capital():
    text = "It was late. ¿Quién es? No one came! the end."
    cut = texts.sentences(text, "es")
    assert cut == ["It was late.", "¿Quién es?", "No one came! the end."]
    assert texts.sentences("走吧。谁？好！", "zh") == ["走吧。", "谁？", "好！"]


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("en", "The children were playing in the garden.", ""),
        ("en", "Well, I'm not sure; that's a well-known story!", ""),
        ("es", "¿Puede decirme dónde está la estación?", ""),
        ("fr", "L'été dernier, nous étions à la mer.", ""),
        ("fr", "J'ai faim; qu'est-ce qu'il y a?", ""),
        ("it", "È già tardi, perché non andiamo?", ""),
        ("pt", "Amanhã você não vai à praça.", ""),
        ("zh", "明天早上，我们去公园散步吧。", ""),
        ("ja", "明日の朝、公園を散歩しましょう。", ""),
        ("en", "The house has 3 doors and a window.", "digits"),
        ("en", "She read (or so they say) the whole book.", "script or marks"),
        ("en", "Open the file at www.example.org and wait.", "script or marks"),
        ("en", "the first letter is not a capital.", "script or marks"),
        ("en", "This sentence has no end", "script or marks"),
        ("en", "We went e.g. to the small island.", "script or marks"),
        ("en", "The word straße is not an English one.", "script or marks"),
        ("en", "Press the key Q and then wait a little.", "single letter"),
        ("en", "He works for the NASA in the south.", "capitals"),
        ("en", "Yesterday Konrad and Delfador went to Elensefar.", "names"),
        ("en", "What a damned shame this is for us.", "unsuitable"),
        ("en", "Come here.", "length"),
        ("en", "Extraordinarily incomprehensible.", "few words"),
        ("en", "A " + "very " * 40 + "long way.", "length"),
        ("zh", "请安装 Debian 系统再试试。", "script or marks"),
        ("ja", "東京駅前中央公園入口。", "script or marks"),
    ],
)
def test_sieve(language, text, reason):
    assert texts.Sieve().reason(sentence(language, text)) == reason


def test_a_word_does_not_condemn_longer_ones():
    said = "The class passed the assessment without an assistant."
    assert texts.Sieve().reason(sentence("en", said)) == ""


def test_collect_keeps_each_text_once_and_counts_the_rest():
    said = ["The sun is warm today.", "the SUN is warm, today!", "It is 5 o'clock now."]
    found = [passages.Passage("wesnoth", "en", text) for text in said[:1] * 2 + said]
    kept, dropped = texts.collect(found)
    assert [text.text for text in kept] == [said[0]]
    assert dropped == {
        ("en", "said before"): 2,
        ("en", "script or marks"): 1,
        ("en", "digits"): 1,
    }


def test_a_passage_of_a_paragraphs_length_stays_whole():
    said = " ".join(["We walked along the river until the evening came."] * 4)
    kept, _ = texts.collect([passages.Passage("wesnoth", "en", said)])
    assert [(text.kind, text.text) for text in kept] == [("paragraph", said)]


def test_held_out_texts_and_their_runs_of_words_are_not_read():
    kept = [
        sentence("en", "Every winter the lake freezes from one shore to the other."),
        sentence("en", "EVERY WINTER, the lake freezes; nobody knows why."),
        sentence("en", "Every winter the pond freezes over."),
    ]
    assert texts.apart(kept, dict(en=[kept[0].text])) == kept[2:]


def test_held_out_texts_of_languages_without_spaces():
    kept = [
        sentence("ja", "このパン屋は毎朝とても早く開きますよ。"),
        sentence("ja", "雨です。"),
    ]
    assert (
        texts.apart(kept, dict(ja=["このパン屋は毎朝とても早く開きます。"])) == kept[1:]
    )


def test_the_lists_would_pass_the_sieve():
    """They are of the kind of language that is trained on."""
    sieve = texts.Sieve()
    for language, said in held_out.load().texts.items():
        for text in said:
            if len(text) <= texts.LIMITS[language].most:
                assert sieve.reason(sentence(language, text)) == "", text


def test_drawing_depends_on_the_seed_alone():
    found = pool(dict(wordnet=40, gnome=20))
    drawn = [text.text for text in texts.draw(found, "en", 0)]
    assert drawn == [text.text for text in texts.draw(found[::-1], "en", 0)]
    assert drawn != [text.text for text in texts.draw(found, "en", 1)]
    assert sorted(drawn) == sorted(text.text for text in found)


def test_sources_take_turns_by_their_shares():
    found = pool(dict(wordnet=400, gnome=400))
    first = [text.source for text in texts.draw(found, "en", 0)][:100]
    counts = collections.Counter(first)
    share = texts.SHARES["wordnet"] / (texts.SHARES["wordnet"] + texts.SHARES["gnome"])
    assert counts["wordnet"] == pytest.approx(100 * share, abs=1)


def test_a_source_that_ends_leaves_its_turns_to_others():
    drawn = list(texts.draw(pool(dict(wordnet=3, gnome=30)), "en", 0))
    assert len(drawn) == 33


def test_every_voice_reads_and_a_text_keeps_its_voice():
    found = pool(dict(wordnet=80))
    first, second = (
        plan.make(dict(en=part), hours=1.0)["en"] for part in (found, found[::-1][:50])
    )
    assert {one.voice for one in first} == set(plan.VOICES["en"])
    assert {one.id for one in second} <= {one.id for one in first}


def test_voices_are_chosen_by_language_and_name():
    assert plan.choose_voices(["en", "fr"]) == {c: plan.VOICES[c] for c in ("en", "fr")}
    chosen = plan.choose_voices(["en"], ["am_michael", "af_heart"])
    assert chosen == dict(en=("af_heart", "am_michael"))
    drawn = dict(en=pool(dict(wordnet=80)))
    assert {one.voice for one in plan.make(drawn, 1.0, chosen)["en"]} == {*chosen["en"]}


@pytest.mark.parametrize(
    "languages, names, says",
    [
        (["de"], (), "got de, expected languages of en"),
        (["en"], ["af_hart"], "got af_hart, expected languages of en"),
        (["en", "fr"], ["af_heart"], "got fr without a voice"),
        (["en"], ["af_heart", "ff_siwis"], "got ff_siwis without a voice or language"),
    ],
)
def test_voices_that_do_not_fit_are_refused(languages, names, says):
    with pytest.raises(ValueError, match=says):
        plan.choose_voices(languages, names)


def test_texts_that_say_new_words_come_first():
    said = ["The cat sat.", "The cat sat on it.", "Big dogs ran.", "The cat sat up."]
    found = [texts.Text("en", "wordnet", "sentence", text) for text in said]
    for seed in range(4):
        first, second, *_ = [one.text for one in texts.by_coverage(found, seed)]
        # one of the cats and the dogs, whatever the seed
        assert "Big dogs ran." in (first, second)
    everything = texts.by_coverage(found, 0)
    assert sorted(one.text for one in everything) == sorted(said)
    assert texts.by_coverage(found[::-1], 0) == everything


def test_what_is_held_out_is_read_by_every_voice():
    said = dict(en=["A cat sat.", "Dogs ran.", "Too long to read. " * 30])
    voices = plan.choose_voices(["en"], ["am_michael", "af_heart"])
    found = plan.held_out(said, voices)["en"]
    assert [(one.text, one.voice) for one in found] == [
        (text, voice) for text in said["en"][:2] for voice in voices["en"]
    ]
    assert {one.kind for one in found} == {plan.HELD_OUT}


def test_the_plan_ends_when_there_is_enough():
    hours = 0.01
    readings = plan.make(dict(en=pool(dict(wordnet=400))), hours)["en"]
    seconds = sum(len(one.text) for one in readings) / texts.LIMITS["en"].second
    goal = plan.SPARE * plan.goals_of(hours, ["en"])["en"]
    assert goal <= seconds < goal + 10


def test_plan_file(tmp_path):
    drawn = dict.fromkeys(passages.TRAINED, ()) | dict(en=pool(dict(wordnet=5)))
    readings = plan.make(drawn, hours=1.0)
    plan.save(readings, tmp_path)
    assert plan.load(tmp_path) == {code: one for code, one in readings.items() if one}


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(RuntimeError), plan.whole(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_goals_add_up():
    goals = plan.goals_of(10.5)
    assert sum(goals.values()) == pytest.approx(10.5 * 3600)
    assert goals["en"] == pytest.approx(4.5 * 3600)
    assert goals["zh"] == pytest.approx(3600)
