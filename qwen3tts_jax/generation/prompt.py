"""Prompt layouts: what the talker reads before its first frame, as ids on two tracks.

Every position holds text ids, codec ids, or both, and their embeddings are added.  A
prompt is kept as ids (-1 where a track is silent), so that generation and training
share these lines; `generate.py` embeds them.

    position            text track                    codec track
    instruction         ids of the instruction        -
    role                <|im_start|> assistant \\n     -
    thinking            tts_pad ...                   think, think_bos, language,
                                                      think_eos; language Auto:
                                                      nothink, think_bos, think_eos
    speaker             tts_pad                       speaker id, or the x-vector
    last mark           tts_bos                       codec_pad
    then, streaming     first text id                 codec_bos; the rest of the text
                                                      and tts_eos trail, one a frame
    or, non-streaming   text ... tts_eos              codec_pad ...
                        tts_pad                       codec_bos; nothing trails
    or, ICL streaming   reference, text, tts_eos      codec_bos, reference frames; what
                                                      text is left trails, or tts_pad
                                                      fills up
    or, ICL             reference, text, tts_eos      codec_pad ...
    non-streaming       tts_pad ...                   codec_bos, reference frames

Source: arXiv 2601.15621 (ChatML, dual track); generate and generate_icl_prompt of
Qwen3TTSForConditionalGeneration.
"""

import dataclasses

import numpy as np

from qwen3tts_jax.config import tts

NONE = -1
AUTO = "auto"
CHINESE = "chinese"  # a dialect speaker replaces it, and Auto, by the dialect


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One utterance's prompt.

    Attributes:
        text: int32 [P], text ids or -1.
        codes: int32 [P, Q], codec ids or -1; marks use codebook 0 alone.
        speaker_at: the position that takes `speaker`, or -1.
        speaker: float32 [D], x-vector, or None.
        trailing: int32 [R], text ids added to the frames, one each; then tts_pad.
        text_tokens: how many ids the text to speak has (for the runaway guard).
    """

    text: np.ndarray
    codes: np.ndarray
    speaker_at: int
    speaker: np.ndarray | None
    trailing: np.ndarray
    text_tokens: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is cloned in context.  text: ids; codes: int [T, Q] of the recording."""

    text: list[int]
    codes: np.ndarray


class _Tracks:
    """Positions of a prompt, appended from left to right: text and codebook 0."""

    def __init__(self):
        self.text: list[int] = []
        self.first: list[int] = []

    def add(self, text: list[int], code: int) -> None:
        """A position for each of some text ids, all with one codec id."""
        self.text += text
        self.first += [code] * len(text)

    def codes(self, groups: int, frames: np.ndarray) -> np.ndarray:
        """Int32 [P, Q]: codebook 0, and at the end the frames int [T, Q]."""
        codes = np.full((len(self.first), groups), NONE, np.int32)
        codes[:, 0] = self.first
        codes[len(codes) - len(frames) :] = frames
        return codes


def build(
    config: tts.Qwen3TTSConfig,
    *,
    role: list[int],
    text: list[int],
    instruct: list[int] | None = None,
    language: str = AUTO,
    speaker: str | None = None,
    x_vector: np.ndarray | None = None,
    reference: Reference | None = None,
    non_streaming: bool,
    more: bool = False,
) -> Prompt:
    """Lay one prompt out.

    Args:
        role, text: from `TextTokenizer.role_and_text_ids`; text must not be empty.
        instruct: from `TextTokenizer.instruct_ids`, or None.
        language: a supported language or "auto", any case.
        speaker: a name of the checkpoint, any case, or None.
        x_vector: float [D], or None; excludes `speaker`.
        reference: for ICL cloning, or None.
        non_streaming: the whole text before the first frame.
        more: text is still to come, so that nothing ends it here; `text` holds at least
            `text_needed` ids.
    Raises: ValueError for an empty text, an unknown language or speaker.
    """
    if not text:
        raise ValueError("got a text without a single token; give something to say")
    if more:
        needed = text_needed(reference, non_streaming=non_streaming)
        assert needed is not None and len(text) >= needed
    c = config.talker
    tracks = _Tracks()
    tracks.add([*(instruct or []), *role], NONE)
    speaker_at = _add_marks(tracks, config, language, speaker, x_vector)
    if reference is None:
        trailing = _add_text(tracks, config, text, non_streaming)
        frames = np.zeros((0, c.code_groups), np.int32)
    else:
        trailing = _add_reference(tracks, config, text, reference, non_streaming)
        frames = np.asarray(reference.codes)
    if more:
        trailing = trailing[:-1]  # the end of the text, or the padding after it
    return Prompt(
        text=np.asarray(tracks.text, np.int32),
        codes=tracks.codes(c.code_groups, frames),
        speaker_at=speaker_at,
        speaker=None if x_vector is None else np.asarray(x_vector),
        trailing=np.asarray(trailing, np.int32),
        text_tokens=len(text),
    )


