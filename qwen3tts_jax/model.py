"""Qwen3TTSModel: a TTS checkpoint as a user holds it.

Names, arguments and results are those of the official package, so that changing the
import line is enough.  Where the official code has a fault, this one does what was
meant and the method says so.
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qwen3tts_jax import runtime
from qwen3tts_jax import speech_tokenizer as speech_tokenizers
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.checkpoints import hub, key_tables
from qwen3tts_jax.checkpoints import weights as weight_files
from qwen3tts_jax.config import tts
from qwen3tts_jax.generation import generate, prompt, sampling, voice_clone
from qwen3tts_jax.models import code_predictor, speaker_encoder, talker
from qwen3tts_jax.nn import quantized
from qwen3tts_jax.serving import engine as engines
from qwen3tts_jax.serving import session as sessions
from qwen3tts_jax.text import tokenizer as text_tokenizer

PROGRESS_FRAMES = 12  # between two reports: about a second of speech
SPEECH_TOKENIZER = "speech_tokenizer"  # folder of the codec inside a TTS repository

AudioLike = Any  # path, URL, base64 text, or (array, rate)


@dataclasses.dataclass(frozen=True)
class Speech:
    """One utterance.  wave: float32 [W] at 24 kHz; codes: int32 [T, Q], Q 16, or 1 at
    25 Hz; stop_reason: "eos", "max_frames" or "guard"."""

    wave: np.ndarray
    codes: np.ndarray
    stop_reason: str


@dataclasses.dataclass(frozen=True)
class Voice:
    """How to speak: all of a request but its text.

    Attributes:
        layout: keyword arguments of `prompt.build`.
        codec: what the codec decodes from: its state after the reference of an ICL
            clone, else None; at 25 Hz always the voice too.
    """

    layout: dict
    codec: Any = None


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A prompt, and what the codec decoder starts from: see `Voice`."""

    prompt: prompt.Prompt
    codec: Any = None


