"""The forward pass on a mesh: `model/layout.py`'s functions, each device doing its own part.

What XLA would find by itself is not left to it where a wrong guess costs: weights are gathered (never activations),
in the dtype of the products; the embedding's rows travel, not its table; attention is computed where its rows are.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ar_omni_jax.model import layout, remat
from ar_omni_jax.model.attention import attention_backend, attention_name
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.layout import Layout
from ar_omni_jax.model.transformer import logical_axes
from ar_omni_jax.parallel.sharding import LogicalRules, axis_product, batch_spec, partition_spec, spec_axes


def mesh_layout(config: TransformerConfig, mesh: Mesh, rules: LogicalRules) -> Layout:
    """The layout for arrays on `mesh`; on one device it is the plain one.

    Raises ConfigError when the mesh's devices lack the attention backend, or it cannot take split rows.
    """
    platform = mesh.devices.flat[0].platform
    if mesh.size == 1:
        return layout.one_device(config, platform)
    hidden = NamedSharding(mesh, P(*batch_spec(rules, mesh), None))
    return Layout(
        attention=mesh_attention(config, mesh, rules),
        look_up=functools.partial(mesh_look_up, mesh=mesh, rules=rules),
        hidden=lambda x: lax.with_sharding_constraint(x, hidden),
        weights=functools.partial(_gather_layer, config=config, mesh=mesh, rules=rules),
        gathers=axis_product(rules.embed, mesh) > 1,
    )


# ------------------------------------------------------------------------------------------------------ attention


def mesh_attention(config: TransformerConfig, mesh: Mesh, rules: LogicalRules):
    """The attention backend, each device on its own rows and heads; arguments as in `model/attention.py`.

    Where rows are split over `sequence` (context parallelism), a device has a piece of the queries and gathers the
    row's keys, values and segment ids. The gradients of keys and values are summed and scattered again.

    Key heads that do not split as the query heads do are repeated for each query head first.
    """
    pieces = axis_product(rules.length, mesh)
    platform = mesh.devices.flat[0].platform
    backend = attention_backend(attention_name(config, platform, pieces))
    rows = batch_spec(rules, mesh)
    heads = partition_spec((config.num_heads,), ("heads",), mesh, rules, "queries")
    key_heads = partition_spec((config.num_kv_heads,), ("kv_heads",), mesh, rules, "keys")
    split = P(*rows, *(tuple(heads) or (None,)), None)
    length_axes = spec_axes(rows[1])

    def on_device(q, k, v, segments):
        if pieces == 1:
            return backend.function(q, k, v, segments)
        first = lax.axis_index(length_axes) * q.shape[1]
        k, v, ids = (lax.all_gather(x, length_axes, axis=1, tiled=True) for x in (k, v, segments))
        return backend.pieces(q, k, v, segments, ids, first)

    # Kernels do not say over which axes their results vary, so the check of that is off.
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(split,) * 3 + (rows,), out_specs=split, check_vma=False)

    def attend(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL):
        if key_heads != heads:
            groups = config.num_heads // config.num_kv_heads
            k_BLGK, v_BLGK = (jnp.repeat(x, groups, axis=2) for x in (k_BLGK, v_BLGK))
        return mapped(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL)

    return attend


# ------------------------------------------------------------------------------------------------------ embedding


def mesh_look_up(table_VD, tokens_BL, dtype, *, mesh: Mesh, rules: LogicalRules):
    """Rows of a table that is split over vocabulary and width: [B, L, D] in `dtype`, split as the tokens are.

    Devices that share the table's width tell each other their ids, look up their columns for all of them, and send
    every device the columns of its own ids. Devices that share the vocabulary add up: all but one have zeros. The
    table itself stays where it is, and so does its gradient.
    """
    table = partition_spec(table_VD.shape, ("vocab", "embed"), mesh, rules, "embedding")
    vocabulary, width = (spec_axes(entry) for entry in (*table, None, None)[:2])
    rows = batch_spec(rules, mesh)
    if not set(width) <= set(spec_axes(rows[0])):
        raise ValueError(f"rules: embed = {width} must be axes that split the batch, {spec_axes(rows[0])}")

    def on_device(table, ids):
        if width:
            ids = lax.all_gather(ids, width, axis=0, tiled=True)
        if vocabulary:
            ids = ids - lax.axis_index(vocabulary) * table.shape[0]
            mine = (ids >= 0) & (ids < table.shape[0])
            found = jnp.where(mine[..., None], table[jnp.clip(ids, 0, table.shape[0] - 1)], 0).astype(dtype)
        else:
            found = table[ids].astype(dtype)
        if width:
            found = lax.all_to_all(found, width, split_axis=0, concat_axis=2, tiled=True)
        return lax.psum(found, vocabulary) if vocabulary else found

    specs = {"in_specs": (table, rows), "out_specs": P(*rows, None)}
    return jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)(table_VD, tokens_BL)


# -------------------------------------------------------------------------------------------------------- weights


def _gather_layer(weights, *, config: TransformerConfig, mesh: Mesh, rules: LogicalRules):
    """One layer's weights, whole along the axes that split the batch, matrices in the dtype of the products."""
    leaves, structure = jax.tree.flatten(weights)
    names = jax.tree.leaves(logical_axes(config)["blocks"])
    batch = spec_axes(batch_spec(rules, mesh)[0])
    out = []
    for leaf, axes in zip(leaves, names, strict=True):
        stored = partition_spec(leaf.shape, tuple(axes)[1:], mesh, rules, "a layer's weight")
        whole = P(*(entry if not set(spec_axes(entry)) & set(batch) else None for entry in stored))
        if leaf.ndim > 1 and whole != stored:
            leaf = _gather(leaf, NamedSharding(mesh, stored), NamedSharding(mesh, whole), config.dtype)
        out.append(leaf)
    return structure.unflatten(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(weight, stored: NamedSharding, whole: NamedSharding, dtype: str):
    """The weight in `dtype`, gathered; its gradient goes back to where the weight is stored."""
    del stored
    narrow = weight.astype(dtype)
    return checkpoint_name(lax.with_sharding_constraint(narrow, whole), remat.WEIGHTS)


def _gather_forward(weight, stored, whole, dtype):
    return _gather(weight, stored, whole, dtype), jnp.zeros((), weight.dtype)


def _gather_backward(stored, whole, dtype, like, gradient):
    del whole, dtype
    return (lax.with_sharding_constraint(gradient, stored).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)
