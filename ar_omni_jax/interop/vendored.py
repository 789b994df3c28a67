"""The reference's vendored transformers: HF names, Meta's channel order, one row of q/k norms for all heads."""

from __future__ import annotations

import functools

from ar_omni_jax.interop import hf
from ar_omni_jax.interop.registry import Layout

LAYOUT = Layout(
    "backbone",
    "the reference's own copy of transformers: ChameleonForCausalLM",
    functools.partial(hf.detect_rank, rank=1),
    functools.partial(hf.load, permuted=False),
    functools.partial(hf.save, permuted=False),
)
