"""The other way to split rows over devices, kept to measure against: keys and values travel round the ring.

A device holds 1 / n of the keys at any time, where `parallel/layout.py` gathers them all; for that it computes scores
with ordinary operations (the TPU's kernel neither merges softmaxes nor differentiates a part) and sends each key n - 1
times forward and n - 1 times back, with its gradient.

Letters: B rows, M positions of a piece, G key heads, R query heads a key head, K head width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ar_omni_jax.model.attention import MASKED

BLOCK = 128  # queries whose scores exist at a time


def ring_attention(mesh: Mesh, axis: str = "sequence"):
    """Attention of rows that are split over `axis` of the mesh; arguments as in `model/attention.py`."""
    split = P(None, axis, None, None)

    def on_device(q, k, v, segments):
        B, M, H, K = q.shape
        G = k.shape[2]
        q = q.reshape(B, M, G, H // G, K) * K**-0.5
        return _ring(q, k, v, segments, axis, mesh.shape[axis]).reshape(B, M, H, K)

    specs = {"in_specs": (split, split, split, P(None, axis)), "out_specs": split}
    return jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)


def _pass_on(tree, axis: str, devices: int):
    """Everyone's piece to the next device."""
    return jax.tree.map(lambda x: lax.ppermute(x, axis, [(i, (i + 1) % devices) for i in range(devices)]), tree)


def _scores(q_BmGRK, first, q_ids, k, ids, source):
    """Masked float32 scores [B, G, R, m, M] of queries from `first` on against the piece of keys of `source`."""
    scores = jnp.einsum("bmgrk,bsgk->bgrms", q_BmGRK, k, preferred_element_type=jnp.float32)
    queries = first + jnp.arange(q_BmGRK.shape[1])
    keys = source * k.shape[1] + jnp.arange(k.shape[1])
    seen = (keys <= queries[:, None]) & (q_ids[:, :, None] == ids[:, None, :])
    return jnp.where(seen[:, None, None], scores, MASKED)


def _blocks(x, axis: int = 1):
    """An axis of M positions -> blocks of it in front."""
    size = min(BLOCK, x.shape[axis])
    split = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)


def _joined(x, axis: int = 1):
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring(q, k, v, ids, axis, devices):
    return _ring_forward(q, k, v, ids, axis, devices)[0]


def _ring_forward(q, k, v, ids, axis, devices):
    own = lax.axis_index(axis)
    B, M, G, R, K = q.shape
    firsts = own * M + jnp.arange(0, M, min(BLOCK, M))

    def step(carry, i):
        travelling, top, total, out = carry
        k, v, k_ids = travelling
        source = (own - i) % devices

        def block(inputs):
            q, first, q_ids, top, total, out = inputs
            scores = _scores(q, first, q_ids, k, k_ids, source)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            add = jnp.einsum("bgrms,bsgk->bgrmk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return new_top, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + add

        top, total, out = lax.map(block, (_blocks(q), firsts, _blocks(ids), top, total, out))
        return (_pass_on(travelling, axis, devices), top, total, out), None

    blocks, size = firsts.shape[0], min(BLOCK, M)
    start = jnp.full((blocks, B, G, R, size), MASKED), jnp.zeros((blocks, B, G, R, size))
    carry = ((k, v, ids), *start, jnp.zeros((blocks, B, G, R, size, K)))
    (_, top, total, out), _ = lax.scan(step, carry, jnp.arange(devices))
    result = _joined((out / total[..., None]).transpose(0, 1, 4, 2, 3, 5)).astype(q.dtype)
    return result, (q, k, v, ids, result, top + jnp.log(total))


def _ring_backward(axis, devices, saved, gradient):
    q, k, v, ids, out, log_sum = saved
    own = lax.axis_index(axis)
    M = q.shape[1]
    firsts = own * M + jnp.arange(0, M, min(BLOCK, M))
    inner = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def step(carry, i):
        (k, v, k_ids, dk, dv), dq = carry
        source = (own - i) % devices

        def block(sums, inputs):
            dk, dv = sums
            q, first, q_ids, log_sum, g, inner, dq = inputs
            weights = jnp.exp(_scores(q, first, q_ids, k, k_ids, source) - log_sum[..., None])
            dv += jnp.einsum("bgrms,bmgrk->bsgk", weights.astype(g.dtype), g, preferred_element_type=jnp.float32)
            d_weights = jnp.einsum("bmgrk,bsgk->bgrms", g, v, preferred_element_type=jnp.float32)
            d_scores = (weights * (d_weights - inner.transpose(0, 2, 3, 1)[..., None])).astype(g.dtype)
            dk += jnp.einsum("bgrms,bmgrk->bsgk", d_scores, q, preferred_element_type=jnp.float32)
            dq += jnp.einsum("bgrms,bsgk->bmgrk", d_scores, k, preferred_element_type=jnp.float32)
            return (dk, dv), dq

        inputs = (_blocks(q), firsts, _blocks(ids), log_sum, _blocks(gradient), _blocks(inner), dq)
        (dk, dv), dq = lax.scan(block, (dk, dv), inputs)
        return (_pass_on((k, v, k_ids, dk, dv), axis, devices), dq), None

    zeros = jnp.zeros(k.shape), jnp.zeros(v.shape)
    carry = ((k, v, ids, *zeros), _blocks(jnp.zeros(q.shape)))
    ((_, _, _, dk, dv), dq), _ = lax.scan(step, carry, jnp.arange(devices))
    return _joined(dq).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)
