"""Real recordings with text that Debian packages hold.  Nothing is fetched here.

    apt-get download PACKAGE ... && for f in *.deb; do dpkg -x "$f" ROOT; done

asterisk: prompts of a telephone system, one studio voice for each of five languages,
    16 kHz G.722 (CC-BY-SA-3.0 and CC-BY-3.0, see each package's copyright file).
tuxpaint: one or two words each, read by volunteers at home in many languages, 44.1 kHz
    (GPL-2).  Who speaks is not said, so that no clip has a speaker.
fillets: acted dialogue of a game, Czech and Dutch, the speaker being the character; two
    characters may share an actor, and some voices have effects on them (GPL-2).
"""

import gzip
import re
from collections.abc import Iterable
from pathlib import Path

from data.preparation import clip

PACKAGES = {  # source -> packages to unpack; {} is a language
    "asterisk": ("asterisk-core-sounds-{}", "asterisk-core-sounds-{}-g722"),
    "tuxpaint": ("tuxpaint-stamps-default",),
    "fillets": ("fillets-ng-data", "fillets-ng-data-{}"),
}
ASTERISK_VOICES = dict(
    en="en_US_f_Allison",
    es="es_MX_f_Allison",
    fr="fr_CA_f_June",
    it="it_IT_m_Carlo",
    ru="ru_RU_f_IvrvoiceRU",
)
FILLETS = ("cs", "nl")
TUXPAINT = tuple("be bg ca da el en es fr lt nl pt_BR ro ru".split())
ALL = dict(asterisk=tuple(ASTERISK_VOICES), tuxpaint=TUXPAINT, fillets=FILLETS)

# A bracket in a transcript is mostly a remark, "[sound of monkeys screaming]", or a
# word of the script that the voice left out, "Il [suo] messaggio".  In these prompts
# the words in brackets are spoken: Whisper base hears every one of them.
SPOKEN = {
    ("fr", "priv-callee-options"),
    ("fr", "screen-callee-options"),
    ("ru", "vm-review-nonurgent"),
}
REMARK = re.compile(r"\[([^\]]*)\]|\(([^)]*)\)|<([^>]*)>")
# "sar? esattamente": an accented letter was lost.  A question goes on with a capital.
LOST_LETTER = re.compile(r"\w\? ?[a-zà-ÿ]|\ufffd")
DIALOG = re.compile(
    r'dialogId\("(?P<id>[^"]+)",\s*"(?P<font>[^"]*)",\s*"(?P<english>(?:[^"\\]|\\.)*)"\)'
    r'\s*(?:dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\))?'
)


def find(
    kind: str, root: Path, languages: tuple, names: dict[str, str]
) -> list[clip.Clip]:
    """Clips of one source, in a fixed order.

    Args:
        root: where the packages are unpacked: ROOT, ROOT/usr or ROOT/usr/share.
        languages: as ISO 639-1, each must be there; () for all that are there.
        names: code -> what the record calls the language.
    Raises: ValueError for languages that the source lacks; FileNotFoundError that says
        which packages to unpack.
    """
    asked = tuple(code for c in languages for code in ALL[kind] if code[:2] == c[:2])
    if unknown := {c for c in languages if c[:2] not in {code[:2] for code in asked}}:
        raise ValueError(
            f"got languages {', '.join(sorted(unknown))}, expected some of "
            f"{', '.join(ALL[kind])}, which {kind} has"
        )
    wanted = asked or ALL[kind]
    share = next(
        (p for p in (root / "usr/share", root / "share", root) if _has(kind, p)), None
    )
    if share is None:
        raise FileNotFoundError(_how_to(kind, root, wanted))
    reader = dict(asterisk=asterisk, tuxpaint=tuxpaint, fillets=fillets)[kind]
    clips = []
    for code in wanted:
        found = list(reader(share, code, names[code[:2]]))
        if asked and not found:
            raise FileNotFoundError(_how_to(kind, root, (code,)))
        clips += found
    return clips


def packages(kind: str, languages: Iterable[str]) -> list[str]:
    """Names of the Debian packages that hold a source."""
    found = [p.format(code) for code in languages for p in PACKAGES[kind]]
    return list(dict.fromkeys(found))


def _has(kind: str, share: Path) -> bool:
    return (share / _folder(kind)).is_dir()


def _folder(kind: str) -> str:
    folders = dict(asterisk="asterisk/sounds", tuxpaint="tuxpaint/stamps")
    return folders.get(kind, "games/fillets-ng")


