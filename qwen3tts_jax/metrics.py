"""Figures of speech from texts, waves, vectors and codes, and how sure they are.

Nothing here hears or reads: texts come from a recogniser, vectors from a speaker model.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import jax
import numpy as np

from qwen3tts_jax import runtime
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.audio import mel as log_mels

UNSPACED = frozenset(("zh", "ja", "chinese", "japanese"))  # words have no spaces
APOSTROPHES = str.maketrans("’‘ʼ＇`´", "''''''")
LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
KEPT = ("L", "M", "N")  # Unicode's letters, marks and numbers

# What seed-tts-eval takes out: string.punctuation without the apostrophe, and
# zhon.hanzi.punctuation, which has the curly apostrophes.
SEED_ASCII = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'
SEED_HANZI = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
)
SEED_DROPPED = str.maketrans("", "", SEED_ASCII + SEED_HANZI)

LEVEL_HOP = 0.01  # seconds
SPEECH_RANGE = 40.0  # dB below the loudest 10 ms: what is quieter is no speech
MEL_BUCKETS = tuple(log_mels.HOP * 2**n for n in range(5, 16))  # samples
CONFIDENCE = 0.95
DRAWS = 1000  # of the bootstrap


# ------------------------------------------------------------------------- texts


def normalize(text: str) -> str:
    """A text as its words are compared: lower case, no punctuation, single spaces.

    NFKC and casefold; an apostrophe is kept inside a word ("l'heure", however it is
    curled), every other sign that is no letter, mark or digit becomes a space, so that
    "call-back" is two words.  Accents count.  Numbers are not spelled out: "19" is not
    "nineteen", as in seed-tts-eval.
    """
    text = unicodedata.normalize("NFKC", text.translate(APOSTROPHES)).casefold()
    text = unicodedata.normalize("NFKC", text)
    kept = (c if c == "'" or unicodedata.category(c)[0] in KEPT else " " for c in text)
    return " ".join(LOOSE_APOSTROPHE.sub(" ", "".join(kept)).split())


def seed_tts_normalize(text: str, language: str) -> str:
    """A text as seed-tts-eval compares it, for figures beside published ones.

    Punctuation goes without leaving a space ("call-back" is "callback"), curly
    apostrophes too; case is lowered in English only.

    Source: BytedanceSpeech/seed-tts-eval, run_wer.py (its published sets are en, zh).
    """
    text = text.translate(SEED_DROPPED)
    return text.lower() if language in ("en", "english") else text


def tokens(normalized: str, language: str) -> list[str]:
    """What errors are counted in: words; in Chinese and Japanese characters.

    language: ISO 639-1 or its English name, lower case.
    """
    words = normalized.split()
    return list("".join(words)) if language in UNSPACED else words


@dataclasses.dataclass(frozen=True)
class Edits:
    """What makes the hypothesis of the reference.

    Attributes:
        substitutions, deletions, insertions: counts.
        length: tokens of the reference.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0

    @property
    def count(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits for each token of the reference; can be more than 1.

        Of an empty reference: 1 if anything was heard, else 0.
        """
        return self.count / self.length if self.length else float(self.count > 0)

    def __add__(self, other: "Edits") -> "Edits":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Edits(*(a + b for a, b in pairs))


def edits(reference: Sequence, hypothesis: Sequence) -> Edits:
    """The fewest edits from one sequence of tokens to another (Levenshtein).

    Of several ways with equally many edits the one that keeps most tokens counts: a
    word left out here and one put in there are not two wrong words.
    """
    a, b = _numbered(reference, hypothesis)
    # One cost holds both: edits in its high part, substitutions in its low part.
    unit = len(a) + len(b) + 1
    row = places = unit * np.arange(len(b) + 1, dtype=np.int64)
    for i, token in enumerate(a, 1):
        kept = row[:-1] + np.where(b == token, 0, unit + 1)
        step = np.minimum(row[1:] + unit, kept)
        row = np.concatenate([[i * unit], step])
        # an insertion costs a unit more than the place before: a running minimum
        row = np.minimum.accumulate(row - places) + places
    total, substitutions = divmod(int(row[-1]), unit)
    deletions = (total - substitutions + len(a) - len(b)) // 2
    insertions = total - substitutions - deletions
    return Edits(substitutions, deletions, insertions, len(a))


def _numbered(*sequences: Sequence) -> list[np.ndarray]:
    numbers: dict = {}
    return [
        np.array([numbers.setdefault(t, len(numbers)) for t in s], np.int64)
        for s in sequences
    ]


def word_edits(reference: str, hypothesis: str, language: str) -> Edits:
    """Edits between two texts in `tokens`, after `normalize`; their rate is the WER."""
    both = (reference, hypothesis)
    return edits(*(tokens(normalize(text), language) for text in both))


def character_edits(reference: str, hypothesis: str) -> Edits:
    """Edits between two texts in characters, spaces left out; their rate is the CER."""
    both = (reference, hypothesis)
    return edits(*(normalize(text).replace(" ", "") for text in both))


def pooled(found: Sequence[Edits]) -> Edits:
    """All edits as if of one long text."""
    return sum(found, Edits())


def macro(found: Sequence[Edits]) -> float:
    """The mean of the rates, each text counting the same, as in seed-tts-eval."""
    return float(np.mean([one.rate for one in found]))


# ------------------------------------------------------------------------- sound


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors, float [D]; of speaker vectors: how alike voices are.

    Raises: ValueError for vectors of different widths or without a direction.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norm = np.linalg.norm(a) * np.linalg.norm(b) if a.shape == b.shape else 0.0
    if not (a.ndim == 1 and np.isfinite(norm) and norm > 0):
        raise ValueError(
            f"got vectors of shapes {list(a.shape)} and {list(b.shape)} with a product "
            f"of norms {norm}, expected two finite [D], neither zero; look at the waves"
        )
    return float(a @ b / norm)


def mel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean |difference| of two log-mel spectrograms, in nepers (1 is 8.7 dB).

    a, b: float [W], 24 kHz, in time with each other; the longer one is cut.
    Raises: ValueError for less than one frame of 256 samples.
    """
    length = min(len(a), len(b))
    if length < log_mels.HOP:
        raise ValueError(
            f"got waves of {len(a)} and {len(b)} samples, expected at least "
            f"{log_mels.HOP}; give some sound"
        )
    size = runtime.bucket(length, MEL_BUCKETS)
    both = np.stack([np.pad(w[:length], (0, size - length)) for w in (a, b)])
    mel = np.asarray(_log_mel(both.astype(np.float32), np.int32([length, length])))
    frames = length // log_mels.HOP
    return float(np.abs(mel[0, :frames] - mel[1, :frames]).mean())


_log_mel = jax.jit(log_mels.log_mel)


def speech_seconds(wave: np.ndarray, rate: int = audio_io.SAMPLE_RATE) -> float:
    """From the first to the last 10 ms that are within 40 dB of the loudest, seconds.

    wave: float [W]; 0 for silence.
    """
    hop = round(rate * LEVEL_HOP)
    padded = np.pad(wave.astype(np.float64), (0, -len(wave) % hop))
    power = np.square(padded).reshape(-1, hop).mean(axis=1)
    loud = np.flatnonzero(power > power.max(initial=0) * 10 ** (-SPEECH_RANGE / 10))
    return (loud[-1] - loud[0] + 1) * hop / rate if len(loud) else 0.0


def speaking_rate(texts: Sequence[str], seconds: Sequence[float]) -> float:
    """Characters a second, spaces and punctuation left out, over all texts.

    seconds: of speech in each, see `speech_seconds`.  Two rates make a ratio only in
    one language.
    Raises: ValueError for no speech at all.
    """
    if not sum(seconds) > 0:
        raise ValueError(
            f"got {sum(seconds)} s of speech for {len(texts)} texts, expected more "
            "than 0; look at the waves"
        )
    characters = sum(len(normalize(text).replace(" ", "")) for text in texts)
    return characters / float(sum(seconds))


def real_time_factor(compute_seconds: float, samples: int, rate: int) -> float:
    """Seconds of work for each second of sound (RTF); below 1 is real time."""
    return compute_seconds * rate / samples


# ------------------------------------------------------------------------- codes


@dataclasses.dataclass(frozen=True)
class CodebookUse:
    """How a codec uses its codebooks, float [Q] each.

    Attributes:
        used: share of the entries that occur.
        perplexity: exp of the entropy: so many entries, equally often, say as much.
        chance: share that as many uniform draws would find on average; with few frames
            no codec can show more.
    """

    used: np.ndarray
    perplexity: np.ndarray
    chance: float


def codebook_use(codes: np.ndarray, size: int) -> CodebookUse:
    """Of codes int [T, Q] below `size`, the entries of a codebook."""
    counts = np.stack([np.bincount(c, minlength=size) for c in np.asarray(codes).T])
    share = counts / len(codes)  # [Q, V]
    entropy = -np.sum(share * np.log(np.where(counts, share, 1)), axis=1)
    chance = 1 - (1 - 1 / size) ** len(codes)
    return CodebookUse((counts > 0).mean(axis=1), np.exp(entropy), chance)


# -------------------------------------------------------------------- how sure


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean with its standard error (nan of one value) and the number of values."""

    value: float
    error: float
    n: int


def mean(values: Sequence[float]) -> Mean:
    """Raises: ValueError for no values."""
    if not len(values):
        raise ValueError("got no values, expected at least 1; measure something")
    n = len(values)
    error = np.std(values, ddof=1) / n**0.5 if n > 1 else np.nan
    return Mean(float(np.mean(values)), float(error), n)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int
) -> tuple[float, float]:
    """95 % bootstrap interval of sum(numerators) / sum(denominators).

    Items are drawn with replacement, both numbers of an item together: for a pooled WER
    edits and lengths of utterances; for the difference of two systems on the same
    utterances the differences of their edits.
    """
    parts = np.asarray([numerators, denominators], np.float64)
    n = parts.shape[1]
    draws = np.random.default_rng(seed).integers(0, n, (DRAWS, n))
    sums = parts[:, draws].sum(axis=2)  # [2, DRAWS]
    ratios = sums[0] / np.maximum(sums[1], np.finfo(np.float64).tiny)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)
