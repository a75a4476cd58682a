"""Packed rows: examples one behind the other, as arrays that a training step reads.

An example is a prompt as `prompt.py` lays it out, then its frames; nothing here knows a
layout.  A row of L positions, in-example position p of an example with P positions of
prompt and T frames:

    array       p < P                       p = P + t, a frame     left over
    text        prompt.text                 trailing[t], tts_pad   -1
    codes       prompt.codes                the frame              -1
    labels      -1; at P - 1 code 0 of      code 0 of frame t + 1; -1
                frame 0                     codec_eos after the last
    segment     1, 2, ... by example        the same               0
    position    p                           p                      0
    speaker_at  slot of the voice, or -1    -1                     -1

So the hidden state at a position names the frame at the next one, as in generation and
in `losses.teacher_forced`.  The predictor's labels are `codes[p + 1, 1:]` wherever
`labels[p]` is a code.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from qwen3tts_jax.audio import mel as log_mels
from qwen3tts_jax.config import tts
from qwen3tts_jax.generation import prompt
from qwen3tts_jax.text import tokenizer as text_tokenizer

NONE = prompt.NONE
MIN_MEL = 5  # frames; with fewer the speaker encoder cannot mirror, see audio/mel.py


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static sizes of packed rows.

    Attributes:
        length: positions a row, L.
        voices: the voices a row can hold, S.
        mel_frames: M, of a voice's mel, longer ones are cut to it; 0 where voices are
            x-vectors.
    """

    length: int
    voices: int = 1
    mel_frames: int = 0

    def __post_init__(self):
        if min(self.length, self.voices) < 1 or 0 < self.mel_frames < MIN_MEL:
            raise ValueError(
                f"got {self}, expected length and voices of at least 1 and mel_frames "
                f"of 0 or at least {MIN_MEL}"
            )


@dataclasses.dataclass(frozen=True)
class Example:
    """One utterance to learn.

    Attributes:
        prompt: what stands before its frames.
        codes: int [T, Q], its frames, T at least 1.
        voice: x-vector, float [D], or log-mel, float [M, 128], of what the prompt has
            at `speaker_at`; None without.
    """

    prompt: prompt.Prompt
    codes: np.ndarray
    voice: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompt.text) + len(self.codes)


def example(
    config: tts.Qwen3TTSConfig,
    codes: np.ndarray,
    *,
    role: list[int],
    text: list[int],
    instruct: list[int] | None = None,
    language: str = prompt.AUTO,
    speaker: str | None = None,
    voice: np.ndarray | None = None,
    reference: prompt.Reference | None = None,
    non_streaming: bool,
) -> Example:
    """Lay an utterance out for training; arguments and errors as in `prompt.build`.

    Args:
        codes: int [T, Q], its frames.
        voice: x-vector or log-mel of the speaker, see `Example`; excludes `speaker`.
    """
    # The mel's vector is made on the device; here it only takes its position.
    mark = voice if voice is None or voice.ndim == 1 else np.zeros(0, np.float32)
    built = prompt.build(
        config,
        role=role,
        text=text,
        instruct=instruct,
        language=language,
        speaker=speaker,
        x_vector=mark,
        reference=reference,
        non_streaming=non_streaming,
    )
    return Example(built, codes, voice)


def pack(
    config: tts.Qwen3TTSConfig, rows: Iterable[Sequence[Example]], shape: Shape
) -> dict[str, np.ndarray]:
    """Rows of examples as arrays.

    Returns:
        text, segment, position: int32 [B, L]; codes: int16 [B, L, Q]; labels,
        speaker_at: int16 [B, L]; and the voices: x_vector float32 [B, S, D], or mel
        float16 [B, S, M, 128] with mel_length int32 [B, S].  Empty slots are zero, with
        a mel_length of 5, which the speaker encoder can read.
    Raises: ValueError, see `fill`.
    """
    rows = list(rows)
    arrays = empty(config, len(rows), shape)
    for row, examples in enumerate(rows):
        fill(config, arrays, row, examples)
    return arrays


def empty(config: tts.Qwen3TTSConfig, rows: int, shape: Shape) -> dict[str, np.ndarray]:
    """Arrays as `pack` returns them, with nothing in them."""
    size, groups = (rows, shape.length), config.talker.code_groups
    arrays = dict(
        text=np.full(size, NONE, np.int32),
        codes=np.full((*size, groups), NONE, np.int16),
        labels=np.full(size, NONE, np.int16),
        segment=np.zeros(size, np.int32),
        position=np.zeros(size, np.int32),
        speaker_at=np.full(size, NONE, np.int16),
    )
    table = rows, shape.voices
    if shape.mel_frames:
        mel = (*table, shape.mel_frames, log_mels.MEL_BINS)
        arrays["mel"] = np.zeros(mel, np.float16)
        arrays["mel_length"] = np.full(table, MIN_MEL, np.int32)
    else:
        dim = config.talker.transformer.dim
        arrays["x_vector"] = np.zeros((*table, dim), np.float32)
    return arrays


