"""Waves and spectrograms in and out."""
