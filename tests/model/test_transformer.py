import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ar_omni_jax.model.attention import attention_function
from ar_omni_jax.model.config import REMAT_POLICIES, ConfigError, TransformerConfig, chameleon_7b
from ar_omni_jax.model.transformer import Transformer, abstract_transformer, logical_axes
from tests.model.helpers import logits_of, make_model, max_difference, packed_batch, tiny_config

PACKED_BACKENDS = ("reference", "blocked", "rowwise")


@pytest.mark.parametrize("backend", PACKED_BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changed", [1, 2])
def test_documents_of_a_row_do_not_see_each_other(backend, dtype, changed):
    config = tiny_config(attention=backend, dtype=dtype)
    model = make_model(config)
    tokens, positions, segments = packed_batch(config.vocab_size)
    before = np.asarray(logits_of(model, tokens, positions, segments))
    other = np.where(segments == changed, (tokens + 1 + positions) % config.vocab_size, tokens)
    other[1] = tokens[1]
    after = np.asarray(logits_of(model, other, positions, segments))
    kept = segments[0] == 3 - changed
    assert np.array_equal(before[0, kept], after[0, kept])
    assert np.array_equal(before[1], after[1])
    assert not np.array_equal(before[0, segments[0] == changed], after[0, segments[0] == changed])


def test_a_packed_document_equals_the_document_alone():
    config = tiny_config()
    model = make_model(config)
    tokens, positions, segments = packed_batch(config.vocab_size)
    packed = logits_of(model, tokens, positions, segments)
    alone = logits_of(model, tokens[:1, 9:20], positions[:1, 9:20], np.ones((1, 11), np.int32))
    np.testing.assert_allclose(packed[0, 9:20], alone[0], atol=1e-5)


def test_future_tokens_change_nothing_and_past_ones_do():
    config = tiny_config()
    model = make_model(config)
    tokens, positions, segments = packed_batch(config.vocab_size)
    other = tokens.copy()
    other[1, 12] = (other[1, 12] + 1) % config.vocab_size
    before, after = (np.asarray(logits_of(model, t, positions, segments)[1]) for t in (tokens, other))
    assert np.array_equal(before[:12], after[:12])
    assert (np.abs(before[12:] - after[12:]).max(axis=-1) > 0).all()


@pytest.mark.parametrize("backend", PACKED_BACKENDS[1:])
@pytest.mark.parametrize("length", [7, 130])
def test_backends_equal_the_reference(backend, length):
    rng = np.random.default_rng(length)
    q, k, v = (jnp.asarray(rng.standard_normal((2, length, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    segments = jnp.asarray(np.sort(rng.integers(0, 4, (2, length)), axis=1), jnp.int32)

    def run(name):
        function = attention_function(tiny_config(attention=name))
        return jax.value_and_grad(lambda *x: (function(*x, segments) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    for a, b in zip(jax.tree.leaves(run(backend)), jax.tree.leaves(run("reference")), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_reference_attention_equals_a_loop_over_queries():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 6, heads, 4)).astype(np.float32) for heads in (4, 2, 2))
    segments = np.array([[1, 1, 2, 2, 2, 0]], np.int32)
    got = attention_function(tiny_config())(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(segments))
    for i in range(5):
        seen = [j for j in range(i + 1) if segments[0, j] == segments[0, i]]
        for h in range(4):
            scores = np.array([q[0, i, h] @ k[0, j, h // 2] for j in seen]) / 2.0
            weights = np.exp(scores - scores.max())
            expected = (weights / weights.sum()) @ v[0, seen, h // 2]
            np.testing.assert_allclose(got[0, i, h], expected, atol=1e-5)


@pytest.mark.parametrize("placement", ["swin", "pre"])
def test_scanned_equals_written_out(placement):
    config = tiny_config(norm_placement=placement)
    batch = packed_batch(config.vocab_size)
    scanned = logits_of(make_model(config), *batch)
    written_out = logits_of(make_model(dataclasses.replace(config, scan_layers=False)), *batch)
    np.testing.assert_allclose(scanned, written_out, atol=1e-5)


def _gradients(config, batch):
    model = make_model(config)

    @nnx.jit
    def gradients(model):
        return nnx.grad(lambda m: jnp.mean(jax.nn.logsumexp(m.logits(m(*batch)), axis=-1) ** 2))(model)

    return nnx.to_pure_dict(gradients(model))


@pytest.mark.parametrize("backend", ["reference", "rowwise"])
def test_remat_policies_give_equal_gradients(backend):
    batch = packed_batch(97)
    plain = _gradients(tiny_config(attention=backend), batch)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 1e-3
    for remat in REMAT_POLICIES[1:]:
        assert max_difference(plain, _gradients(tiny_config(attention=backend, remat=remat), batch)) < 1e-5, remat


def _products(config) -> int:
    """Matrix products in one block's forward and backward pass (the scan body is in the program once)."""
    batch = packed_batch(config.vocab_size)
    graph, state = nnx.split(make_model(config))

    def loss(state):
        return nnx.merge(graph, state)(*batch).sum()

    text = jax.jit(jax.grad(loss)).lower(state).as_text()
    return text.count("stablehlo.dot_general")


def test_remat_policies_recompute_what_they_say():
    counts = {name: _products(tiny_config(remat=name)) for name in REMAT_POLICIES}
    # Forward: 7 projections and 2 in attention; backward: two for each of the 9.
    assert counts["none"] == counts["zero_recompute"] == 27
    assert counts["save_attention"] == 27 + 3  # gate, up and down again: swin-norm needs down's output
    assert counts["full"] == 27 + 9


def test_parameter_count():
    for config in (tiny_config(), tiny_config(tie_embeddings=True), tiny_config(qk_norm=False), chameleon_7b()):
        leaves = jax.tree.leaves(nnx.state(abstract_transformer(config)))
        assert sum(x.size for x in leaves) == config.parameter_count()
    assert round(chameleon_7b().parameter_count() / 1e9, 2) == 7.01
    assert round(chameleon_7b().flops_per_token(1300) / 1e9, 1) == 41.5
    assert round(chameleon_7b().flops_per_token(3456) / 1e9, 1) == 43.2


def test_logical_axes_fit_every_parameter():
    config = tiny_config()
    axes, state = logical_axes(config), nnx.state(abstract_transformer(config))
    assert jax.tree.structure(axes) == jax.tree.structure(state)
    for spec, shape in zip(jax.tree.leaves(axes), jax.tree.leaves(state), strict=True):
        assert isinstance(spec, PartitionSpec) and len(spec) == len(shape.shape)


def test_bfloat16_follows_float32():
    config = tiny_config()
    batch = packed_batch(config.vocab_size)
    exact = logits_of(make_model(config), *batch)
    rough = logits_of(make_model(dataclasses.replace(config, dtype="bfloat16")), *batch)
    assert rough.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((exact - rough) ** 2)) / jnp.std(exact))
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("changes", [{}, {"norm_placement": "pre"}, {"tie_embeddings": True}])
def test_fresh_models_start_near_the_uniform_distribution(changes):
    config = tiny_config(d_model=128, num_layers=6, vocab_size=512, **changes)
    model = Transformer(config, rngs=nnx.Rngs(0))
    batch = packed_batch(512)
    hidden = model(*batch)
    assert 0.9 < float(jnp.sqrt(jnp.mean(hidden**2))) < 1.1
    if not config.tie_embeddings:  # a fresh tied model prefers to repeat its input
        log_probabilities = jax.nn.log_softmax(model.logits(hidden))
        loss = -jnp.mean(log_probabilities[0, :-1][np.arange(23), batch[0][0, 1:]])
        assert abs(float(loss) - np.log(512)) < 0.2


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_layers", 0),
        ("d_model", 2.5),
        ("num_kv_heads", 3),
        ("qk_norm_groups", 4),
        ("head_dim", 7),
        ("norm_placement", "post"),
        ("norm_eps", 0.0),
        ("remat", "some"),
        ("dtype", "int8"),
    ],
)
def test_bad_configuration_names_the_field(field, value):
    with pytest.raises(ConfigError, match=rf"TransformerConfig\.{field} = "):
        tiny_config(**{field: value})


def test_attention_backends_are_refused_at_construction():
    with pytest.raises(ConfigError, match="attention = 'flash'.*reference"):
        Transformer(tiny_config(attention="flash"), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="attention = 'cudnn'.*segment ids.*packed_rows=False"):
        Transformer(tiny_config(attention="cudnn"), rngs=nnx.Rngs(0))
    Transformer(tiny_config(attention="cudnn", packed_rows=False), rngs=nnx.Rngs(0))


def test_rows_longer_than_max_length_are_refused():
    model = make_model(tiny_config(max_length=8))
    with pytest.raises(ConfigError, match="max_length = 8.*24 tokens"):
        model(*packed_batch(97))


def test_config_is_hashable_and_frozen():
    assert hash(tiny_config()) == hash(tiny_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().d_model = 5
    assert isinstance(chameleon_7b(norm_placement="pre"), TransformerConfig)
