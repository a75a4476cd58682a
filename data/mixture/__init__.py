"""Which records a step takes, and in which form."""
