"""Key-value cache, and the two ways through the model that use it: `prefill` and `decode`.

Slot p of row b holds the key and value of the row's token at position p, so rows of different lengths share a
batch and a row's slots never move. Each layer has its own arrays (not one stacked array): inside a compiled
loop XLA then updates them in place and reads them without slicing out a copy. The head axis stands before the
slots, which is the layout of the batched products that read them.

Letters: B batch, P prompt, T new tokens, S slots, D model width, H query heads, G key-value heads, K head width.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from ar_omni_jax.model.attention import MASKED, product, prompt_attention
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.decode_weights import Columns, DecodeWeights, LayerWeights
from ar_omni_jax.model.norms import head_norm, rms_norm
from ar_omni_jax.model.quantized import multiply
from ar_omni_jax.model.rope import apply_rope, rope_angles


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """keys, values: one [B, G, S, K] array a layer, in the compute dtype; lengths: int32 [B] slots in use."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lengths: jax.Array

    @property
    def capacity(self) -> int:
        """Slots of a row."""
        return self.keys[0].shape[-2]

    def squeezed(self) -> KVCache:
        """A cache of one row without the row axis, [G, S, K], which `decode` takes as well: with an axis of one,
        XLA's CPU compiler writes into several copies of the cache."""
        return dataclasses.replace(self, keys=tuple(k[0] for k in self.keys), values=tuple(v[0] for v in self.values))

    def unsqueezed(self) -> KVCache:
        """The inverse of `squeezed`."""
        return dataclasses.replace(
            self, keys=tuple(k[None] for k in self.keys), values=tuple(v[None] for v in self.values)
        )


CACHE_AXES = ("batch", "kv_heads", None, None)  # logical axes of a layer's keys or values


def empty_cache(config: TransformerConfig, batch: int, capacity: int) -> KVCache:
    """A cache of zeros with no slot in use."""
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    arrays = tuple(jnp.zeros(shape, config.dtype) for _ in range(2 * config.num_layers))
    return KVCache(arrays[::2], arrays[1::2], jnp.zeros(batch, jnp.int32))


def prefill(
    weights: DecodeWeights, config: TransformerConfig, tokens_BP, lengths_B, capacity: int
) -> tuple[jax.Array, KVCache]:
    """Reads prompts, padded on the right, in one pass.

    Args:
      tokens_BP: int32; row b's prompt is its first lengths_B[b] ids.
      capacity: slots a row, at least P.
    Returns:
      Hidden states [B, D] of each prompt's *last* token (the only ones whose logits are wanted; without
      meaning where a prompt has no token), and the cache.
    """
    B, P = tokens_BP.shape
    attention = prompt_attention(config)
    places = jnp.arange(P, dtype=jnp.int32)
    segments = (places < lengths_B[:, None]).astype(jnp.int32)
    angles = rope_angles(jnp.broadcast_to(places, (B, P)), config.head_dim, config.rope_theta)
    x = _embed(weights, config, tokens_BP)
    keys, values = [], []
    for layer in weights.layers:

        def attend(q, k, v):
            keys.append(k)
            values.append(v)
            return attention(q, k, v, segments)

        x = _run_layer(layer, config, x, angles, attend)
    last = jnp.take_along_axis(x, jnp.maximum(lengths_B - 1, 0)[:, None, None], axis=1)[:, 0]
    spare = ((0, 0), (0, 0), (0, capacity - P), (0, 0))
    keys, values = (tuple(jnp.pad(a.transpose(0, 2, 1, 3), spare) for a in arrays) for arrays in (keys, values))
    hidden = rms_norm(last, weights.final_norm, config.norm_eps)
    return hidden, KVCache(keys, values, lengths_B.astype(jnp.int32))


def decode(
    weights: DecodeWeights, config: TransformerConfig, tokens_BT, cache: KVCache, reads_B=None
) -> tuple[jax.Array, KVCache]:
    """Reads T >= 1 more tokens a row after the cached ones.

    The caller sees to it that lengths + T <= capacity: beyond it the last slots would be overwritten.

    Args:
      reads_B: bool, rows that keep the tokens; the others compute as well, but their lengths stay, so that the
        next tokens take these slots. None: all.
    Returns: hidden states [B, T, D] after the final norm, and the cache with lengths advanced by T.
    """
    T = tokens_BT.shape[1]
    positions = cache.lengths[:, None] + jnp.arange(T, dtype=jnp.int32)
    angles = rope_angles(positions, config.head_dim, config.rope_theta)
    mask = jnp.arange(cache.capacity) <= positions[:, :, None]
    x = _embed(weights, config, tokens_BT)
    keys, values = [], []
    for layer, old_k, old_v in zip(weights.layers, cache.keys, cache.values, strict=True):

        def attend(q, k, v, old_k=old_k, old_v=old_v):
            keys.append(_write(old_k, k, cache.lengths))
            values.append(_write(old_v, v, cache.lengths))
            return _cached_attention(q, keys[-1], values[-1], mask)

        x = _run_layer(layer, config, x, angles, attend)
    more = T if reads_B is None else T * reads_B.astype(jnp.int32)
    hidden = rms_norm(x, weights.final_norm, config.norm_eps)
    return hidden, KVCache(tuple(keys), tuple(values), cache.lengths + more)


