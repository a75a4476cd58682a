"""Ids of a text that arrives in pieces are those of the whole text."""

import random
import unicodedata

import pytest
import text_files

from qwen3tts_jax.text import incremental
from qwen3tts_jax.text import tokenizer as text_tokenizer

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
    stream, ids = incremental.TextStream(tokenizer), []
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
    for entry in text_files.GOLDEN["texts"]:
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
    stream, ids = incremental.TextStream(tokenizer), []
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
    stream = incremental.TextStream(tokenizer)
    stream.push(pushed)
    assert tokenizer.decode(stream.take()) == certain
    assert stream.take() == []


def test_the_end_of_a_piece_splits_no_word(tokenizer):
    expected = tokenizer.role_and_text_ids("unbelievable things")
    assert stream_in(tokenizer, ["unbel", "iev", "able thi", "ngs"]) == expected
    parts = [tokenizer.encode(part) for part in ("unbel", "iev", "able thi", "ngs")]
    assert sum(parts, []) != expected[1]


def test_the_role_waits_for_what_may_join_it(tokenizer):
    stream = incremental.TextStream(tokenizer)
    assert (stream.role, stream.take()) == (None, [])
    for piece in ("", "\n", " \n"):
        stream.push(piece)
        assert (stream.role, stream.take()) == (None, [])
    stream.push("H")
    assert stream.role == tokenizer.role_and_text_ids("\n \nH")[0]


def test_a_stream_keeps_only_the_tail(tokenizer):
    stream, longest, count = incremental.TextStream(tokenizer), 0, 0
    for _ in range(300):
        for piece in ("Some words,", " caf", "e\u0301 <tts", "_pad> 12\n", "\n"):
            stream.push(piece)
            longest = max(longest, len(stream._held))
            count += len(stream.take())
    assert longest < 40
    assert count > 290 * 10


def test_a_stream_of_tokenizer_json_flows(whole_dir):
    """Its file asks for offsets without spaces, which would hide where words end."""
    whole = text_tokenizer.TextTokenizer.from_directory(whole_dir)
    stream = incremental.TextStream(whole)
    stream.push("Hello dear wor")
    assert whole.decode(stream.take()) == "Hello dear"
    stream.end()
    assert whole.decode(stream.take()) == " wor"


@pytest.mark.parametrize("flag", ["normalized", "single_word", "lstrip", "rstrip"])
def test_added_tokens_that_see_their_surroundings(broken_dir, flag):
    text_files.edit_config(
        broken_dir, lambda added: added["151671"].update({flag: True})
    )
    tokenizer = text_tokenizer.TextTokenizer.from_directory(broken_dir)
    for whole in ("a b1<tts_pad> c <tts_pad>  d", "x <tts_pad>\u0338 1"):
        expected = tokenizer.role_and_text_ids(whole)
        assert stream_in(tokenizer, whole) == expected


def test_a_stream_that_has_ended(tokenizer):
    stream = incremental.TextStream(tokenizer)
    stream.push("Hello")
    stream.end()
    with pytest.raises(ValueError, match="got a piece of text after the end.*new str"):
        stream.push("")
    with pytest.raises(ValueError, match=r"got end\(\) after the end of the text"):
        stream.end()
    assert stream.take() == tokenizer.encode("Hello")


def test_what_cannot_be_pushed(tokenizer):
    stream = incremental.TextStream(tokenizer)
    stream.push("Hel")
    with pytest.raises(TypeError, match="bytes, expected str"):
        stream.push(b"lo")
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        stream.push("a\ud800")
    stream.push("lo")
    stream.end()
    assert stream.take() == tokenizer.encode("Hello")
