"""What a mesh changes in the forward pass: the functions that the `Transformer` calls.

On one device they are the plain ones below; `parallel/layout.py` makes those of a mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ar_omni_jax.model.attention import attention_function
from ar_omni_jax.model.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """The functions.

    Attributes:
      attention: (q_BLHK, k_BLGK, v_BLGK, segment_ids_BL) -> out_BLHK.
      look_up: (table_VD, tokens_BL, dtype) -> rows of the table, [B, L, D] in `dtype`.
      hidden: a [B, L, D] array of the residual stream -> the same, where it belongs.
      weights: one layer's weights, a tree -> the same, whole along axes that were split only to store them, in the
        dtype of the products.
      gathers: `weights` gathers something, which the backward pass must do again rather than keep.
    """

    attention: Callable
    look_up: Callable
    hidden: Callable
    weights: Callable
    gathers: bool = False


def look_up(table_VD, tokens_BL, dtype):
    """Rows of the table on one device."""
    return table_VD[tokens_BL].astype(dtype)


def same(x):
    """Nothing to move."""
    return x


def one_device(config: TransformerConfig, platform: str | None = None) -> Layout:
    """The layout of one device; ConfigError when the platform (default: JAX's) lacks the attention backend."""
    return Layout(attention_function(config, platform), look_up, same, same)
