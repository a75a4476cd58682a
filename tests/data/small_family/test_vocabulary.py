"""The reduced text vocabulary: any text has ids, the role is three, Qwen2's files."""

import collections
import json
import pathlib
import random
import unicodedata

import pytest
import text_files

from data.small_family import vocabulary
from qwen3tts_jax.text import tokenizer as text

SIZE = 400
TEXTS = {"mixed": [entry["text"] for entry in text_files.GOLDEN["texts"]]}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("vocabulary") / "made"
    vocabulary.write(out, TEXTS, size=SIZE)
    return out


@pytest.fixture(scope="module")
def reduced(made) -> text.TextTokenizer:
    return text.TextTokenizer.from_directory(made)


def any_text(seed: int) -> str:
    """Characters from all of Unicode, and some that stand beside prompts."""
    draw = random.Random(seed)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    some = draw.choices(points, k=60) + draw.choices(range(128), k=40)
    draw.shuffle(some)
    return "".join(map(chr, some))


@pytest.mark.parametrize("said", [*TEXTS["mixed"], *map(any_text, range(9))], ids=ascii)
def test_any_text_comes_back(reduced, said):
    ids = reduced.encode(said)
    assert reduced.decode(ids) == unicodedata.normalize("NFC", said)
    assert not ids or 0 <= min(ids) <= max(ids) < SIZE


def test_the_files_say_how_words_are_merged(reduced, made):
    """The same ids by merging in plain Python what the files hold."""
    vocab = json.loads((made / "vocab.json").read_text("utf-8"))
    lines = (made / "merges.txt").read_text("utf-8").splitlines()[1:]
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines)}
    assert sorted(vocab.values()) == list(range(SIZE - len(text.PROMPT_TOKENS)))
    assert {"".join(pair) for pair in ranks} <= vocab.keys()
    cut = reduced.backend.pre_tokenizer.pre_tokenize_str

    def merged(word: str) -> list[int]:
        parts = list(word)
        while pairs := [p for p in zip(parts, parts[1:]) if p in ranks]:
            best = min(pairs, key=ranks.get)
            at = list(zip(parts, parts[1:])).index(best)
            parts[at : at + 2] = ["".join(best)]
        return [vocab[part] for part in parts]

    for said in (*TEXTS["mixed"], "my assistant's assistants assist"):
        words = [word for word, _ in cut(unicodedata.normalize("NFC", said))]
        if not any(token in said for token in text.PROMPT_TOKENS):
            assert reduced.encode(said) == sum(map(merged, words), [])


def test_a_prompt_is_written_as_the_official_package_cuts_it(reduced):
    role, ids = reduced.role_and_text_ids("Où est le chat ?")
    assert [reduced.decode([i]) for i in role] == ["<|im_start|>", "assistant", "\n"]
    assert reduced.decode(ids) == "Où est le chat ?"
    assert reduced.role_and_text_ids("") == (role, [])
    assert reduced.reference_ids("Ja.") == reduced.encode("Ja.")
    added = [reduced.encode(token) for token in text.PROMPT_TOKENS]
    assert added == [[number] for number in range(SIZE - len(added), SIZE)]
    assert reduced.config_ids()["tts_pad_token_id"] == SIZE - 3


def test_the_role_changes_no_other_word(reduced):
    """Without its merges, which stand last, ids are the same."""
    tokens, merges = vocabulary.train(vocabulary.balanced(TEXTS), size=SIZE)
    before = vocabulary._learn(vocabulary.balanced(TEXTS), len(tokens))
    kept = len([pair for pair, old in zip(merges, before) if pair == old])
    assert len("".join(merges[-1])) == len(vocabulary.ROLE)
    assert len(merges) - len(vocabulary.ROLE) < kept < len(merges)
    assert merges[:kept] == before[:kept]


def test_it_repeats(made, tmp_path):
    vocabulary.write(tmp_path / "again", TEXTS, size=SIZE)
    for name in text_files.FILES:
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_languages_weigh_the_same():
    texts = {"a": ["much to say"] * 100, "b": ["a few", "words"] * 10, "c": ["x"]}
    drawn = collections.Counter(vocabulary.balanced(texts))
    assert drawn["much to say"] == 100 and drawn["x"] == vocabulary.MOST_REPEATS
    assert drawn["a few"] == drawn["words"] == 10 * vocabulary.MOST_REPEATS
    even = collections.Counter(vocabulary.balanced({"a": ["four"] * 6, "b": ["two"]}))
    assert even == {"four": 6, "two": 8}


def test_the_command(tmp_path, capsys):
    lines = [
        dict(audio="a.flac", text="La casa es grande.", language="es", seconds=1.5),
        dict(audio="b.flac", text="The house is large.", language="en"),
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    out = tmp_path / "out"
    vocabulary.main(["--manifest", str(manifest), "--size", "272", "--out", str(out)])
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"english", "spanish"}
    assert found["spanish"]["texts"] == 1 and found["spanish"]["characters"] == 18
    assert text.TextTokenizer.from_directory(out).size == 272
    assert vocabulary.read(manifest, ["es"]) == {"spanish": ["La casa es grande."]}
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "Oh."}', "utf-8")
    for arguments, words in (
        (["--manifest", manifest, "--size", 269], "270 or more"),
        (["--manifest", manifest, "--size", 2048], "more text"),
        (["--manifest", manifest, "--languages", "en,zh"], "no text in chinese"),
        (["--manifest", bad], "line 1 of"),
        (["--manifest", "nowhere"], "No such file"),
    ):
        with pytest.raises(SystemExit, match=words):
            vocabulary.main([*map(str, arguments), "--out", str(tmp_path / "not")])
        assert not (tmp_path / "not").exists()


def test_a_vocabulary_that_splits_the_role_is_refused(made, tmp_path):
    vocab = json.loads((made / "vocab.json").read_text("utf-8"))
    merges = (made / "merges.txt").read_text("utf-8").splitlines()[1:-1]
    tokens = [token for token in vocab if token != vocabulary.ROLE]
    text.write_files(tmp_path, tokens, [tuple(line.split(" ")) for line in merges])
    tokenizer = text.TextTokenizer.from_directory(tmp_path)
    with pytest.raises(ValueError, match="splits assistant"):
        tokenizer.config_ids()
