"""Texts to be read aloud: passages cut to sentences, tidied, sifted, and drawn.

What a filter does not know for certain to be plain spoken language is dropped: there is
far more text than is read.  The same packages and seed give the same texts.
"""

import collections
import dataclasses
import hashlib
import heapq
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from importlib import resources

from data.small_family import passages

UNSPACED = ("zh", "ja")  # languages that set no spaces between words
LETTERS = dict(  # an alphabet in lower case
    en="a-z",
    es="a-záéíóúüñ",
    fr="a-zàâäæçéèêëîïôöœùûüÿ",
    it="a-zàèéìíîòóù",
    pt="a-zàáâãçéêíóôõúü",
    zh="\u4e00-\u9fff",
    ja="\u3041-\u3096\u30a1-\u30fa\u30fc\u3005\u4e00-\u9fff",
)
ALONE = dict(  # words of one letter; any other stands for a key or a name
    en="aio", es="aeouy", fr="aàyôo", it="aeèoi", pt="aeoàéó"
)
MARKS = dict.fromkeys(passages.TRAINED, r",;:'\- ") | dict(zh="，、；：", ja="、")
KANA = re.compile("[\u3041-\u3096]")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Lengths in characters.

    Attributes:
        short: below it a text is a short one, of which few are drawn.
        least, most: of a sentence.
        paragraph_least, paragraph_most: of several sentences together.
        second: characters said in a second, as Kokoro speaks.
    """

    least: int
    short: int
    most: int
    paragraph_least: int
    paragraph_most: int
    second: float


SPACED_LIMITS = Limits(12, 28, 118, 170, 300, 15.0)
LIMITS = dict.fromkeys(passages.TRAINED, SPACED_LIMITS) | dict(
    zh=Limits(5, 9, 40, 48, 84, 4.6), ja=Limits(6, 12, 44, 60, 105, 6.5)
)
SHARES = dict(  # how often a source is drawn from, as long as it lasts
    wordnet=8, wesnoth=5, fillets=4, gnome=2, handbook=1, chatterbot=2
)
SHORT_EVERY = 9  # one text in so many is a short one
PARAGRAPH_EVERY = 12  # one text in so many is a paragraph: a quarter of the time
GRAM = 5  # words; held-out and training texts share no run of so many
GRAM_UNSPACED = 9  # characters

QUOTES = re.compile('[“”„«»"「」『』《》〈〉＂]')
APOSTROPHES = re.compile("[’‘`´]")
DOTS = re.compile(r"\s*(?:\.\.+|…+|⋯+)\s*")
DASHES = re.compile(r"\s*(?:—|–|--+|―|─)+\s*|\s+-\s+")
FULLWIDTH = str.maketrans(",;:?!", "，；：？！")
CUT = re.compile(r"(?<=[.!?])\s+(?=[¿¡]?[^\W\d_a-zà-öø-ÿ])")
CUT_UNSPACED = re.compile("(?<=[。？！])")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text to be read.

    Attributes:
        kind: sentence, short or paragraph.
    """

    language: str
    source: str
    kind: str
    text: str


def collect(
    found: Iterable[passages.Passage],
) -> tuple[list[Text], collections.Counter]:
    """Every usable text once, and how often what was dropped: (language, why) -> n."""
    sieve, dropped = Sieve(), collections.Counter()
    texts, seen = [], set()
    for passage in found:
        for text in cut(passage):
            reason = sieve.reason(text)
            key = plain(text.text)
            if not reason and key in seen:
                reason = "said before"
            if reason:
                dropped[text.language, reason] += 1
            else:
                seen.add(key)
                texts.append(text)
    return texts, dropped


def cut(passage: passages.Passage) -> Iterator[Text]:
    """The sentences of a passage, or the whole where it has a paragraph's length."""
    language, limits = passage.language, LIMITS[passage.language]
    text = tidy(passage.text, language)
    if limits.paragraph_least <= len(text) <= limits.paragraph_most:
        yield Text(language, passage.source, "paragraph", text)
        return
    for sentence in sentences(text, language):
        kind = "short" if len(sentence) < limits.short else "sentence"
        yield Text(language, passage.source, kind, sentence)


