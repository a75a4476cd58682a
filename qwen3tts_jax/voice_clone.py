"""Voices to clone: recordings analysed once, used often."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from qwen3tts_jax import audio, hf, placement
from qwen3tts_jax import config as configs
from qwen3tts_jax import speaker_encoder as speaker_encoders
from qwen3tts_jax import speech_tokenizer as speech_tokenizers
from qwen3tts_jax.tokenizer_12hz import decoder as decoders

MEL_BUCKETS = tuple(audio.HOP * 2**n for n in range(5, 16))  # samples
DEFAULT = "default"  # metadata of a voices file


@dataclasses.dataclass(frozen=True)
class ReferenceState:
    """The codec decoder after a reference.  codes: int32 [T, 16], the reference."""

    codes: np.ndarray
    state: decoders.DecoderState


@dataclasses.dataclass
class VoiceClonePromptItem:
    """A voice to clone, as the official class.

    Attributes:
        ref_code: int [T, 16], None in x-vector mode.
        ref_spk_embedding: float [D].
        x_vector_only_mode, icl_mode: one of them is True.
        ref_text: what the recording says; needed in ICL mode.
        reference_state: beyond the official fields, see `codec_state`.
    """

    ref_code: np.ndarray | None
    ref_spk_embedding: np.ndarray
    x_vector_only_mode: bool
    icl_mode: bool
    ref_text: str | None = None
    reference_state: ReferenceState | None = None


@dataclasses.dataclass(frozen=True)
class Voices:
    """The named voices of a Base checkpoint; official ones have none.

    They are a file of our own beside the weights, voices.safetensors: for each name an
    x-vector, as the speaker encoder makes it.  The official package speaks with them
    too, as the `ref_spk_embedding` of a VoiceClonePromptItem.

    Attributes:
        vectors: name in lower case -> float32 [D].
        default: the name that is taken where none is given.
    """

    vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    default: str = ""

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
        return VoiceClonePromptItem(None, self.vectors[wanted], True, False)


def read_voices(directory: Path, config: configs.Qwen3TTSConfig) -> Voices:
    """The named voices of a checkpoint directory; none where it has no such file.

    Raises: ValueError for a file that is damaged or of another model.
    """
    path, shape = Path(directory) / hf.VOICES, (config.talker.transformer.dim,)
    if config.variant != "base" or not path.is_file():
        return Voices()
    try:
        with safetensors.safe_open(path, "numpy") as file:
            vectors = {name: file.get_tensor(name) for name in file.keys()}
            default = (file.metadata() or {}).get(DEFAULT)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    bad = [
        f"{name} {value.shape}"
        for name, value in vectors.items()
        if value.shape != shape or not np.isfinite(value).all()
    ]
    if bad or default not in vectors:
        raise ValueError(
            f"got {path} with {', '.join(bad) or f'the default {default!r}'}, expected "
            f"vectors of shape {shape} and one of them as the default; take the file "
            "that belongs to this checkpoint"
        )
    return Voices(vectors, default)


def write_voices(directory: Path, voices: Voices) -> None:
    """Write named voices beside the weights of a Base checkpoint."""
    vectors = {name: np.float32(value) for name, value in voices.vectors.items()}
    assert voices.default in vectors and all(n == n.lower() for n in vectors)
    metadata = {"format": "pt", DEFAULT: voices.default}
    safetensors.numpy.save_file(vectors, Path(directory) / hf.VOICES, metadata)


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
    """Codes and speaker embeddings of recordings.

    Args:
        recordings: (float32 [W], rate) each; see `audio.read`.
        ref_texts, x_vector_only: of each recording.
    """
    codes = _codes(recordings, x_vector_only, speech_tokenizer)
    vectors = [embed_speaker(speaker_encoder, *r) for r in recordings]
    rows = zip(codes, vectors, x_vector_only, ref_texts)
    items = [VoiceClonePromptItem(c, v, bool(o), not o, t) for c, v, o, t in rows]
    for item in items:
        codec_state(item, speech_tokenizer)
    return items


def codec_state(
    item: VoiceClonePromptItem, speech_tokenizer: speech_tokenizers.Qwen3TTSTokenizer
) -> decoders.DecoderState | None:
    """The decoder's state after the reference of an ICL item, else None.

    Computed once and kept with the item; again if somebody has changed its codes.
    """
    if not item.icl_mode:
        return None
    codes, kept = np.asarray(item.ref_code), item.reference_state
    if kept is None or not np.array_equal(kept.codes, codes):
        kept = ReferenceState(codes.copy(), speech_tokenizer.state_after(codes))
        item.reference_state = kept
    return kept.state


def _codes(recordings, x_vector_only, tokenizer) -> list[np.ndarray | None]:
    """Recordings of one rate are encoded as one batch: so does the official code, and
    in a batch the last frame of a shorter one may differ."""
    if all(x_vector_only):
        return [None] * len(recordings)
    if len({rate for _, rate in recordings}) == 1:
        codes = tokenizer.encode(list(recordings)).audio_codes
    else:
        codes = [tokenizer.encode(r).audio_codes[0] for r in recordings]
    return [None if only else c for c, only in zip(codes, x_vector_only)]


def embed_speaker(
    encoder: speaker_encoders.SpeakerEncoder, wave: np.ndarray, rate: int
) -> np.ndarray:
    """The x-vector, float [D], of a wave, float32 [W] at `rate` Hz.

    Raises: ValueError for less than 1280 samples at 24 kHz.
    """
    wave = audio.load((wave, rate), rate=encoder.config.sample_rate)
    if len(wave) < audio.MIN_REFERENCE_SAMPLES:
        raise ValueError(
            f"got a reference of {len(wave)} samples at 24 kHz, expected at least "
            f"{audio.MIN_REFERENCE_SAMPLES} (0.06 s); give some seconds of speech"
        )
    size = placement.bucket(len(wave), MEL_BUCKETS)
    batch = np.pad(wave, (0, size - len(wave)))[None]
    with placement.exact():
        vector = _embed(encoder, batch, np.asarray([len(wave)], np.int32))
    return np.asarray(vector[0])


@jax.jit
def _embed(encoder, wave: jax.Array, length: jax.Array) -> jax.Array:
    dtype = encoder.project.kernel[...].dtype
    mel = audio.log_mel(wave, length).astype(dtype)
    return encoder(mel, length // audio.HOP)


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
    return [VoiceClonePromptItem(c, v, x, i, t) for c, v, (x, i), t in rows]


def warmup(
    seconds: float,
    *,
    speech_tokenizer: speech_tokenizers.Qwen3TTSTokenizer,
    speaker_encoder: speaker_encoders.SpeakerEncoder,
) -> None:
    """Compile what recordings of up to so many seconds need."""
    rate = speaker_encoder.config.sample_rate
    frames = seconds * rate / speech_tokenizer.config.samples_per_frame
    for count in speech_tokenizers.ENCODE_BUCKETS:
        silence = np.zeros(count * speech_tokenizer.config.samples_per_frame)
        embed_speaker(speaker_encoder, silence, rate)
        speech_tokenizer.encode(silence.astype(np.float32), sr=rate)
        if count >= frames:
            return
