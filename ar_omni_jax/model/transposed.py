"""Matrices that lie in memory by outputs, [O, I], as PyTorch keeps them.

The products are the same; the time that XLA's library on CPUs takes for them is not. Matrices that no cache holds are
multiplied faster so on some processors (`benchmarks/products.py` measures it).

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransposedMatrix:
    """A matrix [I, O]. values: [O, I], in its dtype."""

    values: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[::-1]


def transpose(w_IO) -> TransposedMatrix:
    """The same matrix, by outputs."""
    return TransposedMatrix(w_IO.T)


def multiply_transposed(x_NI, matrix: TransposedMatrix, out_dtype):
    """x @ w [N, O] in `out_dtype`."""
    contracted = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x_NI, matrix.values, contracted, preferred_element_type=out_dtype)