def tidy(text: str, language: str) -> str:
    """One line with the plainest marks that sound the same: no quotes, dashes, dots."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    text = APOSTROPHES.sub("'", QUOTES.sub("", text))
    if language in UNSPACED:
        pause, stop = ("，", "。") if language == "zh" else ("、", "。")
        text = DASHES.sub(pause, DOTS.sub(pause, text)).translate(FULLWIDTH)
        text = "".join(text.split())
        return re.sub(f"{pause}(?=[，、。？！；：])", "", _last(text, pause, stop))
    text = DASHES.sub(", ", DOTS.sub(", ", text))
    text = re.sub(r"\s+(?=[.,;:!?])", "", _last(text.strip(), ",", "."))
    return re.sub(r",(?=[.,;:!?])", "", text)


def _last(text: str, pause: str, stop: str) -> str:
    return text[: -len(pause)] + stop if text.endswith(pause) else text


def sentences(text: str, language: str) -> list[str]:
    """A tidy text cut behind each full stop, question and exclamation mark."""
    cutter = CUT_UNSPACED if language in UNSPACED else CUT
    return [part.strip() for part in cutter.split(text) if part.strip()]


def plain(text: str) -> str:
    """What makes two texts the same: letters and digits without case and width."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in text if character.isalnum())


def order(text: str, seed: int) -> int:
    """A number that depends on the text and the seed alone."""
    state = hashlib.blake2b(f"{seed}|{text}".encode(), digest_size=8)
    return int.from_bytes(state.digest())


# ------------------------------------------------------------------------- sifting


class Sieve:
    """Says why a text is not read."""

    def __init__(self):
        listed = resources.files("data.small_family") / "unsuitable.json"
        words = json.loads(listed.read_text("utf-8"))
        self._rude = {code: _rude(code, found) for code, found in words.items()}
        self._script = {code: _script(code) for code in passages.TRAINED}

    def reason(self, text: Text) -> str:
        """Why not, or ""."""
        limits, said = LIMITS[text.language], text.text
        longest = limits.paragraph_most if text.kind == "paragraph" else limits.most
        if not limits.least <= len(said) <= longest:
            return "length"
        if any(character.isdecimal() for character in said):
            return "digits"
        parts = sentences(said, text.language)
        if not all(self._script[text.language].fullmatch(part) for part in parts):
            return "script or marks"
        if any(len(part) > limits.most for part in parts):
            return "length"
        if self._rude[text.language].search(said):
            return "unsuitable"
        return _unspaced(said, text.language) or _words(parts, text.language)


def _script(language: str) -> re.Pattern:
    """One sentence: letters of the language, plain marks, one end."""
    letters, marks = LETTERS[language], MARKS[language]
    if language in UNSPACED:
        inside = f"(?:[{letters}]|[{marks}](?=[{letters}]))"
        return re.compile(f"[{letters}]{inside}*[。？！]")
    upper, either = letters.upper(), letters + letters.upper()
    inside = rf"(?:[{either}]|[{marks}](?![,;:]))"
    return re.compile(rf"[¿¡]?[{upper}]{inside}*[{either}][.!?]")


def _rude(language: str, listed: list[str]) -> re.Pattern:
    """Whole words, and those that begin with a word that has a star at its end."""
    if language in UNSPACED:
        return re.compile("|".join(listed))
    words = "|".join(word.replace("*", r"\w*") for word in listed)
    return re.compile(rf"\b(?:{words})\b", re.I)


def _unspaced(said: str, language: str) -> str:
    if language == "ja" and len(KANA.findall(said)) * 5 < len(said):
        return "script or marks"
    return ""


