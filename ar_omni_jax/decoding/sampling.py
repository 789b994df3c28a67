"""From logits to one token a row, every row by the settings of its own grammar state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ar_omni_jax.decoding.grammar import Picking


def penalize(logits_BV, seen_BV, penalty_B):
    """Repetition penalty: seen ids' logits divided by it where positive, multiplied where negative."""
    penalty = penalty_B[:, None]
    return jnp.where(seen_BV, jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def _ordered(scores):
    """int32 that order as the float32 scores do."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    return bits ^ (jnp.right_shift(bits, 31) & 0x7FFFFFFF)


def _largest_edge(keys_BV, enough):
    """int32 [B, 1]: the largest key k for which `enough(keys >= k)` [B, 1] holds, by bisection; the smallest
    int32 where it never does. A sort of the vocabulary would take several times as long."""
    low = jnp.full((keys_BV.shape[0], 1), jnp.iinfo(jnp.int32).min)
    high = jnp.max(keys_BV, axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = (low | high) - jnp.right_shift(low ^ high, 1)  # the mean rounded up, without overflow
        holds = enough(keys_BV >= middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    return jax.lax.fori_loop(0, 32, halve, (low, high))[0]


def cut(scores_BV, picking: Picking):
    """Sets to -inf what top-k (0 = all), then top-p of what is left, then min-p rule out. Ties at an edge all
    stay."""
    top_k, top_p, min_p = (a[:, None] for a in (picking.top_k, picking.top_p, picking.min_p))

    def by_rank(scores):
        keys = _ordered(scores)
        edge = _largest_edge(keys, lambda above: above.sum(axis=-1, keepdims=True) >= top_k)
        return jnp.where((keys >= edge) | (top_k == 0), scores, -jnp.inf)

    def by_mass(scores):
        keys, probabilities = _ordered(scores), jax.nn.softmax(scores, axis=-1)

        def enough(above):
            return jnp.where(above, probabilities, 0).sum(axis=-1, keepdims=True) >= top_p

        # At 1 a sum that rounds to just above it must not rule out the tail.
        return jnp.where((keys >= _largest_edge(keys, enough)) | (top_p >= 1), scores, -jnp.inf)

    scores = jax.lax.cond(jnp.any(top_k > 0), by_rank, lambda s: s, scores_BV)
    scores = jax.lax.cond(jnp.any(top_p < 1), by_mass, lambda s: s, scores)
    edge = jnp.max(scores, axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(scores >= edge, scores, -jnp.inf)


def likeliest(scores_BV):
    """int32 [B]: the first of the largest. Two plain reductions, which vectorize; argmax does not on CPU."""
    ids = jax.lax.broadcasted_iota(jnp.int32, scores_BV.shape, 1)
    best = jnp.max(scores_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(scores_BV == best, ids, scores_BV.shape[-1] - 1), axis=-1)


def pick(logits_BV, legal_BV, picking: Picking, seen_BV, keys_B, live_B=None):
    """int32 [B]: the next token of each row, a legal one.

    Args:
      logits_BV: float32. legal_BV: bool, at least one True in a row whose token is used.
      picking: of the rows' states, [B] each.
      seen_BV: () -> bool [B, V], ids in the scope of the row's repetition penalty; called where one is in effect.
      keys_B: () -> random keys, one a row, so that a row's draw does not depend on the others; called where a
        row samples.
      live_B: bool, rows whose token is used (None: all); the others cause no work.
    """
    live = jnp.ones(logits_BV.shape[0], bool) if live_B is None else live_B
    greedy = picking.greedy | ~live
    penalized = live & (picking.penalty != 1)

    def plain():
        return likeliest(jnp.where(legal_BV, logits_BV, -jnp.inf))

    def general():
        def with_penalty(logits):
            return penalize(logits, seen_BV(), picking.penalty)

        logits = jax.lax.cond(jnp.any(penalized), with_penalty, lambda logits: logits, logits_BV)
        scores = jnp.where(legal_BV, logits, -jnp.inf)
        best = likeliest(scores)

        def mixed():
            return jnp.where(greedy, best, _draw(scores, picking, keys_B))

        return jax.lax.cond(jnp.all(greedy), lambda: best, mixed)

    return jax.lax.cond(jnp.all(greedy) & ~jnp.any(penalized), plain, general)


def _draw(scores_BV, picking: Picking, keys_B):
    warm = cut(scores_BV / picking.temperature[:, None], picking)
    return jax.vmap(jax.random.categorical)(keys_B(), warm).astype(jnp.int32)
