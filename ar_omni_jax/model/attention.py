"""Attention backends behind one function signature, and the registry that names them.

    attention(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL) -> out_BLHK

Queries have H heads, keys and values G heads (G divides H; query head h reads key head h // (H / G)). Row
position i attends to j when j <= i and segment_ids[i] == segment_ids[j]; segment 0 is padding, whose output
nobody reads. Scores are scaled by head_dim^-0.5 and the softmax is float32. The output has the dtype of q.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ar_omni_jax.model import remat
from ar_omni_jax.model.config import ConfigError, TransformerConfig

# Finite, so that a fully masked row gives a mean and no NaN; far below any score, so that exp() is exactly 0.
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class AttentionBackend:
    """`function` as in the module's docstring; `segments`: whether it honours segment ids."""

    function: Callable
    segments: bool


_BACKENDS: dict[str, AttentionBackend] = {}


def register_attention(name: str, *, segments: bool = True):
    """Decorator that makes an attention function available as `TransformerConfig.attention = name`."""

    def add(function):
        _BACKENDS[name] = AttentionBackend(function, segments)
        return function

    return add


def attention_function(config: TransformerConfig) -> Callable:
    """The backend that `config` names; ConfigError when unknown or unable to keep packed documents apart."""
    if config.attention not in _BACKENDS:
        known = ", ".join(sorted(_BACKENDS))
        raise ConfigError(f"TransformerConfig.attention = {config.attention!r}: must be one of {known}")
    backend = _BACKENDS[config.attention]
    if config.packed_rows and not backend.segments:
        able = ", ".join(sorted(n for n, b in _BACKENDS.items() if b.segments))
        raise ConfigError(
            f"TransformerConfig.attention = {config.attention!r}: honours no segment ids, so packed "
            f"documents would attend to each other; use one of {able}, or pack one document a row and set "
            "packed_rows=False"
        )
    return backend.function


def masked_attention(q_BLHK, k_BSGK, v_BSGK, mask_BLS):
    """softmax(q k^T / sqrt(head_dim)) v over the keys where `mask_BLS` is True; L queries, S keys."""
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    q = (q_BLHK.astype(jnp.float32) * K**-0.5).astype(q_BLHK.dtype).reshape(B, L, G, H // G, K)
    scores = jnp.einsum("blgrk,bsgk->bgrls", q, k_BSGK, preferred_element_type=jnp.float32)
    scores = checkpoint_name(scores, remat.ATTENTION_RESIDUALS)
    scores = jnp.where(mask_BLS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bgrls,bsgk->blgrk", weights, v_BSGK, preferred_element_type=jnp.float32)
    return out.reshape(B, L, H, K).astype(q_BLHK.dtype)


def segment_mask(query_segments_BL, key_segments_BS, first_query: int = 0):
    """bool [B, L, S]: same segment, and key index <= query index + `first_query`."""
    queries = jnp.arange(query_segments_BL.shape[1])[:, None] + first_query
    causal = jnp.arange(key_segments_BS.shape[1])[None, :] <= queries
    return causal & (query_segments_BL[:, :, None] == key_segments_BS[:, None, :])


@register_attention("reference")
def reference_attention(q, k, v, segment_ids):
    """The definition, all L x L scores at once."""
    return masked_attention(q, k, v, segment_mask(segment_ids, segment_ids))


@register_attention("blocked")
def blocked_attention(q, k, v, segment_ids, *, block: int = 128):
    """Queries in blocks, each against the keys up to its own end: the causal half is never computed."""
    out = []
    for start in range(0, q.shape[1], block):
        stop = min(start + block, q.shape[1])
        mask = segment_mask(segment_ids[:, start:stop], segment_ids[:, :stop], start)
        out.append(masked_attention(q[:, start:stop], k[:, :stop], v[:, :stop], mask))
    return jnp.concatenate(out, axis=1)


@register_attention("cudnn", segments=False)
def cudnn_attention(q, k, v, segment_ids):
    """NVIDIA's fused kernel through JAX's public function: causal only, 16-bit only, one document a row."""
    del segment_ids  # padding stands at the row's end, where causality alone keeps it from the document
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
