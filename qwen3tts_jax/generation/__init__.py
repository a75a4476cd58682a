"""Text and a voice to frames of codes."""
