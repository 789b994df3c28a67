"""Splash attention, JAX's TPU kernel: causal blocks only, documents of a row kept apart, no scores in memory.

Imported where it is used: loading Pallas takes a moment, and only TPUs need it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from ar_omni_jax.model import remat

LANES = 128  # block sizes are multiples of it
# A block of 128 x 128 scores is too little work for a step of the kernel's grid.
BLOCKS = (512, 384)
PADDING = -1  # segment of what is added to fill a block; no token has it


def block_size(length: int) -> int:
    """Rows and columns of a block of scores for queries of `length` positions: of BLOCKS the one that adds the
    fewest, one block of whole lanes for short rows."""
    if length <= BLOCKS[-1]:
        return -(-length // LANES) * LANES
    return min(BLOCKS, key=lambda block: -length % block)


def splash_pieces(q_BMHK, k_BLGK, v_BLGK, q_segments_BM, segment_ids_BL, first_query, *, interpret: bool = False):
    """Attention of a piece of every row, `AttentionBackend.pieces`; L must be a multiple of M.

    Args:
      first_query: a multiple of M, which piece this is; may be traced.
      interpret: run the kernel as ordinary operations, on any platform.
    """
    length = q_BMHK.shape[1]
    pieces = k_BLGK.shape[1] // length
    block = block_size(length)
    pad = -length % block

    def filled(x, count: int, value=0):
        """[B, count * M, ...] -> every piece filled up to whole blocks."""
        split = x.reshape(x.shape[0], count, length, *x.shape[2:])
        split = jnp.pad(split, ((0, 0), (0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2), constant_values=value)
        return split.reshape(x.shape[0], -1, *x.shape[2:])

    scale = q_BMHK.shape[-1] ** -0.5
    q = (q_BMHK.astype(jnp.float32) * scale).astype(q_BMHK.dtype)
    q, k, v = filled(q, 1), filled(k_BLGK, pieces), filled(v_BLGK, pieces)
    segments = kernels.SegmentIds(filled(q_segments_BM, 1, PADDING), filled(segment_ids_BL, pieces, PADDING))
    kernel = _kernel(q.shape[2], length + pad, pieces, block, interpret)
    kernel = _piece_of(kernel, pieces, first_query // length)
    heads_first = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out = jax.vmap(kernel)(*heads_first, segments)
    return out.transpose(0, 2, 1, 3)[:, :length]


def splash_attention(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, *, interpret: bool = False):
    """Attention of whole rows; arguments as in `model/attention.py`."""
    return splash_pieces(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, segment_ids_BL, 0, interpret=interpret)


def _kernel(heads: int, length: int, pieces: int, block: int, interpret: bool) -> kernels.SplashAttentionKernel:
    """The kernel of `pieces` pieces of `length` queries against all their keys.

    What its backward pass needs beside q, k and v (the output and the softmax's statistics) carries remat's name.
    """
    rows = pieces * length
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((rows, rows), shard_count=pieces)] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=pieces,
        residual_checkpoint_name=remat.ATTENTION_RESIDUALS,
        interpret=interpret,
    )


def _piece_of(kernel: kernels.SplashAttentionKernel, pieces: int, index) -> kernels.SplashAttentionKernel:
    """The kernel whose tables of blocks are those of one piece: they are [heads, queries, keys] or [queries]."""
    if pieces == 1:
        return kernel

    def cut(table):
        axis = 1 if table.ndim == 3 else 0
        size = table.shape[axis] // pieces
        return jax.lax.dynamic_slice_in_dim(table, index * size, size, axis)

    return jax.tree.map(cut, kernel)
