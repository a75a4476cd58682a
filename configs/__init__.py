"""Experiments: what to train, on which data, how long."""
