"""Matrices in tiles: the same products, for any shape, and a model that answers as with whole ones."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.model.cache import decode, empty_cache, logits_of
from ar_omni_jax.model.decode_weights import make_decode_weights, tile_weights
from ar_omni_jax.model.quantized import multiply
from ar_omni_jax.model.tiled import TILE_INPUTS, TILE_OUTPUTS, TiledMatrix, tile
from tests.model.helpers import make_model, tiny_config


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 2 * TILE_INPUTS + 3), st.integers(1, 3 * TILE_OUTPUTS), st.integers(0, 99))
def test_products_equal_the_plain_product(rows, inputs, outputs, seed):
    draw = np.random.default_rng(seed)
    x, w = (draw.standard_normal(shape).astype(np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    made = tile(jnp.asarray(w))
    assert made.shape == w.shape and made.tiles.shape[2] <= TILE_INPUTS and made.tiles.shape[3] == TILE_OUTPUTS
    ours = multiply(jnp.asarray(x), made)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, x.astype(np.float64) @ w, rtol=1e-5, atol=1e-5)


def test_a_row_knows_nothing_of_its_neighbours():
    draw = np.random.default_rng(0)
    x, other, w = (jnp.asarray(draw.standard_normal(s), jnp.float32) for s in ((4, 200), (4, 200), (200, 150)))
    product = jax.jit(multiply)
    made = tile(w)
    mixed = product(other.at[2].set(x[2]), made)
    assert np.array_equal(mixed[2], product(x, made)[2]) and not np.array_equal(mixed[1], product(x, made)[1])


def test_a_model_in_tiles_answers_as_before():
    model = make_model(tiny_config())
    made, config = make_decode_weights(model, "float32")
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (2, 9)), jnp.int32)

    def logits(weights):
        hidden, _ = decode(weights, config, tokens, empty_cache(config, 2, 9))
        return np.asarray(logits_of(weights, hidden[:, -1]))

    tiled = tile_weights(made)
    np.testing.assert_allclose(logits(tiled), logits(made), rtol=1e-4, atol=1e-5)
    leaves = jax.tree.leaves(tiled, is_leaf=lambda m: isinstance(m, TiledMatrix))
    assert sum(isinstance(m, TiledMatrix) for m in leaves) == 4 * config.num_layers + 1  # all, and the output


def test_only_float32_is_tiled():
    for weights in ("int8", "bfloat16"):
        made, _ = make_decode_weights(make_model(tiny_config()), weights)
        kept = zip(jax.tree.leaves(tile_weights(made)), jax.tree.leaves(made), strict=True)
        assert all(ours is given for ours, given in kept)  # not held twice
