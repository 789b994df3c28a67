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


def product(subscripts: str, a, b):
    """einsum with float32 sums and result. 16-bit operands stay 16-bit except on CPU, whose XLA lacks the
    product."""
    if a.dtype == jnp.float32 and b.dtype == jnp.float32:
        return jnp.einsum(subscripts, a, b)

    def widened(a, b):
        return jnp.einsum(subscripts, a.astype(jnp.float32), b.astype(jnp.float32))

    def mixed(a, b):
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)

    return jax.lax.platform_dependent(a, b, cpu=widened, default=mixed)


def grouped_attention(q_BGRLK, k_BGSK, v_BGSK, mask_BLS):
    """softmax(q k^T / sqrt(K)) v over the keys where the mask is True; R query heads share a key head.

    The mask is added and the division by the softmax's sum comes after the product with v: a third of the
    time of the textbook order on CPU. A masked score is exactly MASKED in float32 and its weight exactly 0.
    """
    dtype, K = q_BGRLK.dtype, q_BGRLK.shape[-1]
    q = (q_BGRLK.astype(jnp.float32) * K**-0.5).astype(dtype)
    bias = jnp.where(mask_BLS, 0.0, MASKED)[:, None, None]
    scores = checkpoint_name(product("bgrlk,bgsk->bgrls", q, k_BGSK), remat.ATTENTION_RESIDUALS) + bias
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = checkpoint_name(product("bgrls,bgsk->bgrlk", weights.astype(dtype), v_BGSK), remat.ATTENTION_RESIDUALS)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(dtype)


def _heads_first(q_BLHK, k_BLGK, v_BLGK):
    """To [B, G, R, L, K] and [B, G, L, K]: batched products on CPU want the batch axes in front."""
    B, L, H, K = q_BLHK.shape
    G = k_BLGK.shape[2]
    q = q_BLHK.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
    return q, k_BLGK.transpose(0, 2, 1, 3), v_BLGK.transpose(0, 2, 1, 3)


def _heads_last(out_BGRLK):
    B, G, R, L, K = out_BGRLK.shape
    return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, G * R, K)


def segment_mask(query_segments_BL, key_segments_BS, first_query: int = 0):
    """bool [B, L, S]: same segment, and key index <= query index + `first_query`."""
    queries = jnp.arange(query_segments_BL.shape[1])[:, None] + first_query
    causal = jnp.arange(key_segments_BS.shape[1])[None, :] <= queries
    return causal & (query_segments_BL[:, :, None] == key_segments_BS[:, None, :])


@register_attention("reference")
def reference_attention(q, k, v, segment_ids):
    """The definition, all L x L scores at once."""
    mask = segment_mask(segment_ids, segment_ids)
    return _heads_last(grouped_attention(*_heads_first(q, k, v), mask))


def _blocks_of_queries(q_BGRLK, k_BGLK, v_BGLK, segment_ids_BL, block: int):
    out = []
    for start in range(0, q_BGRLK.shape[3], block):
        stop = min(start + block, q_BGRLK.shape[3])
        mask = segment_mask(segment_ids_BL[:, start:stop], segment_ids_BL[:, :stop], start)
        out.append(grouped_attention(q_BGRLK[:, :, :, start:stop], k_BGLK[:, :, :stop], v_BGLK[:, :, :stop], mask))
    return jnp.concatenate(out, axis=3)


@register_attention("blocked")
def blocked_attention(q, k, v, segment_ids, *, block: int = 128):
    """Queries in blocks, each against the keys up to its own end: the causal half is never computed."""
    return _heads_last(_blocks_of_queries(*_heads_first(q, k, v), segment_ids, block))


@register_attention("rowwise")
def rowwise_attention(q, k, v, segment_ids, *, block: int = 128):
    """`blocked`, one row of the batch after the other, scores recomputed in the backward pass: the CPU's
    choice.

    One row's scores fit in the cache of a core, and none are kept. The loop over rows would gather a batch
    that is split over devices: use it on one device.
    """

    @jax.checkpoint
    def row(arrays):
        return _blocks_of_queries(*(a[None] for a in arrays), block)[0]

    return _heads_last(jax.lax.map(row, (*_heads_first(q, k, v), segment_ids)))


@register_attention("cudnn", segments=False)
def cudnn_attention(q, k, v, segment_ids):
    """NVIDIA's fused kernel through JAX's public function: causal only, 16-bit only, one document a row."""
    del segment_ids  # padding stands at the row's end, where causality alone keeps it from the document
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
