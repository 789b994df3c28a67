"""Key-value cache, and the two ways through the model that use it: `prefill` and `decode`.

Slot p of row b holds the key and value of the row's token at position p, so rows of different lengths share a
batch and a row's slots never move. Each layer has its own arrays (not one stacked array): inside a compiled
loop XLA then updates them in place and reads them without slicing out a copy. The head axis stands before the
slots, which is the layout of the batched products that read them.

Letters: B batch, P prompt, T new tokens, S slots, H query heads, G key-value heads, R = H / G, K head width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ar_omni_jax.model.attention import attention_function, grouped_attention
from ar_omni_jax.model.rope import rope_angles
from ar_omni_jax.model.transformer import Block, Transformer


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
        return self.keys[0].shape[2]


def empty_cache(config, batch: int, capacity: int) -> KVCache:
    """A cache of zeros with no slot in use."""
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    arrays = tuple(jnp.zeros(shape, config.dtype) for _ in range(2 * config.num_layers))
    return KVCache(arrays[::2], arrays[1::2], jnp.zeros(batch, jnp.int32))


def prefill(model: Transformer, tokens_BP, lengths_B, capacity: int) -> tuple[jax.Array, KVCache]:
    """Reads prompts, padded on the right, in one pass.

    Args:
      tokens_BP: int32; row b's prompt is its first lengths_B[b] >= 1 ids.
      capacity: slots a row, at least P.
    Returns:
      Hidden states [B, D] of each prompt's *last* token (the only ones whose logits are wanted), and the
      cache.
    """
    c = model.config
    B, P = tokens_BP.shape
    attention = attention_function(c)
    places = jnp.arange(P, dtype=jnp.int32)
    segments = (places < lengths_B[:, None]).astype(jnp.int32)
    angles = rope_angles(jnp.broadcast_to(places, (B, P)), c.head_dim, c.rope_theta)
    hidden, (keys, values) = model.run_blocks(
        model.embed(tokens_BP), angles, lambda q, k, v: (attention(q, k, v, segments), (k, v))
    )
    last = jnp.take_along_axis(hidden, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    spare = ((0, 0), (0, 0), (0, capacity - P), (0, 0))
    keys, values = (
        tuple(jnp.pad(layer.transpose(0, 2, 1, 3), spare) for layer in stacked) for stacked in (keys, values)
    )
    return model.finish(last), KVCache(keys, values, lengths_B.astype(jnp.int32))


def unstack_layers(model: Transformer) -> list[Block]:
    """One `Block` a layer, its projections cast to the compute dtype: done once, before a decode loop.

    Left to the loop, every step would slice the stacked weights and cast them again.
    """
    config = model.config
    graph, weights = nnx.split(model.blocks)

    def layer(n):
        def take(path, variable):
            value = variable[...][n]
            return variable.replace(value if "norm" in path[-1] else value.astype(config.dtype))

        return nnx.merge(graph, nnx.map_state(take, weights))

    return [layer(n) for n in range(config.num_layers)]


def decode(model: Transformer, layers: list[Block], tokens_BT, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Reads T >= 1 more tokens a row after the cached ones.

    The caller sees to it that lengths + T <= capacity: beyond it the last slots would be overwritten.

    Returns: hidden states [B, T, D] after the final norm, and the cache with lengths advanced by T.
    """
    c = model.config
    T = tokens_BT.shape[1]
    positions = cache.lengths[:, None] + jnp.arange(T, dtype=jnp.int32)
    angles = rope_angles(positions, c.head_dim, c.rope_theta)
    mask = jnp.arange(cache.capacity) <= positions[:, :, None]
    x = model.embed(tokens_BT)
    keys, values = [], []
    for block, old_k, old_v in zip(layers, cache.keys, cache.values, strict=True):

        def attend(q, k, v, old_k=old_k, old_v=old_v):
            k, v = _write(old_k, k, cache.lengths), _write(old_v, v, cache.lengths)
            return _cached_attention(q, k, v, mask), (k, v)

        x, (k, v) = block(x, angles, attend)
        keys.append(k)
        values.append(v)
    return model.finish(x), KVCache(tuple(keys), tuple(values), cache.lengths + T)


def _write(cache_BGSK, new_BTGK, starts_B):
    """Puts row b's new entries at slots starts_B[b] ... starts_B[b] + T - 1."""

    def row(cache, new, start):
        return jax.lax.dynamic_update_slice(cache, new, (0, start, 0))

    return jax.vmap(row)(cache_BGSK, new_BTGK.transpose(0, 2, 1, 3).astype(cache_BGSK.dtype), starts_B)


def _cached_attention(q_BTHK, k_BGSK, v_BGSK, mask_BTS):
    """Attention of new queries to the slots where the mask is True."""
    B, T, H, K = q_BTHK.shape
    G = k_BGSK.shape[1]
    q = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    out = grouped_attention(q, k_BGSK, v_BGSK, mask_BTS)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
