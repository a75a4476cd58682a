"""Text to ids, whole or as it comes."""
