"""Official checkpoints: files, names of tensors, the hub."""