def logits_of(weights: DecodeWeights, hidden_BD):
    """float32 logits [B, V]."""
    if weights.output is None:
        return jnp.einsum("bd,vd->bv", hidden_BD, weights.embedding, preferred_element_type=jnp.float32)
    return multiply(hidden_BD, weights.output, jnp.float32)


def _embed(weights: DecodeWeights, config: TransformerConfig, tokens_BT):
    x = weights.embedding[tokens_BT]
    return x * math.sqrt(config.d_model) if config.tie_embeddings else x


def _run_layer(w: LayerWeights, c: TransformerConfig, x_BTD, angles, attend):
    """One block, `Block.__call__` of `model/transformer.py` on the weights of decoding; a test holds them
    equal."""
    if c.norm_placement == "swin":
        x = x_BTD + rms_norm(_attention(w, c, x_BTD, angles, attend), w.attention_norm, c.norm_eps)
        return x + rms_norm(_mlp(w, x), w.mlp_norm, c.norm_eps)
    x = x_BTD + _attention(w, c, rms_norm(x_BTD, w.attention_norm, c.norm_eps), angles, attend)
    return x + _mlp(w, rms_norm(x, w.mlp_norm, c.norm_eps))


def _side_by_side(x_ND, columns: Columns):
    """x times matrices that stand side by side, [N, O]."""
    outs = [multiply(x_ND, matrix) for matrix in columns]
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=-1)


def _attention(w: LayerWeights, c: TransformerConfig, x_BTD, angles, attend):
    B, T, _ = x_BTD.shape
    q_width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    qkv = _side_by_side(x_BTD.reshape(B * T, -1), w.qkv)
    q, k, v = jnp.split(qkv, (q_width, q_width + kv_width), axis=-1)
    q, k, v = (a.reshape(B, T, -1, c.head_dim) for a in (q, k, v))
    if c.qk_norm:
        q, k = head_norm(q, *w.qk_norm[:2]), head_norm(k, *w.qk_norm[2:])
    attended = attend(apply_rope(q, angles, x_BTD.dtype), apply_rope(k, angles, x_BTD.dtype), v)
    return multiply(attended.reshape(B * T, q_width), w.out).reshape(B, T, -1)


def _mlp(w: LayerWeights, x_BTD):
    gate, up = jnp.split(_side_by_side(x_BTD.reshape(-1, x_BTD.shape[-1]), w.gate_up), 2, axis=-1)
    return multiply(jax.nn.silu(gate) * up, w.down).reshape(x_BTD.shape)


def _write(cache_BGSK, new_BTGK, starts_B):
    """Puts row b's new entries at slots starts_B[b] ... starts_B[b] + T - 1. A cache of one row may lack B."""
    new_BGTK = new_BTGK.transpose(0, 2, 1, 3).astype(cache_BGSK.dtype)

    def row(cache, new, start):
        return jax.lax.dynamic_update_slice(cache, new, (0, start, 0))

    if cache_BGSK.ndim == 3:
        return row(cache_BGSK, new_BGTK[0], starts_B[0])
    return jax.vmap(row)(cache_BGSK, new_BGTK, starts_B)


def _cached_attention(q_BTHK, k_BGSK, v_BGSK, mask_BTS):
    """Attention of new queries to the slots where the mask is True; as `attention.grouped_attention`, but a cache
    of one row may lack the row axis."""
    B, T, H, K = q_BTHK.shape
    G, S = k_BGSK.shape[-3:-1]
    dtype, rows = q_BTHK.dtype, k_BGSK.shape[:-3]
    q = (q_BTHK.astype(jnp.float32) * K**-0.5).astype(dtype)
    q = q.reshape(B, T, G, H // G, K).transpose(0, 2, 1, 3, 4).reshape(*rows, G, -1, K)
    scores = product("...gmk,...gsk->...gms", q, k_BGSK)
    bias = jnp.where(mask_BTS, 0.0, MASKED)[:, None, :, None]
    scores = (scores.reshape(B, G, T, H // G, S) + bias).reshape(scores.shape)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    out = product("...gms,...gsk->...gmk", weights.astype(dtype), v_BGSK)
    out = (out / weights.sum(axis=-1, keepdims=True)).astype(dtype)
    return out.reshape(B, G, T, H // G, K).transpose(0, 2, 1, 3, 4).reshape(B, T, H, K)
