"""Free texts in packages: passages as they stand there, not yet cut or chosen.

A passage is what belongs together: a dialogue line, a paragraph, one usage example.
LICENCES.md says of every package whose it is, under which licence, and what is taken.
"""

import dataclasses
import gettext
import html
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from data.preparation import debian_recordings as recordings

TRAINED = ("en", "zh", "ja", "es", "fr", "it", "pt")  # ISO 639-1, languages of a voice

WESNOTH_LOCALES = dict(
    zh="zh_CN", ja="ja", es="es", fr="fr", it="it", pt="pt_BR"
)  # English is what they translate
WESNOTH_STORIES = ("httt", "dw", "ei", "l", "dm", "ttb", "did", "tutorial", "units")
GNOME_LOCALES = dict(en="C", zh="zh_CN", ja="ja", es="es", fr="fr", it="it", pt="pt_BR")
HANDBOOK_LOCALES = dict(
    en="en-US", zh="zh-CN", ja="ja-JP", es="es-ES", fr="fr-FR", it="it-IT", pt="pt-BR"
)
CHATTERBOT_FOLDERS = dict(
    en="english",
    zh="chinese",
    ja="japanese",
    es="spanish",
    fr="french",
    it="italian",
    pt="portuguese",
)

MALLARD = "{http://projectmallard.org/1.0/}"
UNSPOKEN = ("code", "cmd", "file", "sys", "input", "var", "key", "keyseq", "screen")
PARAGRAPH = re.compile(r'<p class="para">(.*?)</p>|<div class="para">(.*?)</div>', re.S)
MACHINE_WORDS = re.compile(r"<(code|pre|img|em class|strong class|span class)")
TAG = re.compile(r"<[^>]*>")
EXAMPLE = re.compile(r'"([^"]+)"')
# Many examples are bits of phrases; those that begin like this are mostly sentences.
SENTENCE_START = re.compile(
    r"(he|she|it|they|we|i|you|the|his|her|its|their|our|my|your|this|that|these|those|"
    r"there|what|who|how|when|where|why|if|after|before|don't|let's|please)\b",
    re.I,
)
REPLY = re.compile(r"^(?:- - |  - )(.+)$", re.M)


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text that belongs together; source: the package's short name."""

    source: str
    language: str
    text: str


def read(share: Path, chatterbot: Path) -> Iterator[Passage]:
    """All passages of all sources, in a fixed order.

    Args:
        share: usr/share of the unpacked Debian packages.
        chatterbot: the folder data/ of the package chatterbot-corpus.
    """
    for language in TRAINED:
        for source, found in (
            ("wordnet", wordnet(share) if language == "en" else ()),
            ("wesnoth", wesnoth(share, language)),
            ("fillets", fillets(share, language)),
            ("gnome", gnome(share, language)),
            ("handbook", handbook(share, language)),
            ("chatterbot", dialogue(chatterbot, language)),
        ):
            for text in found:
                yield Passage(source, language, text)


def wordnet(share: Path) -> Iterator[str]:
    """Usage examples of English words: quoted in the gloss of each sense."""
    for part in ("adj", "adv", "noun", "verb"):
        senses = (share / "wordnet" / f"data.{part}").read_text("utf-8")
        for line in senses.splitlines():
            _, _, gloss = line.partition(" | ")
            for example in EXAMPLE.findall(gloss):
                text = example.strip(" ;,")
                if SENTENCE_START.match(text):
                    end = "" if text[-1] in ".!?" else "."
                    yield text[0].upper() + text[1:] + end


def wesnoth(share: Path, language: str) -> Iterator[str]:
    """Dialogue and descriptions of a fantasy game, from its translations."""
    locales = share / "games/wesnoth/1.16/locale"
    locale = WESNOTH_LOCALES.get(language, "fr")
    for story in WESNOTH_STORIES:
        path = locales / locale / "LC_MESSAGES" / f"wesnoth-{story}.mo"
        if not path.is_file():  # not every story is translated into every language
            continue
        with open(path, "rb") as file:
            messages = gettext.GNUTranslations(file)._catalog
        for english, said in messages.items():
            if isinstance(english, str) and english and said != english:
                # "context^text": two uses of one English text
                yield english.rpartition("^")[2] if language == "en" else said


def fillets(share: Path, language: str) -> Iterator[str]:
    """Dialogue of a puzzle game."""
    levels = share / "games/fillets-ng/script"
    for script in sorted(levels.glob(f"*/dialogs_{language}.lua")):
        for line in recordings.DIALOG.finditer(script.read_text("utf-8")):
            text = line["text"] or (line["english"] if language == "en" else "")
            if text:
                yield re.sub(r"\\(.)", r"\1", text)


def gnome(share: Path, language: str) -> Iterator[str]:
    """Paragraphs of the desktop's help, those without commands and keys."""
    pages = share / "help" / GNOME_LOCALES[language] / "gnome-help"
    for path in sorted(pages.glob("*.page")):
        for paragraph in ElementTree.parse(path).iter(f"{MALLARD}p"):
            inside = {child.tag.removeprefix(MALLARD) for child in paragraph.iter()}
            if not inside.intersection(UNSPOKEN):
                yield "".join(paragraph.itertext())


def handbook(share: Path, language: str) -> Iterator[str]:
    """Paragraphs of the Debian Administrator's Handbook without commands and names."""
    pages = share / "doc/debian-handbook/html" / HANDBOOK_LOCALES[language]
    for path in sorted(pages.glob("*.html")):
        for match in PARAGRAPH.finditer(path.read_text("utf-8")):
            inside = match[1] or match[2] or ""
            if not MACHINE_WORDS.search(inside):
                yield html.unescape(TAG.sub("", inside))


def dialogue(folder: Path, language: str) -> Iterator[str]:
    """Questions and answers written for chat programs."""
    for path in sorted((folder / CHATTERBOT_FOLDERS[language]).glob("*.yml")):
        for reply in REPLY.findall(path.read_text("utf-8")):
            yield reply.strip().strip("'\"")
