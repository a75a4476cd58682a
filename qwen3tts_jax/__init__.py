"""Qwen3-TTS (arXiv 2601.15621) in pure-functional JAX/Flax."""

from qwen3tts_jax.generation.voice_clone import VoiceClonePromptItem
from qwen3tts_jax.model import Qwen3TTSModel, Speech
from qwen3tts_jax.speech_tokenizer import EncoderOutput, Qwen3TTSTokenizer

__all__ = [
    "EncoderOutput",
    "Qwen3TTSModel",
    "Qwen3TTSTokenizer",
    "Speech",
    "VoiceClonePromptItem",
]
