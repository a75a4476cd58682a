"""Architectures as frozen dataclasses; only the standard library."""
