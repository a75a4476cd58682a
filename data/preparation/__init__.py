"""Recordings to a corpus."""
