"""Qwen3TTSTokenizer of 25 Hz: waves to codes, x-vector and reference mel, and back.

`Qwen3TTSTokenizer.from_pretrained` returns it for a 25Hz directory.  Codes of 25 Hz say
what is spoken and little of who speaks: decoding needs a voice too.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3tts_jax import runtime
from qwen3tts_jax.checkpoints import parts, weights
from qwen3tts_jax.codecs import base, inputs, xvector
from qwen3tts_jax.config import tokenizer_25hz
from qwen3tts_jax.models.tokenizer_25hz import bigvgan as bigvgans
from qwen3tts_jax.models.tokenizer_25hz import dit as dits
from qwen3tts_jax.models.tokenizer_25hz import encoder as encoders
from qwen3tts_jax.models.tokenizer_25hz import features
from qwen3tts_jax.models.tokenizer_25hz import flow_matching as flow
from qwen3tts_jax.models.tokenizer_25hz import streaming_decoder as stream

# Shapes are padded to these, so that waves of other lengths compile nothing new.
CODE_BUCKETS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
MEL_BUCKETS = tuple(4 * n for n in CODE_BUCKETS)  # frames of a reference
VOCODER_CHUNK = 32  # mel frames that become a wave at once
LOOKAHEAD = 1  # blocks that a stream waits for: 16 codes before the first sound
NO_END = 2**22  # mel frames, 11 hours: of an utterance that goes on
SEED = 0  # of the noise that mel flows from


@dataclasses.dataclass(frozen=True)
class EncoderOutput25Hz:
    """What decoding needs, a list entry for each wave.

    audio_codes: int32 [T]; xvectors: float32 [D]; ref_mels: float32 [M, 80].
    """

    audio_codes: list[np.ndarray]
    xvectors: list[np.ndarray]
    ref_mels: list[np.ndarray]


@dataclasses.dataclass(eq=False)
class Context:
    """What a decoder starts from: a voice, and the codes of a reference.

    Attributes:
        voice: float [1, D], see `DiT.voice`.
        codes: int32 [T], what is heard before, but not again; or none.
        state: StreamState after them, once a stream has needed it; decoder: whose.
    """

    voice: jax.Array
    codes: np.ndarray
    state: stream.StreamState | None = None
    decoder: stream.Decoder | None = None


class Qwen3TTSTokenizer25Hz(base.SpeechTokenizer):
    """Qwen3-TTS-Tokenizer-25Hz.

    Attributes:
        encoder, dit, bigvgan: its parts; xvectors: what makes x-vectors.
        solver: of `decode` and of streams.
        decoder: streaming_decoder.Decoder of DiT and BigVGAN, which the engine runs.
    """

    def __init__(
        self,
        config: tokenizer_25hz.Tokenizer25HzConfig,
        modules: dict,
        *,
        hf_config: dict,
        source: Path,
        lookahead: int | None = LOOKAHEAD,
        solver: flow.Solver = flow.OFFICIAL,
    ):
        """
        Args:
            modules: by the names of `parts`.
            lookahead, solver: see `streaming`.
        """
        super().__init__(config, hf_config=hf_config, source=source)
        self._modules = modules
        self.encoder: encoders.Encoder = modules["encoder"]
        self.dit: dits.DiT = modules["dit"]
        self.bigvgan: bigvgans.BigVGAN = modules["bigvgan"]
        self.xvectors = xvector.XVectors.open(source, config)
        with runtime.exact():
            plan = _plan(self.dit, solver)
        self.solver = solver
        if lookahead is None:
            lookahead = flow.horizon(self.dit, solver)
        self.decoder = stream.Decoder(self.dit, self.bigvgan, plan, lookahead)

    @staticmethod
    def parts(config: tokenizer_25hz.Tokenizer25HzConfig) -> dict[str, tuple]:
        """name -> (abstract module, its key table)."""
        return parts.parts(config)

    @classmethod
    def load(
        cls, path: Path, hf_config: dict, *, dtype=None, device_map: str | None = None
    ) -> "Qwen3TTSTokenizer25Hz":
        """From a local directory; see `Qwen3TTSTokenizer.from_pretrained`."""
        config = tokenizer_25hz.Tokenizer25HzConfig.from_hf(hf_config)
        modules = weights.load(
            path,
            cls.parts(config),
            dtype=runtime.dtype(dtype, jnp.float32),
            device=runtime.device(device_map),
        )
        return cls(config, modules, hf_config=hf_config, source=path)

    def streaming(
        self, *, lookahead: int | None = LOOKAHEAD, solver: flow.Solver = flow.OFFICIAL
    ) -> "Qwen3TTSTokenizer25Hz":
        """The same tokenizer with another solver, or streams of another kind.

        Args:
            lookahead: blocks of 8 codes that a block waits for.  None: as many as it
                depends on, so that a stream is what `decode` gives; with fewer it comes
                earlier and is an approximation, see `flow_matching.py`.
            solver: with fewer steps a stream also depends on fewer blocks.
        """
        files = dict(hf_config=self._hf_config, source=self._source)
        options = dict(lookahead=lookahead, solver=solver)
        return type(self)(self.config, self._modules, **files, **options)

    # ------------------------------------------------------------------------ encode

    def encode(
        self, audios: Any, sr: int | None = None, return_dict: bool = True
    ) -> EncoderOutput25Hz | tuple:
        """Codes, x-vectors and reference mels of one or several waves.

        Args:
            audios: a path, URL, base64 text, array (with `sr`) or a list of one kind;
                also (array, rate).  Any rate and any number of channels.
            sr: Hz, of arrays.
        Returns:
            EncoderOutput25Hz, or its fields as a tuple without `return_dict`.  A wave
            of W samples at 16 kHz makes ceil(W/640) codes; each row of a batch gives
            what it gives alone.
        Raises: ValueError for a wave that is too short for a voice (0.05 s).
        """
        waves = self._waves(audios, sr)
        voices = [self.xvectors.reference(wave) for wave in waves]
        codes = self._encode(waves) if waves else []
        fields = (codes, [v for v, _ in voices], [m for _, m in voices])
        return EncoderOutput25Hz(*fields) if return_dict else fields

    def _encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        counts = [features.code_count(len(wave)) for wave in waves]
        size = runtime.bucket(max(counts), CODE_BUCKETS)
        batch = _padded(waves, size * features.SAMPLES_PER_CODE, np.float32)
        length = np.asarray([len(wave) for wave in waves], np.int32)
        with runtime.exact():
            codes = np.asarray(_encode(self.encoder, batch, length))
        return [c[:count] for c, count in zip(codes, counts)]

    # ------------------------------------------------------------------------ decode

    def decode(
        self,
        encoded: Any,
        *,
        states: list[Context] | None = None,
        solver: flow.Solver | None = None,
        seed: int = SEED,
        noise: Sequence[np.ndarray] | None = None,
    ) -> tuple[list[np.ndarray], int]:
        """Waves of codes in a voice.

        Args:
            encoded: what `encode` returned; {"audio_codes", "xvectors", "ref_mels"}, of
                one utterance or of several; a list of such dicts, of one each; with
                `states`, codes alone.  Codes int [T], or [T, 1] as the language model
                gives them; -1 at the end is padding.
            states: voices and references, see `condition`, instead of x-vectors and
                reference mels.
            solver: None for the tokenizer's own: 10 steps, guidance 0.5, sway -1, as
                officially.
            seed: of the noise that the mel flows from; streams have the default one.
                The official code draws other noise each time.
            noise: float [T * 4, 80] of each utterance, reference included, instead.
        Returns:
            (list of float32 [T*960] in [-1, 1], 24000).

        Each utterance gives what it gives alone; the official code lets the padding of
            a batch be heard.
        """
        codes, states = self._requests(encoded, states)
        known = [len(state.codes) for state in states]
        whole = [np.concatenate([s.codes, c]) for s, c in zip(states, codes)]
        if noise is None:
            noise = _noise(len(codes), seed)
        waves = self._decode(whole, states, solver or self.solver, noise)
        hop = self.config.samples_per_code
        cut = [wave[hop * count :] for wave, count in zip(waves, known)]
        return cut, self.config.output_sample_rate

    def _decode(self, codes, states, solver: flow.Solver, noise):
        count = np.asarray([len(c) for c in codes], np.int32)
        size = runtime.bucket(count.max(), CODE_BUCKETS)
        voice = jnp.concatenate([state.voice for state in states])
        if isinstance(noise, Sequence):
            noise = _padded(noise, size * self.config.dit.repeats, np.float32)
        with runtime.exact():
            padded = _padded(codes, size, np.int32)
            mel = _sample(self.dit, padded, count, voice, noise, solver)
            wave = np.concatenate(list(self._vocode(mel, count)), axis=1)
        samples = count * self.config.samples_per_code
        lag = self.bigvgan.lag
        return [row[lag : lag + n] for row, n in zip(wave, samples)]

    def _vocode(self, mel: jax.Array, count: np.ndarray):
        """Waves of successive chunks, with the samples before and after the row."""
        end = (count * self.config.dit.repeats).astype(np.int32)
        late = -(-self.bigvgan.lag // self.bigvgan.config.samples_per_mel)
        state = _vocoder_state(self.bigvgan, len(mel))
        for chunk in _chunks(mel, end.max() + late):
            wave, state = _vocoder_step(self.bigvgan, chunk, state, end)
            yield np.asarray(wave)

    def _requests(self, encoded, states) -> tuple[list[np.ndarray], list[Context]]:
        """Codes and contexts in any of the forms that `decode` takes."""
        if states is not None:
            codes = [self._checked(c) for c in encoded]
        else:
            codes, vectors, mels = inputs.fields(encoded)
            codes = [self._checked(c) for c in codes]
            if not len(codes) == len(vectors) == len(mels):
                raise ValueError(
                    f"got {len(codes)} audio_codes, {len(vectors)} xvectors and "
                    f"{len(mels)} ref_mels, expected one of each for an utterance"
                )
            states = [self.condition(v, m) for v, m in zip(vectors, mels)]
        if not codes:
            raise ValueError("got no codes, expected those of one utterance or more")
        return codes, states

    def _checked(self, codes) -> np.ndarray:
        return inputs.checked(codes, self.config.dit.codes)

    # ------------------------------------------------------------------------ streams

    @property
    def chunk(self) -> int:
        """Codes that become sound at once: 8."""
        return self.decoder.chunk

    def condition(self, vector, mel, codes: np.ndarray | None = None) -> Context:
        """What to decode after: a voice and, in ICL, the codes of a reference.

        Args:
            vector: float [D], x-vector; mel: float [M, 80], reference mel: `encode`.
            codes: int [T], what the wave goes on from.
        Raises: ValueError for another shape, or a mel of fewer frames than 5.
        """
        voice = self._voice(np.asarray(vector), np.asarray(mel))
        if codes is None or not len(codes):
            return Context(voice, np.zeros(0, np.int32))
        return Context(voice, self._checked(codes))

    def prepare(self, context: Context) -> stream.StreamState:
        """The state that streams begin with; made once, and kept with the context."""
        if context.state is None or context.decoder is not self.decoder:
            state = _init_state(self.decoder, context.voice, _noise(1, SEED))
            silent = len(context.codes) * self.config.samples_per_code
            state = state.replace(skip=state.skip + silent)
            context.state = self._after(context.codes, state)
            context.decoder = self.decoder
        return context.state

    def _voice(self, vector: np.ndarray, mel: np.ndarray) -> jax.Array:
        c, least = self.config.dit, dits.shortest_reference(self.config.dit)
        if vector.shape != (c.xvector_dim,):
            raise ValueError(
                f"got an x-vector of shape {vector.shape}, expected [{c.xvector_dim}]"
            )
        if mel.ndim != 2 or mel.shape[1] != c.mel_bins or len(mel) < least:
            raise ValueError(
                f"got a reference mel of shape {mel.shape}, expected [M, {c.mel_bins}] "
                f"with {least} frames or more"
            )
        if not (np.isfinite(vector).all() and np.isfinite(mel).all()):
            raise ValueError("got NaN or infinity in an x-vector or a reference mel")
        size = runtime.bucket(len(mel), MEL_BUCKETS)
        length = np.asarray([len(mel)], np.int32)
        mel = _padded([mel], size, np.float32)
        with runtime.exact():
            return _voice(self.dit, vector[None].astype(np.float32), mel, length)

    def empty_state(self, rows: int = 1) -> stream.StreamState:
        """Rows of a decoder that has heard nothing, in nobody's voice."""
        voice = jnp.zeros((rows, self.config.dit.dim), self.dit.dtype)
        return _init_state(self.decoder, voice, _noise(rows, SEED))

    def own_state(
        self, state: Context | stream.StreamState | None
    ) -> stream.StreamState:
        """A copy that a program may use up, of a context, which serves many times."""
        if state is None:
            return self.empty_state()
        return _copy(self.prepare(state) if isinstance(state, Context) else state)

    def state_after(self, codes: np.ndarray, state: Context) -> stream.StreamState:
        """The decoder's state after codes int [T] or [T, 1] that have been streamed."""
        return self._after(self._checked(codes), self.own_state(state))

    def _after(self, codes: np.ndarray, state: stream.StreamState):
        never = np.full(1, NO_END, np.int32)
        for start in range(0, len(codes), self.chunk):
            part = codes[start : start + self.chunk]
            count = np.asarray([len(part)], np.int32)
            part = _padded([part], self.chunk, np.int32)[..., None]
            state = _take(self.decoder, part, count, state)
            if int(state.count[0]) < self.decoder.window:
                continue
            with runtime.exact():
                mel, state = _block(self.decoder, state)
                wave, vocoder = _vocoder_step(self.bigvgan, mel, state.vocoder, never)
            state = state.replace(vocoder=vocoder)
            _, _, state = _sound(self.decoder, wave, state)
        return state

    def finish(self, state: stream.StreamState) -> np.ndarray:
        """Float32 [W], the sound that one row still owes when its codes have ended."""
        with runtime.exact():
            mel, end = _rest(self.decoder, state)
            hop = self.bigvgan.config.samples_per_mel
            frames = int(end[0] - state.vocoder.position[0])
            owed = frames * hop + self.bigvgan.lag
            vocoder, waves = state.vocoder, []
            for chunk in _chunks(mel, -(-owed // hop)):
                wave, vocoder = _vocoder_step(self.bigvgan, chunk, vocoder, end)
                waves.append(np.asarray(wave[0]))
        return np.concatenate(waves)[int(state.skip[0]) : owed]

    def warmup(self) -> None:
        """Compile all that streams, and going on after a reference, need."""
        state = self.own_state(self._after(np.zeros(1, np.int32), self.empty_state()))
        self.finish(state)

    def voice_state(self, codes: np.ndarray | None, voice) -> Context:
        """What a voice is spoken from; see `condition`.

        codes: int [T] or [T, 1], of a reference in ICL, or None.
        voice: voice_clone.DecoderVoice.
        """
        if voice is None:
            raise ValueError(
                "got a voice without decoder_voice, expected x-vector and reference "
                "mel: 25Hz codes do not say who speaks; make the voice_clone_prompt "
                "with create_voice_clone_prompt"
            )
        return self.condition(voice.xvector, voice.ref_mel, codes)

    def reference_seconds(self) -> list[float]:
        """Lengths that recordings are filled up to."""
        return [n * features.SAMPLES_PER_CODE / features.RATE for n in CODE_BUCKETS]

    def warmup_reference(self, wave: np.ndarray, rate: int) -> None:
        """Compile what a recording of this length, float32 [W], needs."""
        encoded = self.encode(wave, sr=rate)
        self.condition(encoded.xvectors[0], encoded.ref_mels[0])

    # -------------------------------------------------------------------------- files

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell whose codes are whose: of the encoder alone."""
        return base.fingerprint_of(self.config.encoder, self.encoder)

    def _save(self, out: Path, dtype) -> None:
        super()._save(out, dtype)
        self.xvectors.save(out)

    def get_model_type(self) -> str:
        return tokenizer_25hz.TOKENIZER_25HZ

    def get_encode_downsample_rate(self) -> int:
        return self.config.samples_per_code_in

    def get_decode_upsample_rate(self) -> int:
        return self.config.samples_per_code


def _padded(rows: Sequence, size: int, dtype) -> np.ndarray:
    """Arrays [T, ...] side by side, zeros behind each: [B, size, ...]."""
    batch = np.zeros((len(rows), size, *np.shape(rows[0])[1:]), dtype)
    for row, value in zip(batch, rows):
        row[: len(value)] = value
    return batch


def _chunks(mel: jax.Array, frames: int):
    """`frames` of a mel, float [B, T, M], in chunks; zeros behind its end."""
    for start in range(0, frames, VOCODER_CHUNK):
        chunk = mel[:, start : start + VOCODER_CHUNK]
        missing = VOCODER_CHUNK - chunk.shape[1]
        yield jnp.pad(chunk, ((0, 0), (0, missing), (0, 0)))


def _noise(rows: int, seed: int) -> jax.Array:
    """Keys [rows], all the same: a row's noise is that of a batch of one."""
    return jnp.broadcast_to(jax.random.key(seed), (rows,))


@jax.jit
def _encode(encoder, wave: jax.Array, length: jax.Array) -> jax.Array:
    mel = features.log_mel(wave, length, bins=encoder.config.mel_bins)
    mel = mel.astype(encoder.conv1.kernel[...].dtype)
    return encoder.codes(mel, features.code_count(length) * features.FRAMES_PER_CODE)


@functools.partial(jax.jit, static_argnames="solver")
def _sample(dit, codes, length, voice, noise, solver: flow.Solver) -> jax.Array:
    return flow.sample(dit, codes, length, voice, noise, solver=solver)


@functools.partial(jax.jit, static_argnames="rows")
def _vocoder_state(bigvgan, rows: int):
    return bigvgan.init_state(rows, bigvgan.dtype)


@jax.jit
def _vocoder_step(bigvgan, mel, state, end):
    return bigvgan.step(mel, state, end)


@jax.jit
def _copy(state):
    return jax.tree.map(jnp.copy, state)


_plan = jax.jit(flow.plan, static_argnames="solver")
_voice = jax.jit(dits.DiT.voice)
_init_state = jax.jit(stream.Decoder.init_state)
_take = jax.jit(stream.Decoder.take)
_block = jax.jit(stream.Decoder.block)
_rest = jax.jit(stream.Decoder.rest)
_sound = jax.jit(stream.Decoder.sound)
