"""AR-Omni in JAX: one causal Transformer over one joint vocabulary of text, image and speech tokens."""

__version__ = "0.1.0"
