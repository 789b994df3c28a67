"""int8 weights for decoding: one scale an output channel, activations untouched.

    w[i, o] ~ values[i, o] * scale[o],   scale[o] = max_i |w[i, o]| / 127

A token's products read every weight once, so their bytes are the time. A product must therefore read int8: on
accelerators the conversion is fused into the matrix product; XLA's CPU compiler would first write the whole
matrix in the wider type, so there the product goes over blocks of columns that stay in a core's cache.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ar_omni_jax.model.tiled import TiledMatrix, multiply_tiled
from ar_omni_jax.model.transposed import TransposedMatrix, multiply_transposed

CPU_BLOCK = 1 << 16  # entries of a block that is widened at a time: 256 KiB in float32, inside an L2 cache
LARGEST = 127.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Matrix:
    """values: int8 [I, O]; scale: float32 [O]."""

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape


Matrix = jax.Array | Int8Matrix | TiledMatrix | TransposedMatrix


def quantize(w_IO) -> Int8Matrix:
    """Rounds to the nearest of 255 steps of each output channel. A channel of zeros gets the scale 1."""
    w = w_IO.astype(jnp.float32)
    largest = jnp.max(jnp.abs(w), axis=0)
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
    return Int8Matrix(jnp.round(w / scale).astype(jnp.int8), scale)


def dequantize(matrix: Int8Matrix):
    """float32 [I, O]."""
    return matrix.values.astype(jnp.float32) * matrix.scale


def multiply(x_NI, matrix: Matrix, out_dtype=None):
    """x @ w [N, O] with float32 sums, in `out_dtype` (default: that of x)."""
    out_dtype = out_dtype or x_NI.dtype
    if isinstance(matrix, TiledMatrix):
        return multiply_tiled(x_NI, matrix).astype(out_dtype)
    if isinstance(matrix, TransposedMatrix):
        return multiply_transposed(x_NI, matrix, out_dtype)
    if not isinstance(matrix, Int8Matrix):
        return jnp.matmul(x_NI, matrix, preferred_element_type=out_dtype)
    sums = jax.lax.platform_dependent(x_NI, matrix.values, cpu=_by_blocks, default=_fused)
    return (sums * matrix.scale).astype(out_dtype)


def _fused(x_NI, values_IO):
    return jnp.matmul(x_NI, values_IO.astype(x_NI.dtype), preferred_element_type=jnp.float32)


def _by_blocks(x_NI, values_IO):
    """A loop whose body widens one block of columns."""
    x = x_NI.astype(jnp.float32)
    inner, outer = values_IO.shape
    block = max(1, min(outer, CPU_BLOCK // inner))
    whole = outer // block

    def product(start, width):
        return x @ jax.lax.dynamic_slice(values_IO, (0, start), (inner, width)).astype(jnp.float32)

    def one(n, out):
        return jax.lax.dynamic_update_slice(out, product(n * block, block), (0, n * block))

    out = jax.lax.fori_loop(0, whole, one, jnp.zeros((x.shape[0], outer), jnp.float32))
    if outer % block:
        rest = product(whole * block, outer % block)
        out = jax.lax.dynamic_update_slice(out, rest, (0, whole * block))
    return out
