import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax.model.cache import decode, empty_cache, prefill
from ar_omni_jax.model.cache import logits_of as cached_logits
from ar_omni_jax.model.decode_weights import make_decode_weights
from tests.model.helpers import logits_of, make_model, tiny_config

LENGTHS = np.array([5, 11, 1], np.int32)
TOTAL = 16


@functools.partial(jax.jit, static_argnums=(1, 4))
def _read(weights, config, tokens, lengths, chunk):
    prompt = tokens[:, : int(LENGTHS.max())]
    last, cache = prefill(weights, config, prompt, lengths, TOTAL + 4)
    out = [cached_logits(weights, last)[:, None]]
    for step in range(0, 4, chunk):
        places = lengths[:, None] + step + jnp.arange(chunk)
        hidden, cache = decode(weights, config, jnp.take_along_axis(tokens, places, axis=1), cache)
        out.append(jax.vmap(functools.partial(cached_logits, weights), 1, 1)(hidden))
    return jnp.concatenate(out, axis=1), cache.lengths


def _cached_logits(model, tokens, lengths, chunk, **options):
    """Logits of the tokens from each row's prompt end on, read `chunk` at a time."""
    return _read(*make_decode_weights(model, **options), tokens, lengths, chunk)


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_placement": "pre", "qk_norm": False, "num_kv_heads": 4},
        {"attention": "blocked", "tie_embeddings": True, "qk_norm_groups": 2},
    ],
)
def test_cached_decoding_equals_the_full_forward(changes, chunk):
    config = tiny_config(**changes)
    model = make_model(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, TOTAL)).astype(np.int32)
    sharded = chunk == 1  # both ways of keeping the matrices
    got, lengths = _cached_logits(model, jnp.asarray(tokens), jnp.asarray(LENGTHS), chunk, sharded=sharded)
    positions = np.tile(np.arange(TOTAL, dtype=np.int32), (3, 1))
    full = logits_of(model, tokens, positions, np.ones_like(tokens))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[row], full[row, length - 1 : length + 4], atol=1e-4)
    assert np.array_equal(lengths, LENGTHS + 4)


def test_decoding_from_an_empty_cache_equals_prefill():
    config = tiny_config()
    model = make_model(config)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (2, 6)), jnp.int32)
    weights, config = make_decode_weights(model)
    last, _ = prefill(weights, config, tokens, jnp.array([6, 6]), 8)
    hidden, cache = decode(weights, config, tokens, empty_cache(config, 2, 8))
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


def test_rows_that_do_not_read_keep_their_place():
    model = make_model(tiny_config())
    weights, config = make_decode_weights(model)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 97, (2, 3)), jnp.int32)
    _, cache = decode(weights, config, tokens, empty_cache(config, 2, 8))
    _, cache = decode(weights, config, tokens[:, :1], cache, jnp.array([True, False]))
    assert cache.lengths.tolist() == [4, 3]
    straight, _ = decode(weights, config, tokens[1:, 2:], empty_cache(config, 1, 8))
    after, _ = decode(weights, config, tokens[:, 1:2], cache)
    again, _ = decode(weights, config, jnp.concatenate([tokens[1:], tokens[1:, 1:2]], 1), empty_cache(config, 1, 8))
    np.testing.assert_allclose(after[1, 0], again[0, -1], atol=1e-5)
    assert not np.allclose(straight[0, 0], after[1, 0], atol=1e-2)
