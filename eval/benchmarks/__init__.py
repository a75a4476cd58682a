"""How fast and how large: figures of speed and scale."""
