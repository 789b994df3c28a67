"""Matrices by outputs: the same products, for any shape, and a model that answers as with plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.model.cache import decode, empty_cache, logits_of, prefill
from ar_omni_jax.model.decode_weights import make_decode_weights, transpose_weights
from ar_omni_jax.model.quantized import multiply
from ar_omni_jax.model.transposed import TransposedMatrix, transpose
from tests.model.helpers import make_model, tiny_config


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 200), st.integers(0, 99))
def test_products_equal_the_plain_product(rows, inputs, outputs, seed):
    draw = np.random.default_rng(seed)
    x, w = (draw.standard_normal(shape).astype(np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    made = transpose(jnp.asarray(w))
    assert made.shape == w.shape and made.values.shape == (outputs, inputs)
    ours = multiply(jnp.asarray(x), made)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, x.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 5, 8, 13])
def test_a_row_is_the_same_to_the_bit_wherever_it_stands_and_beside_whom(rows):
    draw = np.random.default_rng(0)
    x, other, w = (jnp.asarray(draw.standard_normal(s), jnp.float32) for s in ((rows, 700), (rows, 700), (700, 300)))
    product, made = jax.jit(multiply), transpose(w)
    alone = product(x, made)
    for place in range(rows):
        mixed = product(other.at[place].set(x[0]), made)
        assert np.array_equal(mixed[place], alone[0])


def test_a_model_with_transposed_matrices_answers_as_before():
    made, config = make_decode_weights(make_model(tiny_config()), "float32")
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (2, 9)), jnp.int32)

    def logits(weights):
        read, _ = prefill(weights, config, tokens, jnp.array([9, 9], jnp.int32), 9)
        hidden, _ = decode(weights, config, tokens, empty_cache(config, 2, 9))
        return np.asarray(logits_of(weights, read)), np.asarray(logits_of(weights, hidden[:, -1]))

    transposed = transpose_weights(made)
    for ours, plain in zip(logits(transposed), logits(made), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    leaves = jax.tree.leaves(transposed, is_leaf=lambda m: isinstance(m, TransposedMatrix))
    assert sum(isinstance(m, TransposedMatrix) for m in leaves) == 4 * config.num_layers + 1  # all, and the output


def test_only_float32_is_transposed():
    for weights in ("int8", "bfloat16"):
        made, _ = make_decode_weights(make_model(tiny_config()), weights)
        kept = zip(jax.tree.leaves(transpose_weights(made)), jax.tree.leaves(made), strict=True)
        assert all(ours is given for ours, given in kept)  # not held twice
