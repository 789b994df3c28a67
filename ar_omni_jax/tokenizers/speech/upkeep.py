"""Care of a codebook in training: k-means start, moving averages, and new places for unused codes."""

import jax
import jax.numpy as jnp
import numpy as np


def moving_average(
    statistics: dict, embed: jax.Array, vectors: jax.Array, codes: jax.Array, decay: float, active: jax.Array
) -> tuple[dict, jax.Array]:
    """Counts [K] and sums [K, D] of `vectors` [N, D] by code, decayed; embed = sums / counts.

    Counts are per batch, so a code chosen by its fair share has N / K. Nothing changes unless `active`.
    """
    size = embed.shape[0]
    new_counts = jax.ops.segment_sum(jnp.ones_like(codes, jnp.float32), codes, size)
    new_sums = jax.ops.segment_sum(vectors, codes, size)
    counts = decay * statistics["counts"] + (1 - decay) * new_counts
    sums = decay * statistics["sums"] + (1 - decay) * new_sums
    moved = jnp.where(counts[:, None] > 1e-6, sums / jnp.maximum(counts[:, None], 1e-6), embed)
    old = (statistics["counts"], statistics["sums"], embed)
    counts, sums, embed = (jnp.where(active, a, b) for a, b in zip((counts, sums, moved), old, strict=True))
    return {"counts": counts, "sums": sums}, embed


def usage(counts: jax.Array) -> jax.Array:
    """Perplexity of the codes' shares: the number of codes in even use that would be as diverse."""
    shares = counts / jnp.sum(counts)
    return jnp.exp(-jnp.sum(shares * jnp.log(shares + 1e-10)))


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.argmin(np.sum(centres**2, axis=1) - 2.0 * vectors @ centres.T, axis=1)


def kmeans(vectors: np.ndarray, size: int, seed: int, iterations: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """[..., N, D] -> (counts [size] of one batch of N, centres [size, D]); empty clusters move at random."""
    per_batch = vectors.shape[-2]
    flat = vectors.reshape(-1, vectors.shape[-1])
    rng = np.random.default_rng(seed)
    centres = flat[rng.choice(len(flat), size, replace=len(flat) < size)].copy()
    for _ in range(iterations):
        labels = _nearest(flat, centres)
        counts = np.bincount(labels, minlength=size)
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, flat)
        centres = sums / np.maximum(counts, 1)[:, None]
        empty = np.flatnonzero(counts == 0)
        centres[empty] = flat[rng.choice(len(flat), len(empty))]
    return np.maximum(counts, 1) * (per_batch / len(flat)), centres


def revive(
    counts: np.ndarray, embed: np.ndarray, recent: np.ndarray, dead_below: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Move codes with less than `dead_below` of the mean count onto random recent vectors [..., D]."""
    counts, embed = counts.copy(), embed.copy()
    fair = counts.mean()
    dead = np.flatnonzero(counts < dead_below * fair)
    flat = recent.reshape(-1, embed.shape[1])
    embed[dead] = flat[rng.choice(len(flat), len(dead))]
    counts[dead] = fair
    return counts, embed