def fill(
    config: tts.Qwen3TTSConfig,
    arrays: dict[str, np.ndarray],
    row: int,
    examples: Sequence[Example],
) -> None:
    """Write examples into an empty row.

    Raises: ValueError where they need more positions or voices than the row has, or a
        voice is of another kind or size than the arrays.
    """
    length, needed = arrays["text"].shape[1], sum(len(item) for item in examples)
    if needed > length:
        raise ValueError(
            f"got {len(examples)} examples of {needed} positions, expected at most the "
            f"{length} of a row; the plan is of another corpus or configuration: make "
            "the index again"
        )
    views = {name: array[row] for name, array in arrays.items()}
    start = voices = 0
    for number, item in enumerate(examples, 1):
        stop = start + len(item)
        _write_tracks(config, views, slice(start, stop), item)
        views["segment"][start:stop] = number
        views["position"][start:stop] = np.arange(stop - start)
        if item.voice is not None:
            views["speaker_at"][start + item.prompt.speaker_at] = voices
            _write_voice(views, voices, item.voice)
            voices += 1
        start = stop


def _write_tracks(config, views: dict, here: slice, item: Example) -> None:
    """Text, codes and labels of one example."""
    given, frames = len(item.prompt.text), len(item.codes)
    text, codes, labels = (views[name][here] for name in ("text", "codes", "labels"))
    text[:given], codes[:given] = item.prompt.text, item.prompt.codes
    trailing = item.prompt.trailing[:frames]
    text[given:] = config.tts_pad_id
    text[given : given + len(trailing)] = trailing
    codes[given:] = item.codes
    labels[given - 1 : -1] = item.codes[:, 0]
    labels[-1] = config.talker.codec_eos_id


def _write_voice(views: dict, slot: int, voice: np.ndarray) -> None:
    name = "mel" if "mel" in views else "x_vector"
    table = views[name]
    if slot >= len(table):
        raise ValueError(
            f"got a row with more than {len(table)} voices; raise `voices`, or train "
            "on longer utterances"
        )
    fits = voice.ndim == table.ndim - 1 and voice.shape[-1] == table.shape[-1]
    if not fits or (name == "mel" and len(voice) < MIN_MEL):
        raise ValueError(
            f"got a voice of shape {voice.shape}, expected {name} of "
            f"{table.shape[1:]}; prepare the corpus with what this checkpoint reads, "
            "or choose the other kind of voice"
        )
    if name == "mel":
        voice = voice[: table.shape[1]]
        views["mel_length"][slot] = len(voice)
        table[slot, : len(voice)] = voice
    else:
        table[slot] = voice


# ----------------------------------------------------------------- back to text


def describe(
    config: tts.Qwen3TTSConfig,
    tokenizer: text_tokenizer.TextTokenizer,
    arrays: dict[str, np.ndarray],
    row: int,
) -> str:
    """What a packed row says, for people: its examples, track beside track.

    Every line is a run of positions with one kind of thing on the codec track: a mark
    by its name, a voice, frames that are read (of a reference) or learned.
    """
    views = {name: array[row] for name, array in arrays.items()}
    lines = []
    for number in range(1, int(views["segment"].max()) + 1):
        here = views["segment"] == number
        one = {name: views[name][here] for name in _TRACKS}
        lines.append(f"example {number}: {here.sum()} positions")
        kinds = _kinds(config.talker, one)
        for kind, run in itertools.groupby(range(len(kinds)), kinds.__getitem__):
            run = list(run)
            said = _say(config, tokenizer, one["text"][run])
            lines.append(f"  {len(run):5} {kind:18} {said}".rstrip())
        if one["labels"][-1] == config.talker.codec_eos_id:
            lines.append("      1 learned end")
    return "\n".join(lines)


_TRACKS = ("text", "codes", "labels", "speaker_at")


def _kinds(config: tts.TalkerConfig, one: dict) -> list[str]:
    """What the codec track holds at each position of an example."""
    names = {
        getattr(config, f"codec_{name}_id"): name
        for name in ("pad", "bos", "think", "nothink", "think_bos", "think_eos")
    }
    names |= {number: f"language {name}" for name, number in config.language_ids}
    names |= {number: f"speaker {name}" for name, number in config.speaker_ids}
    kinds, labels = [], [NONE, *one["labels"].tolist()]
    for label, code, voice in zip(labels, one["codes"].tolist(), one["speaker_at"]):
        if code[1] != NONE:
            kinds.append("read frames" if label == NONE else "learned frames")
        elif voice != NONE:
            kinds.append(f"voice {voice}")
        else:
            kinds.append("-" if code[0] == NONE else names[code[0]])
    return kinds


def _say(config, tokenizer, ids: np.ndarray) -> str:
    """Text ids as text; padding at the end is counted."""
    ids = ids.tolist()
    while ids and ids[-1] == config.tts_pad_id:
        ids.pop()
    return repr(tokenizer.decode(ids)) if ids else ""
