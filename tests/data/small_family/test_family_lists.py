"""What is held out, what recognition says of clips, and the manifests of both."""

import collections
import json

import numpy as np
import pytest

from data.preparation import clip as raw
from data.preparation import debian_recordings as recordings
from data.preparation import sources
from data.small_family import (
    agreement,
    held_out,
    manifests,
    packages,
    passages,
    reading,
    texts,
)
from data.small_family import human_speech as human
from data.small_family import reading_plan as plan

# ----------------------------------------------------------------------- held out


def test_enough_is_held_out():
    lists = held_out.load()
    numbers = {language: len(said) for language, said in lists.texts.items()}
    english = dict(en=101)  # the text of a minute is the last
    assert numbers == dict.fromkeys(passages.TRAINED, 20) | english
    assert 140 <= len(lists.texts["en"][-1].split()) <= 165
    for language in set(passages.TRAINED) - set(texts.UNSPACED):
        said = lists.texts[language][:100]
        assert all(5 <= len(text.split()) <= 14 for text in said), language


def test_no_text_is_held_out_twice():
    said = [text for found in held_out.load().texts.values() for text in found]
    counts = collections.Counter(texts.plain(text) for text in said)
    assert counts.most_common(1)[0][1] == 1


def test_every_source_has_recordings_held_out():
    lists = held_out.load()
    counts = collections.Counter(
        "/".join(name.split("/")[:2]) if not name.startswith("tuxpaint") else "tuxpaint"
        for name in lists.clips
    )
    expected = {
        f"{kind}/{language}": 40
        for kind in ("asterisk", "fillets")
        for language in human.TAKEN[kind]
    }
    assert counts == expected | dict(tuxpaint=120)
    assert len(lists.speakers) >= 3


def clip(name: str, text: str = "Hello there.", speaker: str = "") -> raw.Clip:
    return raw.Clip(id=name, audio="", text=text, speaker=speaker, source="asterisk/en")


def test_held_out_clips_speakers_and_what_they_say():
    lists = held_out.Lists({}, frozenset(["a"]), frozenset(["ghost"]))
    found = [
        clip("a"),
        clip("b", "hello, THERE!"),
        clip("c", "Goodbye."),
        clip("d", "Something else.", "ghost"),
        clip("e", "Something else."),
    ]
    expected = dict(a="test", b="", c="train", d="test", e="")
    assert held_out.split(found, lists) == expected


# ------------------------------------------------------------------------ checking


def test_packs_fit_the_window():
    lengths = [(str(i), 3.0 + i % 5) for i in range(40)] + [("long", 29.0)]
    packed = list(agreement.packs(lengths))
    assert [name for pack in packed for name in pack] == [name for name, _ in lengths]
    known = dict(lengths)
    for pack in packed:
        total = sum(known[name] for name in pack) + agreement.PAUSE * (len(pack) - 1)
        assert total <= agreement.WINDOW or pack == ["long"]
    assert len(packed) < len(lengths) / 3


def test_clips_are_joined_with_pauses():
    joined = agreement.join([np.ones(10, np.float32)] * 3, rate=10)
    assert len(joined) == 30 + 2 * 7
    assert joined[10:17].tolist() == [0.0] * 7


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ("abcdefgh", [0.0, 0.0]),
        ("abXdefgh", [0.25, 0.0]),
        ("abcdegh", [0.0, 0.25]),
        ("abcdefgXXh", [0.0, 0.5]),
        ("efgh", [1.0, 0.0]),
        ("", [1.0, 1.0]),
    ],
)
def test_errors_fall_to_the_clip_that_has_them(heard, expected):
    assert agreement.error_rates(["abcd", "efgh"], heard) == expected


def test_all_errors_are_counted():
    """Their sum is the edit distance, as by the plain recursion."""

    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    rng = np.random.default_rng(0)
    for _ in range(20):
        said = ["".join(rng.choice(list("ab"), rng.integers(1, 4))) for _ in range(2)]
        heard = "".join(rng.choice(list("ab"), rng.integers(0, 7)))
        rates = agreement.error_rates(said, heard)
        total = sum(rate * len(text) for rate, text in zip(rates, said))
        assert total == pytest.approx(distance("".join(said), heard))


def test_a_clip_that_seems_bad_is_heard_again_alone():
    asked = []

    def alone(place: int) -> str:
        asked.append(place)
        return "efgh"

    rates = agreement.judge(["abcd", "efgh"], lambda: "abcdxxxx", alone, most=0.3)
    assert rates == [0.0, 0.0] and asked == [1]


# ----------------------------------------------------------------------- manifests


