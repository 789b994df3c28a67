"""Matrices in tiles, or by outputs: the same products, for any shape, and a model that answers as with plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.model.cache import decode, empty_cache, logits_of, prefill
from ar_omni_jax.model.decode_weights import make_decode_weights, tile_weights, transpose_weights
from ar_omni_jax.model.quantized import multiply
from ar_omni_jax.model.tiled import TILE_INPUTS, TILE_OUTPUTS, TiledMatrix, tile
from ar_omni_jax.model.transposed import TransposedMatrix, transpose
from tests.model.helpers import make_model, tiny_config

FORMS = pytest.mark.parametrize("form", [tile, transpose])
WEIGHT_FORMS = pytest.mark.parametrize(
    ("form", "kind"), [(tile_weights, TiledMatrix), (transpose_weights, TransposedMatrix)]
)


@FORMS
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 2 * TILE_INPUTS + 3), st.integers(1, 3 * TILE_OUTPUTS), st.integers(0, 99))
def test_products_equal_the_plain_product(form, rows, inputs, outputs, seed):
    draw = np.random.default_rng(seed)
    x, w = (draw.standard_normal(shape).astype(np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    made = form(jnp.asarray(w))
    assert made.shape == w.shape
    if form is tile:
        assert made.tiles.shape[2] <= TILE_INPUTS and made.tiles.shape[3] == TILE_OUTPUTS
    ours = multiply(jnp.asarray(x), made)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, x.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)


def test_the_forms_lie_as_they_say():
    w = jnp.arange(float((TILE_INPUTS + 1) * (TILE_OUTPUTS + 1))).reshape(TILE_INPUTS + 1, TILE_OUTPUTS + 1)
    tiles = tile(w).tiles
    assert tiles.shape == (2, 2, TILE_INPUTS // 2 + 1, TILE_OUTPUTS)
    assert np.array_equal(tiles[0, 0], w[: TILE_INPUTS // 2 + 1, :TILE_OUTPUTS])
    assert np.array_equal(transpose(w).values, np.asarray(w).T)


@FORMS
@pytest.mark.parametrize("rows", [2, 5, 8, 13])
def test_a_row_is_the_same_to_the_bit_wherever_it_stands_and_beside_whom(form, rows):
    draw = np.random.default_rng(0)
    x, other, w = (jnp.asarray(draw.standard_normal(s), jnp.float32) for s in ((rows, 200), (rows, 200), (200, 150)))
    product, made = jax.jit(multiply), form(w)
    alone = product(x, made)
    for place in range(rows):
        mixed = product(other.at[place].set(x[0]), made)
        assert np.array_equal(mixed[place], alone[0]) and not np.array_equal(mixed[place - 1], alone[0])


@WEIGHT_FORMS
def test_a_model_answers_as_before(form, kind):
    made, config = make_decode_weights(make_model(tiny_config()), "float32")
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (2, 9)), jnp.int32)

    def logits(weights):
        read, _ = prefill(weights, config, tokens, jnp.array([9, 9], jnp.int32), 9)
        hidden, _ = decode(weights, config, tokens, empty_cache(config, 2, 9))
        return np.asarray(logits_of(weights, read)), np.asarray(logits_of(weights, hidden[:, -1]))

    formed = form(made)
    for ours, plain in zip(logits(formed), logits(made), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    leaves = jax.tree.leaves(formed, is_leaf=lambda m: isinstance(m, kind))
    assert sum(isinstance(m, kind) for m in leaves) == 4 * config.num_layers + 1  # all, and the output
    assert formed.embedding is made.embedding  # not held twice


@WEIGHT_FORMS
@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_what_is_not_float32_stays_as_it_is(form, kind, weights):
    made, _ = make_decode_weights(make_model(tiny_config()), weights)
    kept = zip(jax.tree.leaves(form(made)), jax.tree.leaves(made), strict=True)
    assert all(ours is given for ours, given in kept)
