"""Qwen3-TTS (arXiv 2601.15621) in pure-functional JAX/Flax."""

from qwen3tts_jax.model import (
    EncoderOutput,
    Qwen3TTSModel,
    Qwen3TTSTokenizer,
    Speech,
    VoiceClonePromptItem,
)

__all__ = [
    "EncoderOutput",
    "Qwen3TTSModel",
    "Qwen3TTSTokenizer",
    "Speech",
    "VoiceClonePromptItem",
]
__version__ = "0.1.0"
