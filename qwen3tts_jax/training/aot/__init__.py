"""Steps compiled ahead of time for devices that are not here, and what they cost."""
