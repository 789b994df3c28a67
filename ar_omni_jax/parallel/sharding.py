"""Where arrays live: logical axis names of weights and batches -> mesh axes -> NamedShardings."""

from __future__ import annotations

import dataclasses
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ar_omni_jax.parallel.mesh import MESH_AXES


class ShardingError(ValueError):
    """Rules that cannot place an array; the message names the array, its axes and the rule to change."""


@dataclasses.dataclass(frozen=True)
class LogicalRules:
    """The mesh axes that split each logical axis (empty: not split).

    Attributes:
      batch: rows of a batch. Weights never have it, so `fsdp` serves both rows and weights.
      length: positions of a row.
      layers: the leading axis of stacked weights, over which the model scans; splitting it would move every
        layer's weights at every layer.
      vocab: rows of the embedding table and columns of the output matrix.
      embed: the residual stream's width in every weight. Split over `fsdp`: each device keeps a share of each
        weight and gathers a layer's weights when it computes that layer.
      heads, kv_heads, mlp: the inner axes of attention and feed-forward; the split needs one all-reduce a
        branch, after the output projection.
      head_dim, norm, norm_groups: small; never split.
      codebook: channels of the image codebook, the width of the perceptual projection's output.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    length: tuple[str, ...] = ("sequence",)
    layers: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ("tensor",)
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    head_dim: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()
    norm_groups: tuple[str, ...] = ()
    codebook: tuple[str, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            axes = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, field.name, axes)
            wrong = [axis for axis in axes if axis not in MESH_AXES]
            if wrong:
                raise ShardingError(f"rule {field.name} = {axes}: {wrong} are not mesh axes ({', '.join(MESH_AXES)})")

    def mesh_axes(self, logical: str | None, where: str = "an array") -> tuple[str, ...]:
        """Mesh axes of a logical axis; () for None; ShardingError for a name without a rule."""
        if logical is None:
            return ()
        if logical not in {field.name for field in dataclasses.fields(self)}:
            raise ShardingError(f"{where}: no rule for the logical axis {logical!r}; add one to LogicalRules")
        return getattr(self, logical)


def partition_spec(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    mesh: Mesh,
    rules: LogicalRules,
    where: str = "an array",
) -> PartitionSpec:
    """The mesh axes of each dimension of an array with logical `axes`.

    A dimension that the product of its mesh axes does not divide keeps the longest prefix of them that does
    (often none): the array is then replicated along the others, which is correct and costs memory only. Mesh
    axes of size 1 are left out.

    Raises ShardingError when `axes` and `shape` differ in rank, or when two dimensions want one mesh axis (on any
    mesh, whatever its sizes).
    """
    if len(shape) != len(axes):
        raise ShardingError(
            f"{where}: shape {shape} has {len(shape)} dimensions, its logical axes {axes} are {len(axes)}"
        )
    owner: dict[str, str] = {}
    entries = []
    for size, logical in zip(shape, axes, strict=True):
        wanted = rules.mesh_axes(logical, where)
        for axis in wanted:
            if axis in owner:
                raise ShardingError(
                    f"{where}: logical axes {owner[axis]!r} and {logical!r} both want the mesh axis {axis!r}; "
                    "give one of them another rule in LogicalRules"
                )
            owner[axis] = logical
        kept = [axis for axis in wanted if mesh.shape[axis] > 1]
        while kept and size % math.prod(mesh.shape[axis] for axis in kept):
            kept.pop()
        entries.append(None if not kept else kept[0] if len(kept) == 1 else tuple(kept))
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def tree_shardings(shapes, logical, mesh: Mesh, rules: LogicalRules):
    """NamedShardings of a tree of arrays or ShapeDtypeStructs.

    Args:
      shapes: the tree. logical: the same structure, leaves are PartitionSpecs (or tuples) of logical names.
    """
    leaves, structure = jax.tree.flatten_with_path(shapes)
    names = structure.flatten_up_to(logical)
    specs = [
        partition_spec(
            tuple(leaf.shape),
            tuple(axes),
            mesh,
            rules,
            jax.tree_util.keystr(path, simple=True, separator="."),
        )
        for (path, leaf), axes in zip(leaves, names, strict=True)
    ]
    return structure.unflatten([NamedSharding(mesh, spec) for spec in specs])


def follow_parameters(tree, shapes, shardings, mesh: Mesh):
    """Shardings for `tree` (an optimizer state): leaves that mirror a parameter live where the parameter does.

    A leaf mirrors the parameter whose path is the end of its own path and whose shape is its own; every other
    leaf (counters) is replicated. This is needed because `jax.jit(tx.init)(params)` without it replicates.
    """
    places = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True)
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        for start in range(len(path)):
            shape, sharding = places.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree.map_with_path(place, tree)


def batch_spec(rules: LogicalRules, mesh: Mesh) -> PartitionSpec:
    """The spec of a [B, L] batch array: rows over `rules.batch`, positions over `rules.length`."""
    entries = []
    for axes in (rules.batch, rules.length):
        kept = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        entries.append(None if not kept else kept[0] if len(kept) == 1 else kept)
    return PartitionSpec(*entries)


def spec_axes(entry) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec: None, a name, or several."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def axis_product(axes: tuple[str, ...], mesh: Mesh) -> int:
    """Number of shards that `axes` make together."""
    return math.prod(mesh.shape[axis] for axis in axes)


def describe(shapes, shardings) -> str:
    """A table of parameters: path, shape, spec, and MiB on each device."""
    lines = []
    for (path, leaf), sharding in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True):
        local = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize / 2**20
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        lines.append(f"{name:<40} {str(tuple(leaf.shape)):<24} {str(tuple(sharding.spec)):<32} {local:10.3f} MiB")
    return "\n".join(lines)