@pytest.fixture
def corpus(tmp_path):
    """Four clips read and one not yet, two recordings kept and one dropped."""
    found = [
        plan.Reading(f"fr/ff_siwis/{i}", "fr", "ff_siwis", "gnome", "sentence", text)
        for i, text in enumerate(["Un.", "Deux.", "Trois.", "Quatre.", "Cinq."])
    ]
    apart = plan.held_out(dict(fr=["Six."]), dict(fr=["ff_siwis"]))["fr"]
    plan.save(dict(fr=apart + found), tmp_path)
    rates = {
        found[0].id: 0.0,
        found[1].id: agreement.MOST["fr"] + 0.1,
        found[2].id: 0.1,
        apart[0].id: 0.0,
    }
    lines = [json.dumps(dict(id=name, cer=rate)) for name, rate in rates.items()]
    (tmp_path / manifests.RATES).write_text("\n".join(lines) + '\n{"id": "fr/ff')
    human_rows = [
        dict(
            id=f"asterisk/en/{part}",
            audio=f"audio/asterisk/en/{part}.flac",
            text="Goodbye.",
            language="en",
            speaker="asterisk/a",
            source="asterisk/en",
            split="train" if part == "dropped" else part,
            dropped="silence" * (part == "dropped"),
        )
        for part in ("train", "test", "dropped")
    ]
    plan.write_lines(tmp_path / human.LISTING, human_rows)
    kept = [one.audio for one in apart + found[:4]] + [
        row["audio"] for row in human_rows[:2]
    ]
    for name in kept:
        reading.write(tmp_path / name, np.full(12_000, 0.1, np.float32))
    return tmp_path


def open_manifest(path):
    found = sources.open_source(sources.Spec("manifest", str(path)))
    unread = found.check()
    return {clip.id: clip for clip in found.clips(0, len(found))}, unread


def test_manifests_hold_what_is_good_and_heard(corpus):
    rows = manifests.write(corpus)
    train, unread = open_manifest(corpus / manifests.TRAIN)
    test, _ = open_manifest(corpus / manifests.HELD_OUT)
    assert set(train) == {"fr/ff_siwis/0", "fr/ff_siwis/2", "asterisk/en/train"}
    [apart] = set(test) - {"asterisk/en/test"}
    assert test[apart].text == "Six." and test[apart].source == "kokoro/held_out"
    assert unread == {"seconds", "split", "cer"}
    first = train["fr/ff_siwis/0"]
    assert (first.text, first.language) == ("Un.", "french")
    assert (first.speaker, first.source) == ("kokoro/ff_siwis", "kokoro/gnome")
    why = {row["id"]: row["why"] for row in rows}
    assert why["fr/ff_siwis/1"] == manifests.ILL_READ
    assert why["fr/ff_siwis/3"] == manifests.UNCHECKED
    assert "fr/ff_siwis/4" not in why  # no clip yet


def test_clips_not_heard_yet_may_be_asked_for(corpus):
    manifests.write(corpus, unchecked=True)
    train, _ = open_manifest(corpus / manifests.TRAIN)
    assert "fr/ff_siwis/3" in train and "fr/ff_siwis/1" not in train


def test_lengths_and_the_table(corpus):
    rows = manifests.write(corpus)
    line = json.loads((corpus / manifests.TRAIN).read_text().splitlines()[0])
    assert line["seconds"] == 0.5 and line["cer"] == 0.0 and line["split"] == "train"
    table = manifests.table(rows)
    assert "train:      3 clips" in table and "test:      2 clips" in table
    assert manifests.ILL_READ in table and "silence" in table


# ----------------------------------------------------------------------- recordings


def tone() -> np.ndarray:
    return 0.3 * np.sin(np.arange(30_000) * 0.05).astype(np.float32)


def test_recordings_are_split_and_listed(tmp_path, monkeypatch):
    """Held-out clips that cannot be used are an error."""
    spoken = dict(
        audio=(tone(), 24_000), language="english", source="asterisk/en", speaker="a"
    )
    found = [
        raw.Clip(id="asterisk/en/one", text="First words.", **spoken),
        raw.Clip(id="asterisk/en/two", text="Second words.", **spoken),
        raw.Clip(id="asterisk/en/three", text="", **spoken),
    ]
    monkeypatch.setattr(
        recordings, "find", lambda kind, *_: found[: 3 * (kind[0] == "a")]
    )
    lists = held_out.Lists({}, frozenset(["asterisk/en/two"]), frozenset())
    human.run(tmp_path, tmp_path, lists, lambda line: None)
    rows = {row["id"]: row for row in human.load(tmp_path)}
    assert rows["asterisk/en/one"]["split"] == "train"
    assert rows["asterisk/en/two"]["split"] == "test"
    assert rows["asterisk/en/three"]["dropped"] == "no_text"
    assert len(list(tmp_path.rglob("*.flac"))) == 2

    lost = held_out.Lists({}, frozenset(["asterisk/en/three"]), frozenset())
    with pytest.raises(ValueError, match="asterisk/en/three; correct the list"):
        human.run(tmp_path, tmp_path, lost, lambda line: None)


# ------------------------------------------------------------------------- packages


def test_missing_packages_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "MODULES", {"json": "json", "no_such": "no-such"})
    with pytest.raises(ModuleNotFoundError, match=r"needs no-such.*\.\[corpus\]"):
        packages.check_modules()
    monkeypatch.setattr(packages, "MODULES", {})
    with pytest.raises(FileNotFoundError, match="apt-get download wordnet-base"):
        packages.fetch(tmp_path, tmp_path, print)


def test_a_root_that_has_all_is_taken(tmp_path):
    for file in packages.debian().values():
        path = tmp_path / "usr/share" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert packages.lacking(tmp_path) == []
    (tmp_path / "usr/share/wordnet/data.noun").unlink()
    assert packages.lacking(tmp_path) == ["wordnet-base"]
