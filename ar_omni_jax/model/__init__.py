"""The Transformer decoder: configuration, blocks, attention backends, key-value cache (Flax NNX)."""
