"""Sources, shards, index, pack plan and loader: recordings in, training batches out."""
