"""The next-token loss on a mesh: every device its own positions, the output matrix gathered once a step."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ar_omni_jax.parallel.sharding import LogicalRules, batch_spec, partition_spec, spec_axes
from ar_omni_jax.training.losses import LossConfig, TokenLosses, token_losses


def mesh_token_losses(mesh: Mesh, rules: LogicalRules, config: LossConfig) -> Callable:
    """(hidden_BLD, unembedding_DV, targets_BL, weights_BL) -> TokenLosses, as `losses.token_losses`.

    Left to XLA, the output matrix's gradient would be summed over the devices with every chunk of logits. Here each
    device sums its own, in float32, and the sums of all are added and scattered once. Vocabulary that is split over
    `tensor` stays split, which XLA does well.
    """
    chunk, z_loss = config.chunk, config.z_loss
    if mesh.size == 1:
        return lambda *arrays: token_losses(*arrays, z_loss, chunk)
    rows = batch_spec(rules, mesh)
    own = tuple(axis for entry in rows for axis in spec_axes(entry))

    def losses(hidden, unembedding, targets, weights):
        spec = partition_spec(unembedding.shape, ("embed", "vocab"), mesh, rules, "the output matrix")
        split = tuple(axis for axis in spec_axes((*spec, None)[0]) if axis in own)

        def on_device(hidden, part, targets, weights):
            matrix = _gather_rounded(part, split, hidden.dtype) if split else part
            sums = token_losses(hidden, matrix, targets, weights, z_loss, chunk)
            return sums._replace(objective=lax.psum(sums.objective, own))

        mapped = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(P(*rows, None), P(split or None), rows, rows),
            out_specs=TokenLosses(P(), rows, rows),
            axis_names=set(own),
            check_vma=False,
        )
        return mapped(hidden, unembedding, targets, weights)

    return losses if own else lambda *arrays: token_losses(*arrays, z_loss, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_rounded(part, axes: tuple[str, ...], dtype):
    """Rows of a matrix from all devices of `axes`, sent in `dtype`; the values are of `part`'s dtype, so that the
    gradient is not rounded before it is summed."""
    return lax.all_gather(part.astype(dtype), axes, axis=0, tiled=True).astype(part.dtype)


def _gather_forward(part, axes, dtype):
    return _gather_rounded(part, axes, dtype), None


def _gather_backward(axes, dtype, _, gradient):
    return (lax.psum_scatter(gradient, axes, scatter_dimension=0, tiled=True),)


_gather_rounded.defvjp(_gather_forward, _gather_backward)
