import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.model.cache import decode, empty_cache, prefill, unstack_layers
from tests.model.helpers import logits_of, make_model, tiny_config

LENGTHS = np.array([5, 11, 1], np.int32)
TOTAL = 16


@nnx.jit(static_argnums=3)
def _cached_logits(model, tokens, lengths, chunk):
    """Logits of the tokens from each row's prompt end on, read `chunk` at a time."""
    prompt = tokens[:, : int(LENGTHS.max())]
    last, cache = prefill(model, prompt, lengths, TOTAL + 4)
    layers = unstack_layers(model)
    out = [model.logits(last)[:, None]]
    for step in range(0, 4, chunk):
        places = lengths[:, None] + step + jnp.arange(chunk)
        hidden, cache = decode(model, layers, jnp.take_along_axis(tokens, places, axis=1), cache)
        out.append(model.logits(hidden))
    return jnp.concatenate(out, axis=1), cache.lengths


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"norm_placement": "pre", "qk_norm": False, "num_kv_heads": 4}, {"attention": "blocked"}]
)
def test_cached_decoding_equals_the_full_forward(changes, chunk):
    config = tiny_config(**changes)
    model = make_model(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, TOTAL)).astype(np.int32)
    got, lengths = _cached_logits(model, jnp.asarray(tokens), jnp.asarray(LENGTHS), chunk)
    positions = np.tile(np.arange(TOTAL, dtype=np.int32), (3, 1))
    full = logits_of(model, tokens, positions, np.ones_like(tokens))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[row], full[row, length - 1 : length + 4], atol=1e-4)
    assert np.array_equal(lengths, LENGTHS + 4)


def test_decoding_from_an_empty_cache_equals_prefill():
    config = tiny_config()
    model = make_model(config)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (2, 6)), jnp.int32)
    last, _ = prefill(model, tokens, jnp.array([6, 6]), 8)
    hidden, cache = decode(model, unstack_layers(model), tokens, empty_cache(config, 2, 8))
    np.testing.assert_allclose(hidden[:, -1], last, atol=1e-5)
    assert cache.capacity == 8 and jax.tree.leaves(cache)[0].shape == (2, 2, 8, 8)


def test_bfloat16_cache_follows_the_full_forward():
    config = tiny_config(dtype="bfloat16")
    model = make_model(config)
    tokens = np.random.default_rng(0).integers(0, 97, (3, TOTAL)).astype(np.int32)
    got, _ = _cached_logits(model, jnp.asarray(tokens), jnp.asarray(LENGTHS), 1)
    full = logits_of(model, tokens, np.tile(np.arange(TOTAL, dtype=np.int32), (3, 1)), np.ones_like(tokens))
    expected = np.stack([full[row, n - 1 : n + 4] for row, n in enumerate(LENGTHS)])
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.05 * np.std(expected)