def text_needed(reference: Reference | None, *, non_streaming: bool) -> int | None:
    """How many text ids `build` needs before the rest may trail; None: all of them."""
    if non_streaming:
        return None
    if reference is None:
        return 1
    # a text position for each reference frame and codec_bos
    return max(1, len(reference.codes) + 1 - len(reference.text))


def _add_marks(tracks, config, language, speaker, x_vector) -> int:
    """Thinking marks, speaker and pad; returns where an x-vector goes, or -1."""
    c = config.talker
    tag = language_id(c, language, speaker)
    if tag is None:
        marks = [c.codec_nothink_id, c.codec_think_bos_id, c.codec_think_eos_id]
    else:
        marks = [c.codec_think_id, c.codec_think_bos_id, tag, c.codec_think_eos_id]
    speaker_at = NONE
    if x_vector is not None:
        speaker_at = len(tracks.text) + len(marks)
        marks.append(NONE)
    elif speaker:
        marks.append(speaker_id(c, speaker))
    for mark in marks:
        tracks.add([config.tts_pad_id], mark)
    tracks.add([config.tts_bos_id], c.codec_pad_id)
    return speaker_at


def _add_text(tracks, config, text, non_streaming) -> list[int]:
    """The text without a reference; returns what trails."""
    c = config.talker
    if not non_streaming:
        tracks.add(text[:1], c.codec_bos_id)
        return [*text[1:], config.tts_eos_id]
    tracks.add([*text, config.tts_eos_id], c.codec_pad_id)
    tracks.add([config.tts_pad_id], c.codec_bos_id)
    return [config.tts_pad_id]


def _add_reference(tracks, config, text, reference, non_streaming) -> list[int]:
    """Reference text and text against codec_bos and the reference's frames, which
    `codes` fills in; returns what trails."""
    c = config.talker
    text = [*reference.text, *text, config.tts_eos_id]
    if non_streaming:
        tracks.add(text, c.codec_pad_id)
        text = []
    size = 1 + len(reference.codes)
    beside = text[:size] + [config.tts_pad_id] * (size - len(text))
    tracks.add(beside[:1], c.codec_bos_id)
    tracks.add(beside[1:], NONE)
    return text[size:] or [config.tts_pad_id]


def language_id(
    config: tts.TalkerConfig, language: str, speaker: str | None
) -> int | None:
    """The codec id that names the language, or None for Auto.

    A dialect speaker's dialect takes the place of Chinese and of Auto, of no other.
    """
    name = language.lower()
    ids = dict(config.language_ids)
    dialect = dict(config.speaker_dialects).get((speaker or "").lower())
    if dialect and name in (CHINESE, AUTO):
        return ids[dialect]
    if name == AUTO:
        return None
    if name not in supported_languages(config):
        raise ValueError(
            f"got language {language!r}, expected one of "
            f"{', '.join(supported_languages(config))}"
        )
    return ids[name]