def _words(parts: list[str], language: str) -> str:
    """What single words tell: names, abbreviations, keys."""
    if language in UNSPACED:
        return ""
    names = 0
    for part in parts:
        words = re.findall(r"[^\s,;:.!?¿¡]+", part)
        if len(words) < 3:
            return "few words"
        for place, word in enumerate(words):
            if len(word) == 1 and word.lower() not in ALONE[language]:
                return "single letter"
            if word[:2].isalpha() and word[:2].isupper() and len(word) > 1:
                return "capitals"
            english_i = language == "en" and re.fullmatch(r"I(?:'\w+)?", word)
            names += place > 0 and word[0].isupper() and not english_i
    return "names" if names > len(parts) else ""


# ------------------------------------------------------------------------- drawing


def grams(text: str, language: str) -> set[str]:
    """Runs of GRAM words, or of GRAM_UNSPACED characters, without marks."""
    if language in UNSPACED:
        parts, size = list(plain(text)), GRAM_UNSPACED
    else:
        parts, size = _units(text, language), GRAM
    return {" ".join(parts[i : i + size]) for i in range(len(parts) - size + 1)}


def apart(texts: Iterable[Text], held_out: dict[str, list[str]]) -> list[Text]:
    """The texts that say nothing of what is held out.

    Args:
        held_out: language -> texts.
    """
    same = {plain(text) for kept in held_out.values() for text in kept}
    runs = {
        language: set().union(*(grams(text, language) for text in kept))
        for language, kept in held_out.items()
    }
    return [
        text
        for text in texts
        if plain(text.text) not in same
        and runs.get(text.language, set()).isdisjoint(grams(text.text, text.language))
    ]


def draw(texts: Iterable[Text], language: str, seed: int) -> Iterator[Text]:
    """The texts of a language in the order in which they are read.

    Sources take turns by SHARES; short texts and paragraphs come at their intervals, so
    that any first part of the order is mixed like the whole.  Within a source and kind
    those texts come first that say words which few before them have said.
    """
    mine = by_coverage((t for t in texts if t.language == language), seed)
    kinds = {
        kind: _turns([text for text in mine if text.kind == kind])
        for kind in ("sentence", "short", "paragraph")
    }
    number = 0
    while True:
        number += 1
        kind = "short" if number % SHORT_EVERY == 0 else "sentence"
        kind = "paragraph" if number % PARAGRAPH_EVERY == 0 else kind
        text = next(kinds[kind], None) or next(kinds["sentence"], None)
        if text is None:
            return
        yield text


def by_coverage(texts: Iterable[Text], seed: int) -> list[Text]:
    """The texts in an order that meets many different words early.

    A word is worth half as much each time it has been said; a text is worth the mean
    of its words, and the best comes next; a tie is broken by `order`.  Scores only
    fall, so that a score which is still the best after it was brought up to date needs
    no look at the others.
    """
    words = [(text, _units(text.text, text.language)) for text in texts]
    said: collections.Counter = collections.Counter()

    def worth(units: list[str]) -> float:
        return sum(0.5 ** said[unit] for unit in units) / max(len(units), 1)

    heap = [
        (-worth(units), order(text.text, seed), text.text, number)
        for number, (text, units) in enumerate(words)
    ]
    heapq.heapify(heap)
    found = []
    while heap:
        _, drawn, name, number = heap[0]
        text, units = words[number]
        now = (-worth(units), drawn, name, number)
        if now > heap[0]:
            heapq.heapreplace(heap, now)
            continue
        heapq.heappop(heap)
        said.update(units)
        found.append(text)
    return found


def _units(text: str, language: str) -> list[str]:
    """Words without marks; pairs of characters where words are not told apart."""
    if language in UNSPACED:
        characters = plain(text)
        return [a + b for a, b in zip(characters, characters[1:])]
    return [word for word in map(plain, text.split()) if word]


def _turns(texts: list[Text]) -> Iterator[Text]:
    """Sources by turns: next comes the one that lags most behind its share."""
    queues = collections.defaultdict(collections.deque)
    for text in texts:
        queues[text.source].append(text)
    taken = dict.fromkeys(queues, 0)
    while waiting := [source for source in queues if queues[source]]:
        source = min(waiting, key=lambda name: (taken[name] + 1) / SHARES[name])
        taken[source] += 1
        yield queues[source].popleft()
