"""Data pipelines: from raw files to packed shards of tokens."""