class Qwen3TTSModel:
    """A Qwen3-TTS checkpoint: Base, CustomVoice or VoiceDesign; 12Hz, or 25Hz.

    The `generate_*` methods return the official (waves, rate); keyword arguments beyond
    those named are the generation options of `sampling.Options` (do_sample, top_k,
    top_p, temperature, repetition_penalty, subtalker_dosample, subtalker_top_k,
    subtalker_top_p, subtalker_temperature, max_new_tokens), any other is a TypeError.
    """

    def __init__(
        self,
        config: tts.Qwen3TTSConfig,
        parts: dict,
        *,
        tokenizer: text_tokenizer.TextTokenizer,
        speech_tokenizer: speech_tokenizers.Qwen3TTSTokenizer,
        hf_config: dict,
        generation_config: dict,
        source: Path | None = None,
        voices: voice_clone.Voices | None = None,
    ):
        """From parts (see `model_parts`); `hf_config` is what config.json holds."""
        self.config = config
        self.language_model = generate.LanguageModel(
            parts["talker"], parts.get("code_predictor")
        )
        self.speaker_encoder = parts.get("speaker_encoder")
        self.voices = voices or voice_clone.Voices()
        self.tokenizer, self.speech_tokenizer = tokenizer, speech_tokenizer
        self.generate_defaults = generation_config
        self._hf_config, self._source = hf_config, source
        self._codecs: dict = {}  # of speakers that the checkpoint brings
        found = speech_tokenizer.get_model_type()
        if found != config.tokenizer_type:
            raise ValueError(
                f"got a speech tokenizer {found}, expected {config.tokenizer_type} as "
                "in config.json; take the one that belongs to this checkpoint"
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        dtype=None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        weights: quantized.Form | None = None,
    ) -> "Qwen3TTSModel":
        """Load an official directory or hub id; None is the small model shipped here.

        Args:
            dtype: "float32", "bfloat16" or anything that names one (torch.bfloat16
                too); None takes float32 on CPU and bfloat16 elsewhere.  The codec stays
                float32.
            device_map: None for the default device, or "cpu", "cuda:0", "tpu:1".
            attn_implementation: an official name is accepted and changes nothing: there
                is one attention here.
            revision: of a hub id.
            weights: "int8" or, made for GPUs, "float8" to keep the weights that every
                frame reads in one byte each: faster, not exact; None for `dtype`.
        Raises:
            FileNotFoundError, ValueError: naming what is missing or does not fit.
        """
        runtime.check_attention(attn_implementation)
        runtime.keep_programs()
        path = hub.resolve(pretrained_model_name_or_path, revision=revision)
        hf_config = hub.read_json(path / "config.json")
        config = tts.Qwen3TTSConfig.from_hf(hf_config)
        generation_config = hub.read_json(path / "generation_config.json")
        tokenizer = text_tokenizer.TextTokenizer.from_directory(path)
        speech_tokenizer = speech_tokenizers.Qwen3TTSTokenizer.from_pretrained(
            path / SPEECH_TOKENIZER, device_map=device_map
        )
        device = runtime.device(device_map)
        parts = weight_files.load(
            path,
            model_parts(config),
            dtype=runtime.dtype(dtype, runtime.default_dtype(device)),
            device=device,
        )
        model = cls(
            config,
            parts,
            tokenizer=tokenizer,
            speech_tokenizer=speech_tokenizer,
            hf_config=hf_config,
            generation_config=generation_config,
            source=path,
            voices=voice_clone.read_voices(path, config),
        )
        if weights is not None:
            model.language_model = model.language_model.quantized(weights)
        return model

    def save_pretrained(self, save_directory: str | Path, *, dtype=None) -> None:
        """Write the official layout, which the official package loads.

        Args:
            save_directory: must not exist yet, or be empty; it appears whole or not at
                all.
            dtype: of the weights in the file, None keeps the parameters' own; the codec
                stays float32.
        """
        if self.language_model.is_quantized:
            raise ValueError(
                "got a model with quantised weights, expected those of a checkpoint; "
                "load it without weights= and save that"
            )
        parts = model_parts(self.config)
        modules = dict(
            talker=self.language_model.talker,
            code_predictor=self.language_model.predictor,
            speaker_encoder=self.speaker_encoder,
        )
        with hub.new_directory(Path(save_directory)) as out:
            weight_files.save(
                out, {k: (modules[k], parts[k][1]) for k in parts}, dtype=dtype
            )
            hub.write_json(out / "config.json", self._hf_config)
            hub.write_json(out / "generation_config.json", self.generate_defaults)
            hub.copy_side_files(self._source, out)
            if self.voices.vectors or self.voices.decoder:
                voice_clone.write_voices(out, self.voices)
            (out / SPEECH_TOKENIZER).mkdir()
            self.speech_tokenizer._save(out / SPEECH_TOKENIZER, None)

    def get_supported_speakers(self) -> list[str]:
        """Sorted names of its own voices; official Base and VoiceDesign have none."""
        names = [name for name, _ in self.config.talker.speaker_ids]
        return sorted([*names, *self.voices.vectors])

    def get_supported_languages(self) -> list[str]:
        """Sorted names, "auto" among them."""
        return prompt.supported_languages(self.config.talker)

    # ---- voice clone

    def create_voice_clone_prompt(
        self,
        ref_audio: AudioLike | list[AudioLike],
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
    ) -> list[voice_clone.VoiceClonePromptItem]:
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
                    f"got no ref_text for reference {i}; say what the recording says, "
                    "or use x_vector_only_mode=True"
                )
        return voice_clone.analyse(
            [audio_io.read(a) for a in audios],
            text_list,
            only_list,
            speech_tokenizer=self.speech_tokenizer,
            speaker_encoder=self.speaker_encoder,
        )

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
        items = self._voices(
            voice_clone_prompt, ref_audio, ref_text, x_vector_only_mode
        )
        items = _spread(items, count, "voice_clone_prompt")
        return [
            self.utterance(t, self._clone_voice(l, item, non_streaming_mode))
            for t, l, item in zip(text_list, self._languages(language, count), items)
        ]

    def _voices(
        self, voice_clone_prompt, ref_audio, ref_text, x_vector_only_mode, speaker=None
    ):
        if voice_clone_prompt is not None:
            return voice_clone.items_of(voice_clone_prompt)
        if ref_audio is None and self.voices.vectors:
            return [self.voices.item(speaker)]
        if ref_audio is None:
            raise ValueError("got no voice: give voice_clone_prompt or ref_audio")
        return self.create_voice_clone_prompt(ref_audio, ref_text, x_vector_only_mode)

    def _clone_voice(self, language, item, non_streaming) -> Voice:
        reference = None
        if item.icl_mode:
            if not item.ref_text or item.ref_code is None:
                raise ValueError(
                    "got a voice_clone_prompt in ICL mode without ref_text or "
                    "ref_code; make it with create_voice_clone_prompt"
                )
            ids = self.tokenizer.reference_ids(item.ref_text)
            codes = np.asarray(item.ref_code)
            # at 25 Hz codes are [T], as officially
            reference = prompt.Reference(ids, codes.reshape(len(codes), -1))
        layout = dict(
            language=language,
            x_vector=np.asarray(item.ref_spk_embedding),
            reference=reference,
            non_streaming=non_streaming,
        )
        return Voice(layout, voice_clone.codec_state(item, self.speech_tokenizer))

    def generate_voice_clone(
        self,
        text: str | list[str],
        language: str | list[str] | None = None,
        ref_audio: AudioLike | list[AudioLike] | None = None,
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
        voice_clone_prompt: list[voice_clone.VoiceClonePromptItem] | dict | None = None,
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
            voice_clone_prompt: what that returned, instead of them; or the official
                dict of lists with, for ICL, a list ref_text (the official code crashes
                there); or a named voice, `model.voices.item(name)`.  Where neither is
                given and the checkpoint has named voices, its default one speaks.
            non_streaming_mode: the whole text before the first frame.
            seed: makes sampling repeatable; None draws one.
            return_codes: also return the codes, list of int32 [T, 16], or [T, 1].
        Returns:
            (list of float32 waves, 24000), and the codes if asked for.  The reference
            is cut off at exactly frames * 1920 samples, 960 at 25 Hz (the official cut
            is one sample early for some lengths).
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
        return self._official(
            self.speak(utterances, seed=seed, **options), return_codes
        )

    def stream_voice_clone(
        self,
        text: str | Iterable[str],
        language: str | None = None,
        ref_audio: AudioLike | None = None,
        ref_text: str | None = None,
        x_vector_only_mode: bool = False,
        voice_clone_prompt=None,
        non_streaming_mode: bool = False,
        **options,
    ) -> Iterator[np.ndarray]:
        """`generate_voice_clone` of one utterance, chunk by chunk.

        Args:
            text: whole, or pieces as a language model makes them; they may cut words.
            options: generation options, and seed, schedule, text_timeout, slot_timeout
                and engine of `StreamingSession`.
        Yields: float32 [n], 24 kHz.
        """
        self._require("base", "stream_voice_clone")
        voice = self.voice(
            language=language,
            ref_audio=ref_audio,
            ref_text=ref_text,
            x_vector_only_mode=x_vector_only_mode,
            voice_clone_prompt=voice_clone_prompt,
            non_streaming_mode=non_streaming_mode,
        )
        return self._stream(text, voice, options)

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
            self.utterance(t, self._designed_voice(l, i, non_streaming_mode))
            for t, l, i in rows
        ]

    def _designed_voice(self, language, instruct, non_streaming) -> Voice:
        instruct = self.tokenizer.instruct_ids(instruct) if instruct else None
        return Voice(
            dict(language=language, instruct=instruct, non_streaming=non_streaming)
        )

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
        return self._official(
            self.speak(utterances, seed=seed, **options), return_codes
        )

    def stream_voice_design(
        self,
        text: str | Iterable[str],
        instruct: str,
        language: str | None = None,
        non_streaming_mode: bool = True,
        **options,
    ) -> Iterator[np.ndarray]:
        """`generate_voice_design` of one utterance, chunk by chunk.

        non_streaming_mode: True, the official default, waits for the whole text; False
            begins with its first word.  Otherwise see `stream_voice_clone`.
        """
        self._require("voice_design", "stream_voice_design")
        voice = self.voice(
            instruct=instruct,
            language=language,
            non_streaming_mode=non_streaming_mode,
        )
        return self._stream(text, voice, options)

    # ---- custom voice

    def custom_voice_utterances(
        self,
        text,
        speaker,
        language=None,
        instruct=None,
        non_streaming_mode: bool = True,
    ) -> list[Utterance]:
        """What `generate_custom_voice` speaks; same arguments."""
        self._require("custom_voice", "generate_custom_voice")
        text_list = _texts(text)
        count = len(text_list)
        rows = zip(
            text_list,
            _spread(speaker, count, "speaker"),
            self._languages(language, count),
            _spread(instruct, count, "instruct"),
        )
        return [
            self.utterance(t, self._own_voice(s, l, i, non_streaming_mode))
            for t, s, l, i in rows
        ]

    def _own_voice(self, speaker, language, instruct, non_streaming) -> Voice:
        if self.config.size == "0b6":
            instruct = None  # the 0.6B model was not trained with instructions
        voice = self._designed_voice(language, instruct, non_streaming)
        return Voice(voice.layout | dict(speaker=speaker), self._own_codec(speaker))

    def _own_codec(self, speaker: str):
        """What the codec decodes one of the checkpoint's speakers from."""
        if not self.voices.decoder:
            return None
        name = (speaker or "").lower()
        prompt.speaker_id(self.config.talker, name or "(none)")
        if name not in self._codecs:
            voice = self.voices.decoder[name]
            self._codecs[name] = self.speech_tokenizer.voice_state(None, voice)
        return self._codecs[name]

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
        return self._official(
            self.speak(utterances, seed=seed, **options), return_codes
        )

    def stream_custom_voice(
        self,
        text: str | Iterable[str],
        speaker: str,
        language: str | None = None,
        instruct: str | None = None,
        non_streaming_mode: bool = True,
        **options,
    ) -> Iterator[np.ndarray]:
        """`generate_custom_voice` of one utterance, chunk by chunk.

        Arguments: see `stream_voice_design` and `stream_voice_clone`.
        """
        self._require("custom_voice", "stream_custom_voice")
        voice = self.voice(
            speaker=speaker,
            language=language,
            instruct=instruct,
            non_streaming_mode=non_streaming_mode,
        )
        return self._stream(text, voice, options)

    # ---- all variants

    def voice(
        self,
        *,
        language: str | None = None,
        speaker: str | None = None,
        instruct: str | None = None,
        ref_audio: AudioLike | None = None,
        ref_text: str | None = None,
        x_vector_only_mode: bool = False,
        voice_clone_prompt=None,
        non_streaming_mode: bool | None = None,
    ) -> Voice:
        """How to speak, for `StreamingSession` and `utterance`.

        Arguments: those of this checkpoint's `generate_*` method, with its defaults;
            speaker also of a Base checkpoint with named voices.
        Raises: ValueError for what this checkpoint does not know or cannot use.
        """
        variant, language = self.config.variant, language or prompt.AUTO
        clone = (ref_audio, ref_text, x_vector_only_mode, voice_clone_prompt)
        unused = dict(
            base=(instruct, speaker if voice_clone_prompt is not None else None),
            custom_voice=clone,
            voice_design=(speaker, *clone),
        )[variant]
        if any(value is not None and value is not False for value in unused):
            raise ValueError(
                f"got arguments that a {variant} checkpoint cannot use; see "
                f"stream_{METHODS[variant]} for those it can"
            )
        if variant == "custom_voice":
            prompt.speaker_id(self.config.talker, speaker or "(none)")
        prompt.language_id(self.config.talker, language, speaker)
        if non_streaming_mode is None:
            non_streaming_mode = variant != "base"
        if variant == "base":
            if voice_clone_prompt is None:
                voice_clone.check(
                    self.voices,
                    speaker=speaker,
                    ref_audio=ref_audio,
                    ref_text=ref_text,
                    x_vector_only_mode=x_vector_only_mode,
                )
            items = self._voices(
                voice_clone_prompt, ref_audio, ref_text, x_vector_only_mode, speaker
            )
            return self._clone_voice(
                language, *_spread(items, 1, "voices"), non_streaming_mode
            )
        if variant == "custom_voice":
            return self._own_voice(speaker, language, instruct, non_streaming_mode)
        return self._designed_voice(language, instruct, non_streaming_mode)

    def utterance(self, text: str, voice: Voice) -> Utterance:
        """A text in a voice, for `speak`."""
        _check_text(text)
        role, ids = self.tokenizer.role_and_text_ids(text)
        built = prompt.build(self.config, role=role, text=ids, **voice.layout)
        return Utterance(built, voice.codec)

    def _stream(self, text, voice: Voice, options: dict) -> Iterator[np.ndarray]:
        if isinstance(text, str):
            _check_text(text)
        return sessions.StreamingSession(self, voice, **options).speak(text)

    def warmup(
        self,
        *,
        slots: int = 1,
        schedule: tuple[int, ...] | None = None,
        positions: int = engines.POSITIONS,
        reference_seconds: float = 12.0,
    ) -> None:
        """Compile what streams need, so that nothing is compiled in service.

        Args:
            slots, schedule: of the engine that will serve; 1 and the default schedule
                for sessions without an engine.
            positions: of the longest prompt and its frames, 12.5 or 25 a second.
            reference_seconds: of the longest recording to clone (Base); 0 for none.
        """
        engine = engines.Engine(self, slots=slots, schedule=schedule)
        engine.warmup(positions=positions)
        if self.speaker_encoder is not None and reference_seconds > 0:
            voice_clone.warmup(
                reference_seconds,
                speech_tokenizer=self.speech_tokenizer,
                speaker_encoder=self.speaker_encoder,
            )

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
        with runtime.exact():
            made = generate.generate(
                self.language_model,
                self.config,
                [u.prompt for u in utterances],
                merged,
                seed=secrets.randbits(31) if seed is None else seed,
                guard=options.get("max_new_tokens") is None,
                report_every=PROGRESS_FRAMES if on_progress else 0,
                on_progress=on_progress,
            )
        return self._speech(utterances, made)

    def _speech(self, utterances, made) -> list[Speech]:
        waves, _ = self.speech_tokenizer.decode(
            [m.codes for m in made], states=[u.codec for u in utterances]
        )
        return [Speech(w, m.codes, m.stop_reason) for w, m in zip(waves, made)]

    def _official(self, speeches: list[Speech], return_codes: bool):
        waves = [s.wave for s in speeches]
        rate = self.speech_tokenizer.config.output_sample_rate
        if return_codes:
            return waves, rate, [s.codes for s in speeches]
        return waves, rate

    def _languages(self, language, count: int) -> list[str]:
        languages = _spread(
            prompt.AUTO if language is None else language, count, "language"
        )
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


def model_parts(config: tts.Qwen3TTSConfig) -> dict[str, tuple]:
    """name -> (abstract module, its key table) of a TTS checkpoint."""
    parts = dict(
        talker=(
            weight_files.abstract(talker.Talker, config.talker),
            key_tables.talker_rules(config.talker),
        ),
    )
    if config.code_predictor is not None:
        parts["code_predictor"] = (
            weight_files.abstract(code_predictor.CodePredictor, config.code_predictor),
            key_tables.code_predictor_rules(config.code_predictor),
        )
    if config.speaker_encoder is not None:
        parts["speaker_encoder"] = (
            weight_files.abstract(
                speaker_encoder.SpeakerEncoder, config.speaker_encoder
            ),
            key_tables.speaker_encoder_rules(config.speaker_encoder),
        )
    return parts


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


def _check_text(text) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"got text {text!r}; give at least one word to say")
