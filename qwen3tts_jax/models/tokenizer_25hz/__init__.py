"""Qwen3-TTS-Tokenizer-25Hz: one code each 40 ms, flow matching back to the wave."""
