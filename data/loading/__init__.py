"""A corpus to the batches of a step."""
