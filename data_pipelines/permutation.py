"""Pseudo-random permutations of [0, n) by seed, in memory that does not grow with n."""

from __future__ import annotations

import functools

import numpy as np
from grain.experimental import index_shuffle

# Up to here the permutation is a table. Grain's index_shuffle needs no table, but walks through 65,536 values
# to find one below a small n: measured 200 microseconds an index at n = 100, 3 at n = 20,000.
TABLE_LIMIT = 1 << 20


class Permutation:
    """The permutation of [0, n) that belongs to `seeds` (any number of non-negative integers)."""

    def __init__(self, n: int, *seeds: int):
        if n < 1:
            raise ValueError(f"nothing to permute: n = {n}")
        self.n, self.seeds = n, seeds

    def __call__(self, indices) -> np.ndarray:
        """int64 images of `indices` (int array with values in [0, n))."""
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.n:
            raise IndexError(f"index outside [0, {self.n})")
        if self.n <= TABLE_LIMIT:
            return _table(self.n, self.seeds)[indices]
        seed = int(np.random.SeedSequence(self.seeds).generate_state(1)[0])
        images = [index_shuffle(i, max_index=self.n - 1, seed=seed, rounds=4) for i in indices.ravel().tolist()]
        return np.array(images, np.int64).reshape(indices.shape)


@functools.lru_cache(maxsize=8)
def _table(n: int, seeds: tuple[int, ...]) -> np.ndarray:
    # Raw bits and a stable sort, because NumPy promises only these to stay the same in all versions.
    keys = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(n)
    return np.argsort(keys, kind="stable")
