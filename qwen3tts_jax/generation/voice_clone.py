"""Voices to clone: recordings analysed once, used often."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from qwen3tts_jax import speech_tokenizer as speech_tokenizers
from qwen3tts_jax.checkpoints import hub
from qwen3tts_jax.config import tts
from qwen3tts_jax.models import speaker_encoder as speaker_encoders

DEFAULT = "default"  # metadata of a voices file


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderVoice:
    """Whose voice a 25Hz codec decodes codes in.

    Attributes:
        xvector: float32 [X], of another model than the talker's speaker embedding.
        ref_mel: float32 [M, 80].
    """

    xvector: np.ndarray
    ref_mel: np.ndarray


@dataclasses.dataclass(frozen=True)
class ReferenceState:
    """The codec's decoder before it speaks in a voice.

    Attributes:
        made_from: arrays that it depends on: of the reference and of the voice.
        state: see `speech_tokenizer.voice_state`.
    """

    made_from: tuple[np.ndarray, ...]
    state: Any


@dataclasses.dataclass
class VoiceClonePromptItem:
    """A voice to clone, as the official class.

    Attributes:
        ref_code: int [T, 16], at 25 Hz [T]; None in x-vector mode.
        ref_spk_embedding: float [D].
        x_vector_only_mode, icl_mode: one of them is True.
        ref_text: what the recording says; needed in ICL mode.
        decoder_voice: beyond the official fields; needed at 25 Hz.
        reference_state: the same; see `codec_state`.
    """

    ref_code: np.ndarray | None
    ref_spk_embedding: np.ndarray
    x_vector_only_mode: bool
    icl_mode: bool
    ref_text: str | None = None
    decoder_voice: DecoderVoice | None = None
    reference_state: ReferenceState | None = None


@dataclasses.dataclass(frozen=True)
class Voices:
    """The named voices that a checkpoint brings; official 12Hz ones bring none.

    They are a file of our own beside the weights, voices.safetensors: for each name of
    a Base checkpoint an x-vector, as the speaker encoder makes it.  The official
    package speaks with them too, as the `ref_spk_embedding` of a VoiceClonePromptItem.
    A 25Hz checkpoint has there what its codec needs of each voice, too: of CustomVoice
    that is all, since the talker knows its speakers.

    Attributes:
        vectors: name in lower case -> float32 [D]; of Base.
        default: the name that is taken where none is given; of Base.
        decoder: name in lower case -> DecoderVoice; at 25 Hz.
    """

    vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    default: str = ""
    decoder: Mapping[str, DecoderVoice] = dataclasses.field(default_factory=dict)

    @classmethod
    def chosen(cls, vectors: Mapping[str, np.ndarray], wanted: Sequence[str]):
        """Some of many voices, SPEAKER or NAME=SPEAKER each; the first is the default.

        Raises: ValueError for speakers that are not there, or a name that comes twice.
        """
        pairs = [entry.rpartition("=") for entry in wanted]
        speakers = {(name or speaker).lower(): speaker for name, _, speaker in pairs}
        missing = [speaker for _, _, speaker in pairs if speaker not in vectors]
        if missing or len(speakers) < len(pairs):
            raise ValueError(
                f"got voices {', '.join(wanted)}, expected names once each, of "
                f"{', '.join(sorted(vectors))}"
            )
        kept = {name: vectors[speaker] for name, speaker in speakers.items()}
        return cls(kept, next(iter(kept)))

    def item(self, name: str | None = None) -> VoiceClonePromptItem:
        """The voice of a name, any case.  Raises: ValueError for an unknown one."""
        wanted = self.default if name is None else name.lower()
        if wanted not in self.vectors:
            raise ValueError(
                f"got speaker {name!r}, expected one of "
                f"{', '.join(sorted(self.vectors)) or 'none'}"
            )
        return VoiceClonePromptItem(
            None,
            self.vectors[wanted],
            x_vector_only_mode=True,
            icl_mode=False,
            decoder_voice=self.decoder.get(wanted),
        )


XVECTOR, REF_MEL = "/xvector", "/ref_mel"  # behind a name: parts of a DecoderVoice


def read_voices(directory: Path, config: tts.Qwen3TTSConfig) -> Voices:
    """The named voices of a checkpoint directory; none where it has no such file.

    Raises:
        ValueError: a file that is damaged or of another model.
        FileNotFoundError: no file, where the codec needs one to speak.
    """
    path, base = Path(directory) / hub.VOICES, config.variant == "base"
    if not (base or config.single_codebook) or (base and not path.is_file()):
        return Voices()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; the 25Hz codec of a {config.variant} checkpoint finds "
            "there whose voice to speak in: download the whole repository"
        )
    try:
        with safetensors.safe_open(path, "numpy") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}
            default = (file.metadata() or {}).get(DEFAULT, "")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    vectors = {k: v for k, v in values.items() if not k.endswith((XVECTOR, REF_MEL))}
    names = set(vectors) if base else {name for name, _ in config.talker.speaker_ids}
    bad = _problems(values, names, vectors, config)
    if bad or (base and default not in vectors):
        shape = config.talker.transformer.dim
        raise ValueError(
            f"got {path} with {', '.join(bad) or f'the default {default!r}'}, expected "
            f"vectors of shape ({shape},) and one of them as the default (Base), and "
            f"at 25 Hz for each speaker {XVECTOR} and {REF_MEL}; take the file that "
            "belongs to this checkpoint"
        )
    decoder = {
        name: DecoderVoice(values[name + XVECTOR], values[name + REF_MEL])
        for name in (names if config.single_codebook else ())
    }
    return Voices(vectors if base else {}, default, decoder)


def _problems(values: dict, names: set[str], vectors: dict, config) -> list[str]:
    """What is wrong with the arrays of a voices file."""
    shape = (config.talker.transformer.dim,)
    bad = [f"{k} {v.shape}" for k, v in vectors.items() if v.shape != shape]
    bad += [f"NaN in {k}" for k, v in values.items() if not np.isfinite(v).all()]
    if config.single_codebook:
        needed = {name + part for name in names for part in (XVECTOR, REF_MEL)}
        bad += [f"no {key}" for key in sorted(needed - set(values))]
    return bad


def write_voices(directory: Path, voices: Voices) -> None:
    """Write named voices beside the weights of a checkpoint."""
    values = {name: np.float32(value) for name, value in voices.vectors.items()}
    assert not values or voices.default in values
    for name, voice in voices.decoder.items():
        values[name + XVECTOR] = np.float32(voice.xvector)
        values[name + REF_MEL] = np.float32(voice.ref_mel)
    assert all(name == name.lower() for name in values)
    metadata = {"format": "pt", DEFAULT: voices.default}
    safetensors.numpy.save_file(values, Path(directory) / hub.VOICES, metadata)


def check(
    voices: Voices,
    *,
    speaker: str | None = None,
    ref_audio=None,
    ref_text: str | None = None,
    x_vector_only_mode: bool | None = False,
) -> None:
    """Refuse what names no voice of a Base checkpoint; nothing is computed or read.

    Arguments: as of `Qwen3TTSModel.voice`.  Raises: ValueError.
    """
    if ref_audio is not None and speaker is not None:
        raise ValueError("got speaker and ref_audio, expected one of them: drop one")
    if ref_audio is None and (ref_text or x_vector_only_mode):
        raise ValueError(
            "got no ref_audio for ref_text or x_vector_only; give the recording"
        )
    if ref_audio is None and (speaker is not None or voices.vectors):
        voices.item(speaker)
    elif ref_audio is None or (isinstance(ref_audio, str) and not ref_audio):
        raise ValueError(
            "got no ref_audio; this model has no voices of its own and needs one to "
            "clone"
        )
    elif not (x_vector_only_mode or ref_text):
        raise ValueError(
            "got no ref_text; say what the recording says, or use x_vector_only"
        )


def analyse(
    recordings: list[tuple[np.ndarray, int]],
    ref_texts: list[str | None],
    x_vector_only: list[bool],
    *,
    speech_tokenizer: speech_tokenizers.Qwen3TTSTokenizer,
    speaker_encoder: speaker_encoders.SpeakerEncoder,
) -> list[VoiceClonePromptItem]:
    """Codes, speaker embeddings and, at 25 Hz, decoder voices of recordings.

    Args:
        recordings: (float32 [W], rate) each; see `audio.io.read`.
        ref_texts, x_vector_only: of each recording.
    """
    heard = _encoded(recordings, x_vector_only, speech_tokenizer)
    vectors = [speaker_encoders.embed_wave(speaker_encoder, *r) for r in recordings]
    rows = zip(heard, vectors, x_vector_only, ref_texts)
    items = [
        VoiceClonePromptItem(codes, v, bool(only), not only, said, voice)
        for (codes, voice), v, only, said in rows
    ]
    for item in items:
        codec_state(item, speech_tokenizer)
    return items


def codec_state(
    item: VoiceClonePromptItem, speech_tokenizer: speech_tokenizers.Qwen3TTSTokenizer
):
    """What the codec's decoder speaks an item's voice from; see `voice_state` there.

    Computed once and kept with the item; again if somebody has changed its codes or
    its voice.
    """
    codes = np.asarray(item.ref_code) if item.icl_mode else None
    voice, kept = item.decoder_voice, item.reference_state
    made_from = tuple(
        np.asarray(part)
        for part in (codes, voice and voice.xvector, voice and voice.ref_mel)
        if part is not None
    )
    if kept is None or not _same(kept.made_from, made_from):
        state = speech_tokenizer.voice_state(codes, voice)
        kept = ReferenceState(tuple(part.copy() for part in made_from), state)
        item.reference_state = kept
    return kept.state


def _same(arrays: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    if len(arrays) != len(others):
        return False
    return all(np.array_equal(a, b) for a, b in zip(arrays, others))


def _encoded(recordings, x_vector_only, tokenizer) -> list[tuple]:
    """(codes or None, DecoderVoice or None) of each recording.

    Recordings of one rate are encoded as one batch: so does the official code, and at
    12.5 Hz the last frame of a shorter one may differ in a batch.
    """
    if all(x_vector_only) and tokenizer.chunk is None:
        return [(None, None)] * len(recordings)
    if len({rate for _, rate in recordings}) == 1:
        batches = [tokenizer.encode(list(recordings))]
    else:
        batches = [tokenizer.encode(r) for r in recordings]
    codes = [codes for batch in batches for codes in batch.audio_codes]
    codes = [None if only else c for c, only in zip(codes, x_vector_only)]
    if tokenizer.chunk is None:
        return [(c, None) for c in codes]
    xvectors = [vector for batch in batches for vector in batch.xvectors]
    mels = [mel for batch in batches for mel in batch.ref_mels]
    return list(zip(codes, map(DecoderVoice, xvectors, mels)))


def items_of(voice) -> list[VoiceClonePromptItem]:
    """The items of a voice_clone_prompt: one, a list, or the official dict of lists."""
    if isinstance(voice, VoiceClonePromptItem):
        return [voice]
    if isinstance(voice, list):
        return voice
    missing = {"ref_spk_embedding", "x_vector_only_mode", "icl_mode"} - set(voice)
    if missing:
        raise ValueError(
            f"got a voice_clone_prompt without {', '.join(sorted(missing))}; make it "
            "with create_voice_clone_prompt"
        )
    count = len(voice["ref_spk_embedding"])
    codes = voice.get("ref_code") or [None] * count
    ref_texts = voice.get("ref_text") or [None] * count
    modes = zip(voice["x_vector_only_mode"], voice["icl_mode"])
    rows = zip(codes, voice["ref_spk_embedding"], modes, ref_texts)
    items = [VoiceClonePromptItem(c, v, x, i, t) for c, v, (x, i), t in rows]
    for item, decoder_voice in zip(items, voice.get("decoder_voice") or ()):
        item.decoder_voice = decoder_voice
    return items


def warmup(
    seconds: float,
    *,
    speech_tokenizer: speech_tokenizers.Qwen3TTSTokenizer,
    speaker_encoder: speaker_encoders.SpeakerEncoder,
) -> None:
    """Compile what recordings of up to so many seconds need."""
    rate = speaker_encoder.config.sample_rate
    for size in speech_tokenizer.reference_seconds():
        silence = np.zeros(round(size * rate), np.float32)
        speaker_encoders.embed_wave(speaker_encoder, silence, rate)
        speech_tokenizer.warmup_reference(silence, rate)
        if size >= seconds:
            return
