"""TextStream: ids of a text that arrives in pieces, for text that is being written."""

import unicodedata

import tokenizers

from qwen3tts_jax.text import tokenizer as text_tokenizer


class TextStream:
    """The ids of a text that arrives in pieces, each id as soon as it is certain.

    However the text is cut, `role` and all that `take` hands out are equal to what
    `TextTokenizer.role_and_text_ids` gives for the whole text. A word is certain once
    the character after it is there; what a later piece may still change is held back:
    a word that goes on, spaces and newlines at the end, characters that a combining
    mark may join, the beginning of a special token. Only that tail is kept in memory.

    Attributes:
      role: the three ids of the assistant's role; None until they are certain, which
        takes a character that is no whitespace, because leading newlines join them.
    """

    def __init__(self, tokenizer: text_tokenizer.TextTokenizer):
        self.role: list[int] | None = None
        self._backend = backend = tokenizer.backend
        added = backend.get_added_tokens_decoder().values()
        self._starts = {t.content[:n] for t in added for n in range(1, len(t.content))}
        self._longest_start = max(map(len, self._starts), default=0)
        # Other flags than Qwen's look at the surroundings: then all waits for the end.
        self._is_local = not any(
            t.normalized or t.single_word or t.lstrip or t.rstrip for t in added
        )
        self._held = text_tokenizer.OPENING  # the characters whose ids are not certain
        self._ids: list[int] = []  # certain and not taken
        self._has_ended = False

    def push(self, text: str) -> None:
        """Adds the next piece of the text; it may be empty, and may end anywhere."""
        text_tokenizer.check_text(text)
        self._check_not_ended("a piece of text")
        self._held += text
        encoding = self._backend.encode(self._held, add_special_tokens=False)
        count, end = self._find_certain(encoding)
        self._release(encoding.ids[:count])
        self._held = self._held[end:]

    def end(self) -> None:
        """Says that the text is complete: all its ids become certain."""
        self._check_not_ended("end()")
        self._has_ended = True
        rest = f"{self._held}{text_tokenizer.CLOSING}"
        ids = self._backend.encode(rest, add_special_tokens=False).ids
        self._release(ids[: -text_tokenizer.CLOSE_AND_ROLE])
        self._held = ""

    @property
    def held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def take(self) -> list[int]:
        """The text ids that have become certain since the last call."""
        if self.role is None:
            return []
        ids, self._ids = self._ids, []
        return ids

    def _check_not_ended(self, what: str) -> None:
        if self._has_ended:
            raise ValueError(
                f"got {what} after the end of the text, expected nothing more; "
                "make a new stream for another text"
            )

    def _release(self, ids: list[int]) -> None:
        self._ids += ids
        if self.role is None and len(self._ids) >= text_tokenizer.ROLE:
            self.role, self._ids = (
                self._ids[: text_tokenizer.ROLE],
                self._ids[text_tokenizer.ROLE :],
            )

    def _find_certain(self, encoding: tokenizers.Encoding) -> tuple[int, int]:
        """How many ids, and how many of the held characters, no later text changes."""
        limit = self._limit()
        words, offsets = encoding.word_ids, encoding.offsets  # offsets: before NFC
        for i in range(len(words) - 1, 0, -1):
            end = offsets[i][0]
            # A gap before the word belongs to a composed character. An overlap means
            # that NFC made several characters of one, and the word ends inside them.
            is_whole = words[i - 1] != words[i] and offsets[i - 1][1] <= end
            if is_whole and end <= limit and _is_starter(self._held[end]):
                return i, end
        return 0, 0

    def _limit(self) -> int:
        """The last place where a word may end that no later text changes.

        A special token may begin there, but not before. Whitespace at the end, or
        before a possible special token, is cut in one way if a letter follows, in
        another if a newline or a special token does: no word ends within it.
        """
        if not self._is_local:
            return 0
        known = self._held[: len(self._held) - self._count_started()]
        return len(known.rstrip())

    def _count_started(self) -> int:
        """The length of the longest tail that may become a special token."""
        longest = min(self._longest_start, len(self._held))
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if self._held[-n:] in self._starts), 0)


def _is_starter(character: str) -> bool:
    """Whether NFC moves nothing that follows to before this character.

    A mark lets later marks pass: in "e", dot below, acute, the acute joins the "e".
    """
    if unicodedata.category(character) == "Cn":
        return False  # the tokenizers library may know a newer Unicode than Python
    first = unicodedata.normalize("NFD", character)[0]  # some are two marks in one
    return unicodedata.combining(first) == 0
