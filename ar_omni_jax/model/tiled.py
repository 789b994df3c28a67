"""Matrices cut into tiles that lie in memory one after the other, for products with a few rows on one core of a CPU.

Left whole, a matrix is copied into such tiles by XLA's library (Eigen) at every product, which for four rows takes
longer than the product. Of tiles as small as these, and in programs of one thread, XLA's CPU compiler makes loops of
its own that read a tile where it lies (its rule: at most 128 by 128, and at most 32 rows); otherwise the result is
the same, without the gain.

Letters: N rows, I inputs, O outputs; b tiles of outputs, c of inputs, each [i, o].
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

TILE_INPUTS, TILE_OUTPUTS = 128, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiledMatrix:
    """A matrix [I, O]. tiles: [b, c, i, o] in its dtype, zeros beyond its borders."""

    tiles: jax.Array
    inputs: int = dataclasses.field(metadata={"static": True})
    outputs: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        return self.inputs, self.outputs


def tile(w_IO) -> TiledMatrix:
    """Cuts a matrix: inputs evenly into pieces of at most TILE_INPUTS, outputs into pieces of TILE_OUTPUTS."""
    inputs, outputs = w_IO.shape
    b, c = -(-outputs // TILE_OUTPUTS), -(-inputs // TILE_INPUTS)
    i = -(-inputs // c)
    padded = jnp.pad(w_IO, ((0, c * i - inputs), (0, b * TILE_OUTPUTS - outputs)))
    return TiledMatrix(padded.reshape(c, i, b, TILE_OUTPUTS).transpose(2, 0, 1, 3), inputs, outputs)


def multiply_tiled(x_NI, matrix: TiledMatrix):
    """x @ w [N, O] in the dtype of x."""
    b, c, i, _ = matrix.tiles.shape
    rows = x_NI.shape[0]
    x = jnp.pad(x_NI, ((0, 0), (0, c * i - matrix.inputs))).reshape(rows, c, i).transpose(1, 0, 2)
    products = jnp.matmul(jnp.broadcast_to(x, (b, c, rows, i)), matrix.tiles)  # [b, c, N, o]
    return products.sum(axis=1).transpose(1, 0, 2).reshape(rows, -1)[:, : matrix.outputs]
