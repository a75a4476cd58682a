"""What a record keeps of the voice: a log-mel crop or an x-vector, in float16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qwen3tts_jax import model, runtime
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.audio import mel as log_mels
from qwen3tts_jax.codecs import base

KINDS = ("none", "mel", "x_vector")
ROWS = 16  # of the program; a last group is filled with empty rows


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to keep.

    Attributes:
        kind: one of KINDS.
        crop_seconds: of the middle of the clip, or the whole of a shorter one.
        model: checkpoint with the speaker encoder, for x_vector.
    """

    kind: str = "none"
    crop_seconds: float = 3.0
    model: str | None = None


class Voices:
    """Computes it, a fixed number of clips at a time."""

    def __init__(self, spec: Spec):
        """Raises: ValueError for a model without a speaker encoder, or none."""
        if spec.kind not in KINDS:
            raise ValueError(
                f"got --speaker {spec.kind!r}, expected one of {', '.join(KINDS)}"
            )
        if (spec.kind == "x_vector") != bool(spec.model):
            raise ValueError(
                f"got --speaker {spec.kind} and --model {spec.model}, expected a model "
                "with x_vector and with nothing else; give both or neither"
            )
        self.spec, self.encoder = spec, None
        if spec.model:
            bundle = model.Qwen3TTSModel.from_pretrained(spec.model, dtype="float32")
            self.encoder = bundle.speaker_encoder
            if self.encoder is None:
                raise ValueError(
                    f"got --model {spec.model!r}, which has no speaker encoder, "
                    "expected a Base checkpoint"
                )
        # whole hops: the crop of a long clip makes whole mel frames
        self._samples = int(spec.crop_seconds * audio_io.SAMPLE_RATE) // log_mels.HOP
        self._samples *= log_mels.HOP
        if self._samples < log_mels.MIN_REFERENCE_SAMPLES:
            raise ValueError(
                f"got --crop_seconds {spec.crop_seconds:g}, expected at least 0.06"
            )

    @property
    def fingerprint(self) -> str:
        """A hash of the speaker encoder, or ""."""
        encoder = self.encoder
        if encoder is None:
            return ""
        return base.fingerprint_of(encoder.config, encoder)

    def describe(self, waves: list[np.ndarray]) -> list[dict]:
        """For each wave, float32 [W] at 24 kHz, the fields of its record.

        mel: float16 [samples // 256, 128]; x_vector: float16 [D].
        """
        if self.spec.kind == "none":
            return [{} for _ in waves]
        found = []
        for start in range(0, len(waves), ROWS):
            found += self._group(waves[start : start + ROWS])
        return found

    def _group(self, waves: list[np.ndarray]) -> list[dict]:
        batch = np.zeros((ROWS, self._samples), np.float32)
        length = np.full(ROWS, log_mels.MIN_REFERENCE_SAMPLES, np.int32)
        for row, wave in enumerate(waves):
            start = max(len(wave) - self._samples, 0) // 2
            crop = wave[start : start + self._samples]
            batch[row, : len(crop)] = crop
            length[row] = len(crop)
        with runtime.exact():
            found = np.asarray(_describe(self.encoder, batch, length), np.float16)
        if self.spec.kind == "x_vector":
            return [dict(x_vector=row) for row in found[: len(waves)]]
        frames = length // log_mels.HOP
        return [dict(mel=row[:n]) for row, n in zip(found[: len(waves)], frames)]


@jax.jit
def _describe(encoder, wave: jax.Array, length: jax.Array) -> jax.Array:
    """Float32 [B, T, 128], or [B, D] where there is an encoder."""
    mel = log_mels.log_mel(wave, length)
    if encoder is None:
        return mel
    return encoder(mel, length // log_mels.HOP).astype(jnp.float32)
