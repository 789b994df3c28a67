"""Which rows of a global batch this process's devices hold, and the global batch from them.

A process is not simply given the p-th part of the rows: on a mesh whose tensor or sequence axis reaches over processes
several of them hold the same rows, and on a torus the devices of one host need not be neighbours in the mesh.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Sharding


def rows_here(sharding: Sharding, shape: tuple[int, int]) -> np.ndarray:
    """Ascending rows of a [B, L] array that devices of this process hold under `sharding`, int64."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    parts = [np.arange(*index[0].indices(shape[0])) for index in indices]
    return np.unique(np.concatenate(parts))


def global_array(rows: np.ndarray, local: np.ndarray, sharding: Sharding, shape: tuple[int, int]) -> jax.Array:
    """The [B, L] array of which this process has `local`, its rows `rows` (`rows_here`), [len(rows), L]."""

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        first = np.searchsorted(rows, start)
        return local[first : first + stop - start, index[1]]

    return jax.make_array_from_callback(shape, sharding, part)