def _how_to(kind: str, root: Path, languages: Iterable[str]) -> str:
    needed = " ".join(packages(kind, languages))
    place = str(root) if str(root) not in ("", ".") else "DIR"
    return (
        f"the recordings of {kind} are not under {str(root)!r}; on Debian do\n"
        f"  apt-get download {needed}\n"
        f'  for f in *.deb; do dpkg -x "$f" {place}; done\n'
        f"and give --root {place}"
    )


# ---------------------------------------------------------------------- asterisk


def asterisk(share: Path, code: str, language: str) -> Iterable[clip.Clip]:
    """Prompts; those that the listing leaves out have no text."""
    voice = ASTERISK_VOICES[code]
    base = share / "asterisk/sounds" / voice
    listing = share / f"doc/asterisk-core-sounds-{code}" / f"core-sounds-{code}.txt.gz"
    if not (base.is_dir() and listing.is_file()):
        return
    texts = _transcripts(listing)
    for path in sorted(base.rglob("*.g722")):
        key = path.relative_to(base).with_suffix("").as_posix()
        text, problem = spoken_text(texts.get(key, ""), code=code, key=key)
        yield clip.Clip(
            id=f"asterisk/{code}/{key}",
            audio=str(path),
            text=text,
            language=language,
            speaker=f"asterisk/{voice}",
            source=f"asterisk/{code}",
            problem=problem,
        )


def _transcripts(path: Path) -> dict[str, str]:
    """key -> text of "key: text" lines; comments start with a semicolon."""
    texts = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines():
        key, colon, text = line.partition(":")
        if colon and not key.lstrip().startswith(";"):
            texts[key.strip()] = text.strip()
    return texts


def spoken_text(text: str, *, code: str, key: str) -> tuple[str, str]:
    """The words of a transcript that are spoken, and why it cannot be used, or "".

    A bracket around a sign alone explains a spoken word, "at [@]", and is left out.
    """
    problem = ""
    for match in REMARK.finditer(text):
        words = next(group for group in match.groups() if group is not None)
        if (code, key) in SPOKEN:
            text = text.replace(match[0], words)
        elif re.search(r"\w", words):
            problem = "remark"
        else:
            text = text.replace(match[0], " ")
    if LOST_LETTER.search(text):
        problem = "lost_letter"
    return " ".join(text.split()), problem


# ---------------------------------------------------------------------- tuxpaint


def tuxpaint(share: Path, code: str, language: str) -> Iterable[clip.Clip]:
    """NAME_desc_XX.ogg with the line "XX.utf8=..." of NAME.txt; English: its first."""
    end = "_desc.ogg" if code == "en" else f"_desc_{code}.ogg"
    base = share / _folder("tuxpaint")
    for path in sorted(base.rglob(f"*{end}")):
        listing = path.with_name(path.name.removesuffix(end) + ".txt")
        if listing.is_file():
            lines = listing.read_text("utf-8", "replace").splitlines() or [""]
            texts = dict(line.split("=", 1) for line in lines[1:] if "=" in line)
            text = lines[0] if code == "en" else texts.get(f"{code.lower()}.utf8", "")
            yield clip.Clip(
                id=f"tuxpaint/{path.relative_to(base).with_suffix('').as_posix()}",
                audio=str(path),
                text=" ".join(text.split()),
                language=language,
                source=f"tuxpaint/{code}",
            )


# ----------------------------------------------------------------------- fillets


def fillets(share: Path, code: str, language: str) -> Iterable[clip.Clip]:
    """sound/LEVEL/XX/ID.ogg with dialogId(ID, character, ...) dialogStr(text)."""
    base = share / _folder("fillets")
    for script in sorted(base.glob(f"script/*/dialogs_{code}.lua")):
        level = script.parent.name
        lines = {m["id"]: m for m in DIALOG.finditer(script.read_text("utf-8"))}
        for path in sorted((base / "sound" / level / code).glob("*.ogg")):
            line = lines.get(path.stem, dict(text="", font=""))
            text = re.sub(r"\\(.)", r"\1", line["text"] or "")
            yield clip.Clip(
                id=f"fillets/{code}/{level}/{path.stem}",
                audio=str(path),
                text=" ".join(text.split()),
                language=language,
                speaker=f"fillets/{code}/{line['font']}" if line["font"] else "",
                source=f"fillets/{code}",
            )