def speaker_id(config: tts.TalkerConfig, speaker: str) -> int:
    """The codec id of a speaker of the checkpoint, any case."""
    ids = dict(config.speaker_ids)
    if speaker.lower() not in ids:
        raise ValueError(
            f"got speaker {speaker!r}, expected one of "
            f"{', '.join(sorted(ids)) or 'none'}"
        )
    return ids[speaker.lower()]


def supported_languages(config: tts.TalkerConfig) -> list[str]:
    """Sorted names with "auto"; dialects belong to speakers and are not listed."""
    names = [name for name, _ in config.language_ids if "dialect" not in name]
    return sorted([AUTO, *names])


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts side by side, padded on the left; all arrays.

    Attributes:
        text: int32 [B, P]; codes: int32 [B, P, Q]; -1 where silent or padding.
        speaker: float32 [B, D]; speaker_at: int32 [B], -1 for none.
        pads: int32 [B], left-padding positions.
        trailing: int32 [B, R], filled up with tts_pad.
    """

    text: np.ndarray
    codes: np.ndarray
    speaker: np.ndarray
    speaker_at: np.ndarray
    pads: np.ndarray
    trailing: np.ndarray


def collate(
    config: tts.Qwen3TTSConfig, prompts: list[Prompt], *, length: int, trailing: int
) -> Batch:
    """Pad prompts to `length` positions (left) and `trailing` ids (right)."""
    size, groups = len(prompts), config.talker.code_groups
    text = np.full((size, length), NONE, np.int32)
    codes = np.full((size, length, groups), NONE, np.int32)
    speaker = np.zeros((size, config.talker.transformer.dim), np.float32)
    speaker_at = np.full(size, NONE, np.int32)
    pads = np.asarray([length - len(p.text) for p in prompts], np.int32)
    trail = np.full((size, trailing), config.tts_pad_id, np.int32)
    for row, (prompt, pad) in enumerate(zip(prompts, pads)):
        text[row, pad:], codes[row, pad:] = prompt.text, prompt.codes
        trail[row, : len(prompt.trailing)] = prompt.trailing
        if prompt.speaker is not None:
            speaker[row], speaker_at[row] = prompt.speaker, pad + prompt.speaker_at
    return Batch(text, codes, speaker, speaker_at, pads, trail)


def resume(prompt: Prompt, text: np.ndarray, codes: np.ndarray) -> Prompt:
    """A prompt that ends with frames that were made after it.

    text: int [T], what the text track added to them; codes: int [T, Q].
    """
    return dataclasses.replace(
        prompt,
        text=np.concatenate([prompt.text, np.asarray(text, np.int32)]),
        codes=np.concatenate([prompt.codes, np.asarray(codes, np.int32)]),
    )


def blank(config: tts.Qwen3TTSConfig, length: int) -> Prompt:
    """A prompt of `length` positions that says nothing, to warm programs up."""
    return Prompt(
        text=np.full(length, config.tts_pad_id, np.int32),
        codes=np.full((length, config.talker.code_groups), NONE, np.int32),
        speaker_at=NONE,
        speaker=None,
        trailing=np.zeros(0, np.int32),
        text_tokens=0,
    )


def chunk(
    config: tts.Qwen3TTSConfig, prompt: Prompt, *, start: int, size: int
) -> dict[str, np.ndarray]:
    """Positions from `start` on as one row, padded on the right to `size` of them.

    Returns: text, codes, speaker and speaker_at as in `Batch`, and length: int32 [1],
    the positions that are not padding.
    """
    text, codes = prompt.text[start : start + size], prompt.codes[start : start + size]
    pad = (0, size - len(text))
    speaker, speaker_at = np.zeros(config.talker.transformer.dim, np.float32), NONE
    if prompt.speaker is not None:
        speaker, speaker_at = prompt.speaker, prompt.speaker_at - start
    return dict(
        text=np.pad(text, pad, constant_values=NONE)[None],
        codes=np.pad(codes, (pad, (0, 0)), constant_values=NONE)[None],
        speaker=np.float32(speaker)[None],
        speaker_at=np.int32([speaker_at]),
        length=np.int32([len(text)]),
    )
