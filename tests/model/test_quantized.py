"""int8 weights: error bounds, the blocked product against the plain one, a model that hardly changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax.model import quantized
from ar_omni_jax.model.cache import decode, empty_cache, logits_of
from ar_omni_jax.model.config import ConfigError
from ar_omni_jax.model.decode_weights import make_decode_weights
from ar_omni_jax.model.quantized import Int8Matrix, dequantize, multiply, quantize
from tests.model.helpers import make_model, tiny_config


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_rounding_is_to_half_a_step_of_the_channel():
    w = normal(40, 7) * jnp.array([1e-3, 1, 100, 0, 2, 3, 4])
    made = quantize(w)
    assert made.values.dtype == jnp.int8 and made.shape == (40, 7) and made.scale.shape == (7,)
    assert np.all(np.abs(dequantize(made) - w) <= 0.5001 * made.scale)
    assert np.abs(made.values).max(axis=0).tolist() == [127, 127, 127, 0, 127, 127, 127]


@pytest.mark.parametrize("outer", [5, 64, 96, 100])
def test_products_by_blocks_equal_the_plain_product(monkeypatch, outer):
    monkeypatch.setattr(quantized, "CPU_BLOCK", 32 * 30)  # blocks of 32 columns
    made, x = quantize(normal(30, outer)), normal(3, 30, seed=1)
    np.testing.assert_allclose(multiply(x, made), x @ dequantize(made), rtol=1e-5, atol=1e-5)
    half = multiply(x.astype(jnp.bfloat16), made)
    assert half.dtype == jnp.bfloat16 and multiply(x.astype(jnp.bfloat16), made, jnp.float32).dtype == jnp.float32


def test_a_model_in_int8_answers_nearly_as_before():
    model = make_model(tiny_config())
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (2, 9)), jnp.int32)

    def logits(weights):
        made, config = make_decode_weights(model, weights)
        hidden, _ = decode(made, config, tokens, empty_cache(config, 2, 9))
        return np.asarray(logits_of(made, hidden[:, -1])), made

    (plain, _), (eight, made) = logits("float32"), logits("int8")
    assert 0 < np.sqrt(np.mean((plain - eight) ** 2)) < 0.05 * plain.std()
    leaves = jax.tree.leaves(made, is_leaf=lambda m: isinstance(m, Int8Matrix))
    assert sum(isinstance(m, Int8Matrix) for m in leaves) == 4 * 3 + 1  # of three layers, and the output
    with pytest.raises(ConfigError, match="weights = 'int4'"):
        make_decode_weights(model, "int4")
