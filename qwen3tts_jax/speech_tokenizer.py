"""Qwen3TTSTokenizer: waves to codes and back, with the official names and arguments."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3tts_jax import runtime
from qwen3tts_jax.checkpoints import hub, key_tables, weights
from qwen3tts_jax.codecs import base, codec_25hz
from qwen3tts_jax.config import tokenizer_12hz, tts
from qwen3tts_jax.models.tokenizer_12hz import decoder as decoders
from qwen3tts_jax.models.tokenizer_12hz import encoder as encoders

# Shapes are padded to these, so that waves of other lengths compile nothing new.
ENCODE_BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
DECODE_CHUNK = 32  # frames decoded per program; a short rest takes SMALL_CHUNK
SMALL_CHUNK = 8
# A state is wanted after exactly so many frames: chunks that add up to any number.
EXACT_CHUNKS = (DECODE_CHUNK, SMALL_CHUNK, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """audio_codes: list of int32 [T, 16], one per wave."""

    audio_codes: list[np.ndarray]


class Qwen3TTSTokenizer(base.SpeechTokenizer):
    """Qwen3-TTS-Tokenizer-12Hz: waves to codes and back.

    Attributes:
        decoder: its `stream(codes, count, state)` is what the engine runs.
        chunk: None, since each code is sound at once; a codec that decodes so many
            codes at a time, and owes some sound at the end, says how many.
    """

    chunk = None

    def __init__(
        self, config, encoder, decoder, *, hf_config: dict, source: Path | None
    ):
        super().__init__(config, hf_config=hf_config, source=source)
        self.encoder, self.decoder = encoder, decoder

    @staticmethod
    def parts(config: tokenizer_12hz.Tokenizer12HzConfig) -> dict[str, tuple]:
        """See `tokenizer_parts`."""
        return tokenizer_parts(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype=None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
    ) -> "Qwen3TTSTokenizer | codec_25hz.Qwen3TTSTokenizer25Hz":
        """Load an official directory or hub id, of either frame rate.

        Args:
            dtype: None for float32, the released file's own; the official package lets
                a bfloat16 model make its codec bfloat16 too, which costs quality.
            device_map, attn_implementation, revision: see `Qwen3TTSModel`.
        """
        runtime.check_attention(attn_implementation)
        runtime.keep_programs()
        path = hub.resolve(pretrained_model_name_or_path, revision=revision)
        hf_config = hub.read_json(path / "config.json")
        if hf_config.get("model_type") == tts.TOKENIZER_25HZ:
            return codec_25hz.Qwen3TTSTokenizer25Hz.load(
                path, hf_config, dtype=dtype, device_map=device_map
            )
        config = tokenizer_12hz.Tokenizer12HzConfig.from_hf(hf_config)
        parts = weights.load(
            path,
            cls.parts(config),
            dtype=runtime.dtype(dtype, jnp.float32),
            device=runtime.device(device_map),
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
        waves = self._waves(audios, sr)
        codes = self._encode(waves) if waves else []
        return EncoderOutput(codes) if return_dict else (codes,)

    def _encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        hop = self.config.samples_per_frame
        longest = max(len(w) for w in waves)
        frames = runtime.bucket(-(-longest // hop), ENCODE_BUCKETS)
        batch = np.zeros((len(waves), frames * hop), np.float32)
        for row, wave in zip(batch, waves):
            row[: len(wave)] = wave
        length = np.full(len(waves), longest, np.int32)
        with runtime.exact():
            codes = _encode(self.encoder, batch, length, self.config.quantizers)
        return [c[: -(-len(w) // hop)] for c, w in zip(np.asarray(codes), waves)]

    def decode(
        self, encoded: Any, *, states: list[decoders.DecoderState] | None = None
    ) -> tuple[list[np.ndarray], int]:
        """Waves of codes.

        Args:
            encoded: what `encode` returned, {"audio_codes": ...}, a list of such dicts,
                or a list of int arrays [T, 16]; rows of -1 at the end are padding.
            states: what came before each of them, see `state_after`; None: nothing.
        Returns:
            (list of float32 [T*1920] in [-1, 1], 24000).

        Decoded with carried state, exactly as whole: the official package restarts
            every 300 frames and departs from its own decoder after the first 300.
        """
        codes = [self._checked(c) for c in _code_list(encoded)]
        longest = max(len(c) for c in codes)
        batch = np.zeros((len(codes), longest, codes[0].shape[1]), np.int32)
        for row, c in zip(batch, codes):
            row[: len(c)] = c
        states = [self.own_state(state) for state in states or [None] * len(codes)]
        state = states[0] if len(states) == 1 else _join(*states)
        wave = np.concatenate(list(self._chunks(batch, state)), axis=1)
        hop = self.config.samples_per_frame
        waves = [w[: len(c) * hop] for w, c in zip(wave, codes)]
        return waves, self.config.output_sample_rate

    def empty_state(self, rows: int = 1) -> decoders.DecoderState:
        """The decoder's state before the first frame."""
        return _empty_state(self.decoder, rows)

    def own_state(self, state: decoders.DecoderState | None) -> decoders.DecoderState:
        """A copy that a program may use up; of None: the state before the first frame.

        A voice's state serves many utterances.
        """
        return self.empty_state() if state is None else _copy(state)

    def state_after(
        self, codes: np.ndarray, state: decoders.DecoderState | None = None
    ) -> decoders.DecoderState:
        """The decoder's state after frames int [T, 16] (after others, with `state`).

        What is decoded from it sounds as it does after those frames.
        """
        codes, start = self._checked(codes)[None], 0
        state = self.own_state(state)
        while start < codes.shape[1]:
            rest = codes.shape[1] - start
            size = next(size for size in EXACT_CHUNKS if size <= rest)
            with runtime.exact():
                chunk = codes[:, start : start + size]
                _, state = _decode_step(self.decoder, chunk, state)
            start += size
        return state

    def voice_state(
        self, codes: np.ndarray | None, voice
    ) -> decoders.DecoderState | None:
        """What a voice is spoken from: after codes int [T, 16], a reference; or None.

        voice: of no use here; at 25 Hz a DecoderVoice.
        """
        return None if codes is None else self.state_after(codes)

    def prepare(self, state: decoders.DecoderState | None) -> None:
        """Make what streams begin with: here it is there already."""

    def reference_seconds(self) -> list[float]:
        """Lengths that recordings are filled up to."""
        hop, rate = self.config.samples_per_frame, self.config.input_sample_rate
        return [frames * hop / rate for frames in ENCODE_BUCKETS]

    def warmup_reference(self, wave: np.ndarray, rate: int) -> None:
        """Compile what a recording of this length, float32 [W], needs."""
        self.encode(wave, sr=rate)

    def warmup(self) -> None:
        """Compile all that decoding one utterance, or going on after one, needs."""
        codes = np.zeros((sum(EXACT_CHUNKS), self.config.quantizers), np.int32)
        self.own_state(self.state_after(codes))
        self.decode([codes])

    def _chunks(self, codes: np.ndarray, state: decoders.DecoderState):
        """Waves of successive chunks, the last one padded: causal, so harmless."""
        start = 0
        while start < codes.shape[1]:
            rest = codes.shape[1] - start
            size = SMALL_CHUNK if rest <= SMALL_CHUNK else DECODE_CHUNK
            chunk = codes[:, start : start + size]
            chunk = np.pad(chunk, ((0, 0), (0, size - chunk.shape[1]), (0, 0)))
            with runtime.exact():
                wave, state = _decode_step(self.decoder, chunk, state)
            yield np.asarray(wave)
            start += size

    def _checked(self, codes) -> np.ndarray:
        codes = np.asarray(codes)
        groups, size = self.config.quantizers, self.config.decoder.codebook_size
        if codes.ndim != 2 or codes.shape[1] != groups:
            raise ValueError(
                f"got codes of shape {codes.shape}, expected [T, {groups}]"
            )
        codes = codes[: int((codes[:, 0] > -1).sum())]
        if not len(codes):
            raise ValueError("got 0 frames of codes, expected at least 1")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"got codes of dtype {codes.dtype}, expected integers")
        if codes.min() < 0 or codes.max() >= size:
            raise ValueError(
                f"got codes from {codes.min()} to {codes.max()}, "
                f"expected 0 to {size - 1}"
            )
        return codes

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whose codes are whose: see `codecs.base`.

        Of the encoder, its configuration and the number of codebooks that are kept; the
        decoder may be trained further, codes keep their meaning.
        """
        kept = dict(quantizers=self.config.quantizers)
        return base.fingerprint_of(self.config.encoder, self.encoder, **kept)

    def get_model_type(self) -> str:
        return tts.TOKENIZER_12HZ

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
_empty_state = jax.jit(
    lambda decoder, rows: decoder.init_state(rows, decoder.dtype), static_argnums=1
)
_copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
_join = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.concatenate(x), *states))


def tokenizer_parts(config: tokenizer_12hz.Tokenizer12HzConfig) -> dict[str, tuple]:
    """name -> (abstract module, its key table) of a 12Hz tokenizer."""
    return dict(
        encoder=(
            weights.abstract(encoders.Encoder, config.encoder),
            key_tables.tokenizer_12hz_encoder_rules(config.encoder),
        ),
        decoder=(
            weights.abstract(decoders.Decoder, config.decoder),
            key_tables.tokenizer_12hz_decoder_rules(config.decoder),
        ),
    )
