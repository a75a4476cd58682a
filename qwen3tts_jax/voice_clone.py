"""Voices to clone: recordings analysed once, used often."""

import dataclasses

import jax
import numpy as np

from qwen3tts_jax import audio, placement
from qwen3tts_jax import speaker_encoder as speaker_encoders
from qwen3tts_jax import speech_tokenizer as speech_tokenizers
from qwen3tts_jax.tokenizer_12hz import decoder as decoders

MEL_BUCKETS = tuple(audio.HOP * 2**n for n in range(5, 16))  # samples


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
