"""What a corpus holds on disk."""
