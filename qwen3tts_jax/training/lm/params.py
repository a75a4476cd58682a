"""Parts: everything of a TTS checkpoint that training changes, as one tree."""

import functools

import jax
from flax import nnx, struct
from jax.sharding import Mesh

from qwen3tts_jax import sharding
from qwen3tts_jax.config import tts
from qwen3tts_jax.generation import generate
from qwen3tts_jax.models import code_predictor, speaker_encoder, talker


@struct.dataclass
class Parts:
    """The neural parts, their layers stacked, so that a scan runs them.

    Attributes:
        speaker_encoder: None where the checkpoint has none.
    """

    talker: talker.Talker
    predictor: code_predictor.CodePredictor
    speaker_encoder: speaker_encoder.SpeakerEncoder | None

    @property
    def lm(self) -> generate.LanguageModel:
        return generate.LanguageModel(self.talker, self.predictor)


def init(config: tts.Qwen3TTSConfig, key: jax.Array, mesh: Mesh | None = None) -> Parts:
    """Random float32 parts, each leaf made where it belongs."""
    places = None if mesh is None else shardings(abstract(config), mesh)
    build = jax.jit(lambda key: _build(config, key), out_shardings=places)
    return build(key)


@functools.cache
def abstract(config: tts.Qwen3TTSConfig) -> Parts:
    """The shapes of the parts, nothing allocated."""
    return jax.eval_shape(lambda: _build(config, jax.random.key(0)))


def shardings(abstract: Parts, mesh: Mesh) -> Parts:
    """Where each leaf lives: `sharding.named` of each part."""
    places = {
        name: None if part is None else sharding.named(part, mesh)
        for name, part in vars(abstract).items()
    }
    return Parts(**places)


def _build(config: tts.Qwen3TTSConfig, key: jax.Array) -> Parts:
    if config.code_predictor is None:
        raise ValueError(
            f"got a checkpoint of {config.tokenizer_type}, expected one of "
            f"{tts.TOKENIZER_12HZ}; the 25Hz language model is not trained here"
        )
    talker_key, predictor_key, speaker_key = jax.random.split(key, 3)
    speaker = None
    if config.speaker_encoder is not None:
        speaker = speaker_encoder.SpeakerEncoder(
            config.speaker_encoder, rngs=nnx.Rngs(speaker_key)
        )
    return Parts(
        talker=talker.Talker(config.talker, rngs=nnx.Rngs(talker_key), stacked=True),
        predictor=code_predictor.CodePredictor(
            config.code_predictor, rngs=nnx.Rngs(predictor_key), stacked=True
        ),
        speaker_encoder=speaker,
    )
