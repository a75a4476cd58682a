"""Training of the 12Hz codec."""
