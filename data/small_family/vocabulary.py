"""The text vocabulary of the small family: byte-level BPE over the corpus' own texts.

    python -m data.small_family.vocabulary --manifest corpus/manifest.jsonl \\
        --languages en,zh,ja,es,fr,it,pt --out vocabulary

writes vocab.json, merges.txt and tokenizer_config.json in the layout of Qwen2, which
`tokenizer.TextTokenizer` and the official package read.  Words are cut as Qwen2 cuts
them; all 256 bytes are tokens, so that any text has ids; and "assistant" is one token,
so that the role in a prompt is three, as the official package takes for granted.
"""

import argparse
import collections
import itertools
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from data.preparation import sources
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.text import tokenizer as text

SIZE = 2048
ROLE = "assistant"
# A language with little text counts at most so often: its words would be learned whole.
MOST_REPEATS = 8

Merges = list[tuple[str, str]]


def read(path: Path, languages: Collection[str] = ()) -> dict[str, list[str]]:
    """language -> texts of JSON lines {"text": ..., "language": ...}, as in a manifest.

    languages: names or ISO 639-1 which to take; () for all.
    Raises: FileNotFoundError; ValueError for a line of another kind, or a language of
        which there is no text.
    """
    wanted = {sources.language_name(name) for name in languages}
    found = collections.defaultdict(list)
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            name = sources.language_name(entry["language"])
            said = sources.tidy(entry["text"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'got line {number} of {path}, expected {{"text": ..., "language": '
                f"...}} ({error!r}); correct it"
            ) from error
        if not wanted or name in wanted:
            found[name].append(said)
    if not found or wanted - found.keys():
        raise ValueError(
            f"got no text in {', '.join(sorted(wanted - found.keys())) or path}; leave "
            "the language out, or add text"
        )
    return dict(found)


def balanced(texts: Mapping[str, list[str]]) -> Iterator[str]:
    """Texts, repeated until every language has as many bytes as the largest.

    A second of speech is about as many bytes of UTF-8 in every language of the corpus,
    so that all come to be about as many ids a second.
    """
    bytes_of = {name: sum(map(_bytes, some)) for name, some in texts.items()}
    largest = max(bytes_of.values())
    for name, some in texts.items():
        left = min(largest, MOST_REPEATS * bytes_of[name])
        repeated = itertools.cycle(some)
        while left > 0:
            said = next(repeated)
            left -= _bytes(said)
            yield said


def _bytes(said: str) -> int:
    return len(said.encode())


def train(texts: Iterable[str], *, size: int) -> tuple[list[str], Merges]:
    """A vocabulary.

    Args:
        size: ids, those of `tokenizer.PROMPT_TOKENS` included.
    Returns: (tokens in the order of their ids, merges), for `tokenizer.write_files`.
    Raises: ValueError for too little text, or a size that does not hold the bytes.
    """
    wanted = size - len(text.PROMPT_TOKENS)
    least = len(_ALPHABET) + len(ROLE) - 1
    if wanted < least:
        raise ValueError(
            f"got --size {size}, expected {least + len(text.PROMPT_TOKENS)} or more: "
            "256 bytes and what a prompt needs"
        )
    merges = _learn(texts, wanted)
    if len(_tokens(merges)) < wanted:
        raise ValueError(
            f"got texts for {len(_tokens(merges))} tokens, expected {wanted}; give "
            "more text or a smaller --size"
        )
    # the role takes the place of the last, rarest merges: as many as it needs
    for kept in range(len(merges), 0, -1):
        found = merges[:kept] + _whole(ROLE, merges[:kept])
        if len(_tokens(found)) <= wanted:
            return _tokens(found), found
    raise AssertionError("the least size leaves room for the role")


_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _learn(texts: Iterable[str], count: int) -> Merges:
    """Merges that make, with the bytes, so many tokens; fewer if the texts are few."""
    backend = tokenizers.Tokenizer(models.BPE())
    text.set_word_pattern(backend)
    trainer = trainers.BpeTrainer(
        vocab_size=count, initial_alphabet=_ALPHABET, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


def _tokens(merges: Merges) -> list[str]:
    """Bytes, then what the merges make, each once."""
    return list(dict.fromkeys([*_ALPHABET, *(a + b for a, b in merges)]))


def _whole(word: str, merges: Merges) -> Merges:
    """Merges to put after others, so that a word becomes one token.

    They come last, so that all other words stay as they are, unless they hold the word.
    """
    vocab = {token: number for number, token in enumerate(_tokens(merges))}
    pieces = [token.value for token in models.BPE(vocab, merges).tokenize(word)]
    starts = itertools.accumulate(pieces[:-1])
    return list(zip(starts, pieces[1:]))


def write(out: Path, texts: Mapping[str, list[str]], *, size: int = SIZE) -> dict:
    """Train and write a vocabulary; the directory appears whole or not at all.

    Returns: for each language its texts, characters and ids.
    """
    tokens, merges = train(balanced(texts), size=size)
    with hub.new_directory(out) as directory:
        text.write_files(directory, tokens, merges)
        made = text.TextTokenizer.from_directory(directory)
        made.config_ids()  # refuses a vocabulary in which prompts cannot be written
    return {
        name: dict(
            texts=len(some),
            characters=sum(map(len, some)),
            ids=sum(len(made.encode(said)) for said in some),
        )
        for name, some in sorted(texts.items())
    }


def main(argv: list[str] | None = None) -> None:
    """Make a vocabulary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, required=True, help="of a corpus")
    parser.add_argument("--languages", default="", help="en,zh; default: all there are")
    parser.add_argument("--size", type=int, default=SIZE, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        languages = list(filter(None, args.languages.split(",")))
        found = write(args.out, read(args.manifest, languages), size=args.size)
    except (ValueError, OSError) as error:
        sys.exit(f"vocabulary: {error}")
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
