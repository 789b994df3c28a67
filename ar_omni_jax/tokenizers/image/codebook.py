"""Codebook upkeep: k-means start, moving averages, and a new place for codes that died.

Moving averages (van den Oord et al. 2017, appendix A.1): for each code k, count_k and sum_k follow the number
and the sum of the latents it won in a batch; e_k = sum_k / count_k.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.tokenizers.image.model import nearest_codes


def moving_average(
    statistics: dict[str, jax.Array], latents_ND: jax.Array, codes_N: jax.Array, decay: float
) -> dict[str, jax.Array]:
    """New {"count": [K], "sum": [K, D]} after a batch of N latents, all float32."""
    size = statistics["count"].shape[0]
    count_K = jax.ops.segment_sum(jnp.ones(codes_N.shape, jnp.float32), codes_N, num_segments=size)
    sum_KD = jax.ops.segment_sum(latents_ND, codes_N, num_segments=size)
    return {
        "count": decay * statistics["count"] + (1 - decay) * count_K,
        "sum": decay * statistics["sum"] + (1 - decay) * sum_KD,
    }


def codebook_of(statistics: dict[str, jax.Array]) -> jax.Array:
    """[K, D] codebook of moving averages."""
    return statistics["sum"] / jnp.maximum(statistics["count"], 1e-5)[:, None]


def _squared_distances(points_ND: np.ndarray, centre_D: np.ndarray) -> np.ndarray:
    return np.sum(np.square(points_ND - centre_D), axis=-1)


def spread_choice(points_ND: np.ndarray, distance_N: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the points, [count, D], one by one as k-means++ does: probability ~ squared distance.

    `distance_N` holds the squared distances to the codes that exist already; infinite if there are none.
    """
    distance_N = np.maximum(distance_N.astype(np.float64), 0)
    chosen = []
    for _ in range(count):
        total = distance_N.sum()
        weights = distance_N / total if 0 < total < np.inf else None  # else all points alike
        chosen.append(points_ND[rng.choice(len(points_ND), p=weights)])
        distance_N = np.minimum(distance_N, _squared_distances(points_ND, chosen[-1]))
    return np.stack(chosen)


def k_means(points_ND: np.ndarray, size: int, iterations: int, rng: np.random.Generator) -> np.ndarray:
    """Centres [size, D] of Lloyd's algorithm from a k-means++ start; a centre that wins nothing stays."""
    centres = spread_choice(points_ND, np.full(len(points_ND), np.inf), size, rng)
    assign = jax.jit(nearest_codes)
    for _ in range(iterations):
        codes = np.asarray(assign(points_ND, centres))
        counts = np.bincount(codes, minlength=size)
        sums = np.zeros((size, points_ND.shape[1]), np.float64)
        np.add.at(sums, codes, points_ND)
        used = counts > 0
        centres[used] = (sums[used] / counts[used, None]).astype(np.float32)
    return centres


def revive(codebook_KD: np.ndarray, dead_K: np.ndarray, points_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The codebook with dead codes moved onto latents that the living ones represent worst."""
    living = codebook_KD[~dead_K]
    if len(living):
        nearest = living[np.asarray(nearest_codes(points_ND, living))]
        distance_N = np.sum(np.square(points_ND - nearest), axis=-1)
    else:
        distance_N = np.full(len(points_ND), np.inf)
    revived = codebook_KD.copy()
    revived[dead_K] = spread_choice(points_ND, distance_N, int(dead_K.sum()), rng)
    return revived
