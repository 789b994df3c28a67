"""Where weights and rows live on a mesh: by the rules of training, heads and cache split alike."""

from __future__ import annotations

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ar_omni_jax.decoding.rows import Rows
from ar_omni_jax.model.cache import CACHE_AXES
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.decode_weights import DecodeWeights, weight_axes
from ar_omni_jax.parallel.sharding import LogicalRules, partition_spec, tree_shardings

RULES = LogicalRules()


def place_weights(weights: DecodeWeights, config: TransformerConfig, int8: bool, mesh: Mesh | None) -> DecodeWeights:
    """The weights on the mesh's devices (as they are without a mesh). They must not be joined."""
    if mesh is None:
        return weights
    return jax.device_put(weights, tree_shardings(weights, weight_axes(config, int8), mesh, RULES))


def place_rows(rows: Rows, mesh: Mesh | None) -> tuple[Rows, tuple | None]:
    """Keys and values by row and head; everything else, which is small, on every device.

    Returns: the rows, and their shardings as `rows.programs` takes them.
    """
    if mesh is None:
        return rows, None

    def place(path, leaf):
        spec = PartitionSpec()
        if leaf.ndim == len(CACHE_AXES) and leaf.shape == rows.cache.keys[0].shape:
            spec = partition_spec(leaf.shape, CACHE_AXES, mesh, RULES, jax.tree_util.keystr(path))
        return NamedSharding(mesh, spec)

    shardings = jax.tree.map_with_path(place, rows)
    leaves, structure = jax.tree.flatten(shardings)
    return jax.device_put(rows, shardings), (structure, tuple(leaves))
