"""From logits to one token a row, every row by the strategy of its own grammar state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ar_omni_jax.decoding.grammar import Grammar


def penalize(logits_BV, seen_BV, penalty_B):
    """Repetition penalty: seen ids' logits divided by it where positive, multiplied where negative."""
    penalty = penalty_B[:, None]
    return jnp.where(seen_BV, jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def cut(scores_BV, top_k_B, top_p_B):
    """Sets to -inf what top-k (0 = all) and then top-p, of what is left, rule out. Ties at the edge all
    stay."""
    ordered = -jnp.sort(-scores_BV, axis=-1)
    rank = jnp.arange(scores_BV.shape[-1])
    kept = jnp.where(top_k_B[:, None] > 0, rank < top_k_B[:, None], True)
    probabilities = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # A sum that rounds to just below 1 must not rule out the tail when top_p is 1.
    kept &= (before < top_p_B[:, None]) | (top_p_B[:, None] >= 1.0)
    edge = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores_BV >= edge, scores_BV, -jnp.inf)


def pick(logits_BV, legal_BV, state_B, grammar: Grammar, keys_B, seen_BV=None, *, cuts: bool = True):
    """int32 [B]: the next token of each row, a legal one.

    Args:
      logits_BV: float32. legal_BV: bool, at least one True in a row whose token is used.
      keys_B: a random key a row, so that a row's draw does not depend on the others.
      seen_BV: bool, ids the row holds already; None when no strategy has a repetition penalty.
      cuts: whether any strategy has top_k or top_p (the sort is left out otherwise).
    """
    if seen_BV is not None:
        logits_BV = penalize(logits_BV, seen_BV, grammar.penalty[state_B])
    scores = jnp.where(legal_BV, logits_BV, -jnp.inf)
    likeliest = jnp.argmax(scores, axis=-1)
    greedy = grammar.greedy[state_B]

    def sample():
        warm = scores / grammar.temperature[state_B][:, None]
        if cuts:
            warm = cut(warm, grammar.top_k[state_B], grammar.top_p[state_B])
        drawn = jax.vmap(jax.random.categorical)(keys_B, warm)
        return jnp.where(greedy, likeliest, drawn)

    return jax.lax.cond(jnp.all(greedy), lambda: likeliest, sample).astype(jnp.int32)
