"""Qwen3TTSModel and Qwen3TTSTokenizer: what a user holds.

Names, arguments and results are those of the official package, so that changing the
import line is enough.  Where the official code has a fault, this one does what was meant
and the method says so.
"""

import contextlib
import dataclasses
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3tts_jax import audio, code_predictor, generate, hf, prompt, sampling
from qwen3tts_jax import config as configs
from qwen3tts_jax import speaker_encoder as speaker_encoders
from qwen3tts_jax import talker as talkers
from qwen3tts_jax import text as texts
from qwen3tts_jax.tokenizer_12hz import decoder as decoders
from qwen3tts_jax.tokenizer_12hz import encoder as encoders

SPEECH_TOKENIZER = "speech_tokenizer"  # folder of the codec inside a TTS repository
ENCODE_BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
DECODE_CHUNK = 32  # frames decoded per program; a shorter rest takes SMALL_CHUNK
SMALL_CHUNK = 8
MEL_BUCKETS = tuple(audio.HOP * 2**n for n in range(5, 16))  # samples

AudioLike = Any  # path, URL, base64 text, or (array, rate)


# ------------------------------------------------------------ speech tokenizer


@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """audio_codes: list of int32 [T, 16], one per wave."""

    audio_codes: list[np.ndarray]


class Qwen3TTSTokenizer:
    """Qwen3-TTS-Tokenizer-12Hz: waves to codes and back."""

    def __init__(self, config, encoder, decoder, *, hf_config: dict, source: Path | None):
        self.config, self.encoder, self.decoder = config, encoder, decoder
        self._hf_config, self._source = hf_config, source

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype=None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
    ) -> "Qwen3TTSTokenizer":
        """Load an official directory or hub id.

        Args:
            dtype: None for float32, the released file's own; the official package lets a
                bfloat16 model make its codec bfloat16 too, which costs quality.
            device_map, attn_implementation, revision: see `Qwen3TTSModel`.
        """
        _check_attention(attn_implementation)
        path = hf.resolve(pretrained_model_name_or_path, revision=revision)
        hf_config = hf.read_json(path / "config.json")
        config = configs.Tokenizer12HzConfig.from_hf(hf_config)
        with _on(device_map):
            parts = hf.load(
                path, tokenizer_parts(config), dtype=_dtype(dtype, jnp.float32)
            )
        return cls(config, **parts, hf_config=hf_config, source=path)

    def encode(
        self, audios: Any, sr: int | None = None, return_dict: bool = True
    ) -> EncoderOutput | tuple:
        """Codes of one or several waves.

        Args:
            audios: a path, URL, base64 text, array (with `sr`) or a list of one kind;
                also (array, rate).  Any rate and any number of channels.
            sr: Hz, of arrays.
        Returns:
            EncoderOutput, or (audio_codes,) without `return_dict`.  A wave of W samples
            at 24 kHz makes ceil(W/1920) frames.

        As in the official package a batch is zero-padded to its longest wave and not
        masked: the last, partial frame of a shorter one may differ from what it gives
        alone, every other frame is the same.
        """
        many = isinstance(audios, list | tuple) and not _is_pair(audios)
        waves = [
            audio.load(self._with_rate(a, sr), rate=self.config.input_sample_rate)
            for a in (audios if many else [audios])
        ]
        codes = self._encode(waves) if waves else []
        return EncoderOutput(codes) if return_dict else (codes,)

    @staticmethod
    def _with_rate(source, sr):
        return (source, sr) if isinstance(source, np.ndarray) else source

    def _encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        hop = self.config.samples_per_frame
        longest = max(len(w) for w in waves)
        frames = generate.bucket(-(-longest // hop), ENCODE_BUCKETS)
        batch = np.zeros((len(waves), frames * hop), np.float32)
        for row, wave in zip(batch, waves):
            row[: len(wave)] = wave
        length = np.full(len(waves), longest, np.int32)
        with _exact():
            codes = _encode(self.encoder, batch, length, self.config.quantizers)
        return [c[: -(-len(w) // hop)] for c, w in zip(np.asarray(codes), waves)]

    def decode(self, encoded: Any) -> tuple[list[np.ndarray], int]:
        """Waves of codes.

        Args:
            encoded: what `encode` returned, {"audio_codes": ...}, a list of such dicts,
                or a list of int arrays [T, 16]; rows of -1 at the end are padding.
        Returns:
            (list of float32 [T*1920] in [-1, 1], 24000).

        Decoded with carried state, exactly as whole: the official package restarts every
        300 frames and departs from its own decoder after the first 300.
        """
        codes = [self._checked(c) for c in _code_list(encoded)]
        longest = max(len(c) for c in codes)
        batch = np.zeros((len(codes), longest, codes[0].shape[1]), np.int32)
        for row, c in zip(batch, codes):
            row[: len(c)] = c
        wave = np.concatenate(list(self._chunks(batch)), axis=1)
        hop = self.config.samples_per_frame
        waves = [w[: len(c) * hop] for w, c in zip(wave, codes)]
        return waves, self.config.output_sample_rate

    def _chunks(self, codes: np.ndarray):
        """Waves of successive chunks, the last one padded: causal, so harmless."""
        dtype = self.decoder.pre_conv.kernel[...].dtype
        state, start = self.decoder.init_state(len(codes), dtype), 0
        while start < codes.shape[1]:
            rest = codes.shape[1] - start
            size = SMALL_CHUNK if rest <= SMALL_CHUNK else DECODE_CHUNK
            chunk = codes[:, start : start + size]
            chunk = np.pad(chunk, ((0, 0), (0, size - chunk.shape[1]), (0, 0)))
            with _exact():
                wave, state = _decode_step(self.decoder, chunk, state)
            yield np.asarray(wave)
            start += size

    def _checked(self, codes) -> np.ndarray:
        codes = np.asarray(codes)
        groups, size = self.config.quantizers, self.config.decoder.codebook_size
        if codes.ndim != 2 or codes.shape[1] != groups:
            raise ValueError(f"got codes of shape {codes.shape}, expected [T, {groups}]")
        codes = codes[: int((codes[:, 0] > -1).sum())]
        if not len(codes):
            raise ValueError("got 0 frames of codes, expected at least 1")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"got codes of dtype {codes.dtype}, expected integers")
        if codes.min() < 0 or codes.max() >= size:
            raise ValueError(
                f"got codes from {codes.min()} to {codes.max()}, expected 0 to {size - 1}"
            )
        return codes

    def save_pretrained(self, save_directory: str | Path, *, dtype=None) -> None:
        """Write the official layout; the directory appears whole or not at all."""
        with hf.new_directory(Path(save_directory)) as out:
            self._save(out, dtype)

    def _save(self, out: Path, dtype) -> None:
        parts = tokenizer_parts(self.config)
        modules = dict(encoder=self.encoder, decoder=self.decoder)
        hf.save(out, {k: (modules[k], parts[k][1]) for k in parts}, dtype=dtype)
        hf.write_json(out / "config.json", self._hf_config)
        hf.copy_side_files(self._source, out)

    def get_model_type(self) -> str:
        return configs.TOKENIZER_12HZ

    def get_input_sample_rate(self) -> int:
        return self.config.input_sample_rate

    def get_output_sample_rate(self) -> int:
        return self.config.output_sample_rate

    def get_encode_downsample_rate(self) -> int:
        return self.config.samples_per_frame

    def get_decode_upsample_rate(self) -> int:
        return self.config.samples_per_frame


def _code_list(encoded: Any) -> Sequence:
    """The code arrays in any of the forms `decode` takes."""
    if hasattr(encoded, "audio_codes"):
        encoded = encoded.audio_codes
    elif isinstance(encoded, dict):
        encoded = encoded["audio_codes"]
    elif isinstance(encoded, list) and encoded and isinstance(encoded[0], dict):
        encoded = [e["audio_codes"] for e in encoded]
    if isinstance(encoded, np.ndarray | jax.Array) and encoded.ndim == 2:
        encoded = [encoded]
    if not len(encoded):
        raise ValueError("got no codes, expected a list of int arrays [T, 16]")
    return encoded


_encode = jax.jit(
    lambda encoder, wave, length, quantizers: encoder(wave, length, quantizers),
    static_argnums=3,
)
_decode_step = jax.jit(
    lambda decoder, codes, state: decoder.step(codes, state), donate_argnums=2
)
_embed_speaker = jax.jit(
    lambda encoder, wave, length, dtype: encoder(
        audio.log_mel(wave, length).astype(dtype), length // audio.HOP
    ),
    static_argnums=3,
)


# ------------------------------------------------------------------- the model


@dataclasses.dataclass
class VoiceClonePromptItem:
    """A voice to clone, as the official class.

    Attributes:
        ref_code: int [T, 16], None in x-vector mode.
        ref_spk_embedding: float [D].
        x_vector_only_mode, icl_mode: one of them is True.
        ref_text: what the recording says; needed in ICL mode.
    """

    ref_code: np.ndarray | None
    ref_spk_embedding: np.ndarray
    x_vector_only_mode: bool
    icl_mode: bool
    ref_text: str | None = None


@dataclasses.dataclass(frozen=True)
class Speech:
    """One utterance.  wave: float32 [W] at 24 kHz; codes: int32 [T, 16]; stop_reason:
    "eos", "max_frames" or "guard"."""

    wave: np.ndarray
    codes: np.ndarray
    stop_reason: str


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A prompt, and the reference frames to decode before its own (ICL) or None."""

    prompt: prompt.Prompt
    ref_code: np.ndarray | None = None


class Qwen3TTSModel:
    """A Qwen3-TTS 12Hz checkpoint: Base, CustomVoice or VoiceDesign.

    The `generate_*` methods return the official (waves, rate); keyword arguments beyond
    those named are the generation options of `sampling.Options` (do_sample, top_k, top_p,
    temperature, repetition_penalty, subtalker_dosample, subtalker_top_k, subtalker_top_p,
    subtalker_temperature, max_new_tokens), any other is a TypeError.
    """

    def __init__(self, config, parts: dict, *, tokenizer, speech_tokenizer, **files):
        self.config = config
        self.language_model = generate.LanguageModel(
            parts["talker"], parts["code_predictor"]
        )
        self.speaker_encoder = parts.get("speaker_encoder")
        self.tokenizer, self.speech_tokenizer = tokenizer, speech_tokenizer
        self._hf_config = files["hf_config"]
        self.generate_defaults = files["generation_config"]
        self._source = files["source"]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype=None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
    ) -> "Qwen3TTSModel":
        """Load an official directory or hub id.

        Args:
            dtype: "float32", "bfloat16" or anything that names one (torch.bfloat16 too);
                None takes float32 on CPU and bfloat16 elsewhere.  The codec stays float32.
            device_map: None for the default device, or "cpu", "cuda:0", "tpu:1".
            attn_implementation: an official name is accepted and changes nothing: there
                is one attention here.
            revision: of a hub id.
        Raises:
            FileNotFoundError, ValueError: naming what is missing or does not fit.
        """
        _check_attention(attn_implementation)
        path = hf.resolve(pretrained_model_name_or_path, revision=revision)
        hf_config = hf.read_json(path / "config.json")
        config = configs.Qwen3TTSConfig.from_hf(hf_config)
        generation_config = hf.read_json(path / "generation_config.json")
        tokenizer = texts.TextTokenizer.from_directory(path)
        with _on(device_map) as device:
            parts = hf.load(
                path, model_parts(config), dtype=_dtype(dtype, _default_dtype(device))
            )
        speech_tokenizer = Qwen3TTSTokenizer.from_pretrained(
            path / SPEECH_TOKENIZER, device_map=device_map
        )
        return cls(
            config,
            parts,
            tokenizer=tokenizer,
            speech_tokenizer=speech_tokenizer,
            hf_config=hf_config,
            generation_config=generation_config,
            source=path,
        )

    def save_pretrained(self, save_directory: str | Path, *, dtype=None) -> None:
        """Write the official layout, which the official package loads.

        Args:
            save_directory: must not exist yet, or be empty; it appears whole or not at
                all.
            dtype: of the weights in the file, None keeps the parameters' own; the codec
                stays float32.
        """
        parts = model_parts(self.config)
        modules = dict(
            talker=self.language_model.talker,
            code_predictor=self.language_model.predictor,
            speaker_encoder=self.speaker_encoder,
        )
        with hf.new_directory(Path(save_directory)) as out:
            hf.save(out, {k: (modules[k], parts[k][1]) for k in parts}, dtype=dtype)
            hf.write_json(out / "config.json", self._hf_config)
            hf.write_json(out / "generation_config.json", self.generate_defaults)
            hf.copy_side_files(self._source, out)
            (out / SPEECH_TOKENIZER).mkdir()
            self.speech_tokenizer._save(out / SPEECH_TOKENIZER, None)

    def get_supported_speakers(self) -> list[str]:
        """Sorted names of the checkpoint's own voices; empty for Base and VoiceDesign."""
        return sorted(name for name, _ in self.config.talker.speaker_ids)

    def get_supported_languages(self) -> list[str]:
        """Sorted names, "auto" among them."""
        return prompt.supported_languages(self.config.talker)

    # ---- voice clone

    def create_voice_clone_prompt(
        self,
        ref_audio: AudioLike | list[AudioLike],
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
    ) -> list[VoiceClonePromptItem]:
        """Analyse recordings once, to clone them often.

        Args:
            ref_audio: recording(s): path, http(s) URL, base64 text or (array, rate).
            ref_text: what they say; needed unless `x_vector_only_mode`.
            x_vector_only_mode: use the speaker embedding alone (else ICL: the reference
                is continued).
        """
        self._require("base", "create_voice_clone_prompt")
        audios = ref_audio if isinstance(ref_audio, list) else [ref_audio]
        text_list = _spread(ref_text, len(audios), "ref_text")
        only_list = _spread(x_vector_only_mode, len(audios), "x_vector_only_mode")
        for i, (ref, only) in enumerate(zip(text_list, only_list)):
            if not only and not (ref or "").strip():
                raise ValueError(
                    f"got no ref_text for reference {i}; say what the recording says, or "
                    "use x_vector_only_mode=True"
                )
        read = [audio.read(a) for a in audios]
        codes = self._reference_codes(read, only_list)
        return [
            VoiceClonePromptItem(c, self._embed_speaker(r), bool(o), not o, t)
            for c, r, o, t in zip(codes, read, only_list, text_list)
        ]

    def _reference_codes(self, read, only_list) -> list[np.ndarray | None]:
        """Recordings of one rate are encoded as one batch: so does the official code, and
        in a batch the last frame of a shorter one may differ."""
        if all(only_list):
            return [None] * len(read)
        encode = self.speech_tokenizer.encode
        if len({rate for _, rate in read}) == 1:
            codes = encode(list(read)).audio_codes
        else:
            codes = [encode(r).audio_codes[0] for r in read]
        return [None if only else c for c, only in zip(codes, only_list)]

    def _embed_speaker(self, read: tuple[np.ndarray, int]) -> np.ndarray:
        """Float [D], the x-vector of (wave, rate)."""
        wave = audio.load(read, rate=self.config.speaker_encoder.sample_rate)
        if len(wave) < audio.MIN_REFERENCE_SAMPLES:
            raise ValueError(
                f"got a reference of {len(wave)} samples at 24 kHz, expected at least "
                f"{audio.MIN_REFERENCE_SAMPLES} (0.06 s); give some seconds of speech"
            )
        size = generate.bucket(len(wave), MEL_BUCKETS)
        batch = np.pad(wave, (0, size - len(wave)))[None]
        dtype = jax.tree.leaves(self.speaker_encoder)[0].dtype
        with _exact():
            length = np.asarray([len(wave)], np.int32)
            return np.asarray(_embed_speaker(self.speaker_encoder, batch, length, dtype)[0])

    def voice_clone_utterances(
        self,
        text,
        language=None,
        ref_audio=None,
        ref_text=None,
        x_vector_only_mode=False,
        voice_clone_prompt=None,
        non_streaming_mode: bool = False,
    ) -> list[Utterance]:
        """What `generate_voice_clone` speaks; same arguments."""
        self._require("base", "generate_voice_clone")
        text_list = _texts(text)
        count = len(text_list)
        if voice_clone_prompt is not None:
            items = _prompt_items(voice_clone_prompt)
        elif ref_audio is not None:
            items = self.create_voice_clone_prompt(ref_audio, ref_text, x_vector_only_mode)
        else:
            raise ValueError("got no voice: give voice_clone_prompt or ref_audio")
        items = _spread(items, count, "voice_clone_prompt")
        return [
            self._clone_utterance(t, l, item, non_streaming_mode)
            for t, l, item in zip(text_list, self._languages(language, count), items)
        ]

    def _clone_utterance(self, text, language, item, non_streaming) -> Utterance:
        reference = None
        if item.icl_mode:
            if not item.ref_text or item.ref_code is None:
                raise ValueError(
                    "got a voice_clone_prompt in ICL mode without ref_text or ref_code; "
                    "make it with create_voice_clone_prompt(ref_audio, ref_text)"
                )
            ids = self.tokenizer.reference_ids(item.ref_text)
            reference = prompt.Reference(ids, np.asarray(item.ref_code))
        built = self._prompt(
            text,
            language=language,
            x_vector=np.asarray(item.ref_spk_embedding),
            reference=reference,
            non_streaming=non_streaming,
        )
        return Utterance(built, None if reference is None else reference.codes)

    def generate_voice_clone(
        self,
        text: str | list[str],
        language: str | list[str] | None = None,
        ref_audio: AudioLike | list[AudioLike] | None = None,
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
        voice_clone_prompt: list[VoiceClonePromptItem] | dict | None = None,
        non_streaming_mode: bool = False,
        *,
        seed: int | None = None,
        return_codes: bool = False,
        **options,
    ):
        """Speak in the voice of a recording (Base).

        Args:
            text: what to say; a list makes a batch.
            language: of the text; None is Auto.
            ref_audio, ref_text, x_vector_only_mode: see `create_voice_clone_prompt`.
            voice_clone_prompt: what that returned, instead of them; or the official dict
                of lists with, for ICL, a list ref_text (the official code crashes there).
            non_streaming_mode: the whole text before the first frame.
            seed: makes sampling repeatable; None draws one.
            return_codes: also return the codes, list of int32 [T, 16].
        Returns:
            (list of float32 waves, 24000), and the codes if asked for.  The reference is
            cut off at exactly frames * 1920 samples (the official cut is one sample early
            for some lengths).
        """
        utterances = self.voice_clone_utterances(
            text,
            language,
            ref_audio,
            ref_text,
            x_vector_only_mode,
            voice_clone_prompt,
            non_streaming_mode,
        )
        return self._official(self.speak(utterances, seed=seed, **options), return_codes)

    # ---- voice design

    def voice_design_utterances(
        self, text, instruct, language=None, non_streaming_mode: bool = True
    ) -> list[Utterance]:
        """What `generate_voice_design` speaks; same arguments."""
        self._require("voice_design", "generate_voice_design")
        text_list = _texts(text)
        count = len(text_list)
        rows = zip(
            text_list,
            self._languages(language, count),
            _spread(instruct, count, "instruct"),
        )
        return [
            Utterance(
                self._prompt(t, language=l, instruct=i, non_streaming=non_streaming_mode)
            )
            for t, l, i in rows
        ]

    def generate_voice_design(
        self,
        text: str | list[str],
        instruct: str | list[str],
        language: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        *,
        seed: int | None = None,
        return_codes: bool = False,
        **options,
    ):
        """Speak in a voice that `instruct` describes (VoiceDesign); "" describes none.

        Other arguments and results: see `generate_voice_clone`.
        """
        utterances = self.voice_design_utterances(
            text, instruct, language, non_streaming_mode
        )
        return self._official(self.speak(utterances, seed=seed, **options), return_codes)

    # ---- custom voice

    def custom_voice_utterances(
        self, text, speaker, language=None, instruct=None, non_streaming_mode: bool = True
    ) -> list[Utterance]:
        """What `generate_custom_voice` speaks; same arguments."""
        self._require("custom_voice", "generate_custom_voice")
        text_list = _texts(text)
        count = len(text_list)
        if self.config.size == "0b6":
            instruct = None  # the 0.6B model was not trained with instructions
        rows = zip(
            text_list,
            _spread(speaker, count, "speaker"),
            self._languages(language, count),
            _spread(instruct, count, "instruct"),
        )
        return [
            Utterance(
                self._prompt(
                    t,
                    language=l,
                    speaker=s,
                    instruct=i,
                    non_streaming=non_streaming_mode,
                )
            )
            for t, s, l, i in rows
        ]

    def generate_custom_voice(
        self,
        text: str | list[str],
        speaker: str | list[str],
        language: str | list[str] | None = None,
        instruct: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        *,
        seed: int | None = None,
        return_codes: bool = False,
        **options,
    ):
        """Speak in one of the checkpoint's voices (CustomVoice).

        Args:
            speaker: see `get_supported_speakers`, any case.
            instruct: how to say it; the 0.6B model ignores it, as officially.
        Other arguments and results: see `generate_voice_clone`.
        """
        utterances = self.custom_voice_utterances(
            text, speaker, language, instruct, non_streaming_mode
        )
        return self._official(self.speak(utterances, seed=seed, **options), return_codes)

    # ---- all variants

    def speak(
        self,
        utterances: list[Utterance],
        *,
        seed: int | None = None,
        on_progress: Callable[[int], None] | None = None,
        **options,
    ) -> list[Speech]:
        """Generate and decode a batch.

        Args:
            seed: of the draws; None takes a fresh one.
            on_progress: called with the number of frames made, about once a second of
                speech.
            options: see `sampling.Options`.  Without max_new_tokens a runaway guard
                stops a row after max(192, 12 frames per text token).
        """
        merged = sampling.Options.merge(options, self.generate_defaults)
        with _exact():
            made = generate.generate(
                self.language_model,
                self.config,
                [u.prompt for u in utterances],
                merged,
                seed=secrets.randbits(31) if seed is None else seed,
                guard=options.get("max_new_tokens") is None,
                on_progress=on_progress,
            )
        return self._speech(utterances, made)

    def _speech(self, utterances, made) -> list[Speech]:
        references = [_frames(u.ref_code, m.codes) for u, m in zip(utterances, made)]
        joined = [np.concatenate([r, m.codes]) for r, m in zip(references, made)]
        waves, _ = self.speech_tokenizer.decode(joined)
        hop = self.speech_tokenizer.config.samples_per_frame
        return [
            Speech(wave[len(r) * hop :], m.codes, m.stop_reason)
            for wave, r, m in zip(waves, references, made)
        ]

    def _official(self, speeches: list[Speech], return_codes: bool):
        waves = [s.wave for s in speeches]
        rate = self.speech_tokenizer.config.output_sample_rate
        if return_codes:
            return waves, rate, [s.codes for s in speeches]
        return waves, rate

    def _prompt(self, text: str, *, instruct: str | None = None, **layout):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"got text {text!r}; give at least one word to say")
        role, ids = self.tokenizer.role_and_text_ids(text)
        return prompt.build(
            self.config,
            role=role,
            text=ids,
            instruct=self.tokenizer.instruct_ids(instruct) if instruct else None,
            **layout,
        )

    def _languages(self, language, count: int) -> list[str]:
        languages = _spread(prompt.AUTO if language is None else language, count, "language")
        return [prompt.AUTO if name is None else name for name in languages]

    def _require(self, variant: str, method: str) -> None:
        if self.config.variant != variant:
            raise ValueError(
                f"got a {self.config.variant} checkpoint, expected {variant} for "
                f"{method}; this one has generate_{METHODS[self.config.variant]}"
            )


METHODS = dict(
    base="voice_clone", custom_voice="custom_voice", voice_design="voice_design"
)


# -------------------------------------------------------------------- helpers


def model_parts(config: configs.Qwen3TTSConfig) -> dict[str, tuple]:
    """name -> (abstract module, its key table) of a TTS checkpoint."""
    parts = dict(
        talker=(
            _abstract(talkers.Talker, config.talker),
            hf.talker_rules(config.talker),
        ),
        code_predictor=(
            _abstract(code_predictor.CodePredictor, config.code_predictor),
            hf.code_predictor_rules(config.code_predictor),
        ),
    )
    if config.speaker_encoder is not None:
        parts["speaker_encoder"] = (
            _abstract(speaker_encoders.SpeakerEncoder, config.speaker_encoder),
            hf.speaker_encoder_rules(config.speaker_encoder),
        )
    return parts


def tokenizer_parts(config: configs.Tokenizer12HzConfig) -> dict[str, tuple]:
    """name -> (abstract module, its key table) of a 12Hz tokenizer."""
    return dict(
        encoder=(
            _abstract(encoders.Encoder, config.encoder),
            hf.tokenizer_12hz_encoder_rules(config.encoder),
        ),
        decoder=(
            _abstract(decoders.Decoder, config.decoder),
            hf.tokenizer_12hz_decoder_rules(config.decoder),
        ),
    )


def _abstract(part, config):
    return jax.eval_shape(lambda: part(config, rngs=nnx.Rngs(0)))


def _exact():
    """float32 means float32: no TF32 on GPU, no bfloat16 passes on TPU.

    Products of bfloat16 operands are not affected.
    """
    return jax.default_matmul_precision("highest")


@contextlib.contextmanager
def _on(device_map: str | None):
    """The device a `device_map` names, made the default while loading."""
    if device_map in (None, "auto"):
        yield jax.devices()[0]
        return
    platform, _, index = device_map.partition(":")
    try:
        device = jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"got device_map {device_map!r}, expected one of "
            f"{[f'{d.platform}:{d.id}' for d in jax.devices()]}"
        ) from error
    with jax.default_device(device):
        yield device


def _default_dtype(device: jax.Device):
    """float32 on CPU, whose XLA has no fast bfloat16 product; bfloat16 elsewhere."""
    return jnp.float32 if device.platform == "cpu" else jnp.bfloat16


def _dtype(dtype, default):
    """A float dtype from its name, numpy's or torch's object, None or "auto"."""
    if dtype in (None, "auto"):
        return default
    name = str(getattr(dtype, "__name__", dtype)).rpartition(".")[2]
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"got dtype {dtype!r}, expected float32, bfloat16 or float16")
    return jnp.dtype(name)


def _check_attention(name: str | None) -> None:
    known = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3")
    if name not in known:
        raise ValueError(f"got attn_implementation {name!r}, expected one of {known}")


def _is_pair(value) -> bool:
    """Whether a value is one (array, rate)."""
    return isinstance(value, tuple) and len(value) == 2 and np.isscalar(value[1])


def _texts(text) -> list[str]:
    text_list = text if isinstance(text, list) else [text]
    if not text_list:
        raise ValueError("got an empty list of texts, expected at least one")
    return text_list


def _spread(value, count: int, name: str) -> list:
    """`value` as a list of `count`: a single one serves all."""
    values = value if isinstance(value, list) else [value]
    if len(values) == 1:
        values = values * count
    if len(values) != count:
        raise ValueError(f"got {len(values)} of {name}, expected 1 or {count}")
    return values


def _prompt_items(voice) -> list[VoiceClonePromptItem]:
    """The items of a voice_clone_prompt given as a list or as the official dict."""
    if isinstance(voice, VoiceClonePromptItem):
        return [voice]
    if isinstance(voice, list):
        return voice
    embeddings = voice["ref_spk_embedding"]
    count = len(embeddings)
    codes = voice.get("ref_code") or [None] * count
    ref_texts = voice.get("ref_text") or [None] * count
    modes = zip(voice["x_vector_only_mode"], voice["icl_mode"])
    return [
        VoiceClonePromptItem(c, e, x, i, t)
        for c, e, (x, i), t in zip(codes, embeddings, modes, ref_texts)
    ]


def _frames(ref_code: np.ndarray | None, codes: np.ndarray) -> np.ndarray:
    return codes[:0] if ref_code is None else np.asarray(ref_code, codes.dtype)
