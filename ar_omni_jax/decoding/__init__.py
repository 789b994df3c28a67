"""Decoding: the grammar of legal streams, sampling strategies, and the generation loop."""
