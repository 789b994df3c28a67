"""Attention on a mesh equals attention on one device, rows split or not, documents packed, causal.

Float32; sums over keys are the same sums in another grouping: 2e-5 is some hundred units in the last place.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.benchmarks.ring_attention import ring_attention
from ar_omni_jax.model import attention
from ar_omni_jax.model.attention import attention_function, register_attention
from ar_omni_jax.model.config import ConfigError, TransformerConfig
from ar_omni_jax.model.splash import splash_attention, splash_pieces
from ar_omni_jax.model.transformer import abstract_transformer
from ar_omni_jax.parallel.layout import mesh_attention, mesh_layout, mesh_look_up
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.parallel.sharding import LogicalRules

CONFIG = TransformerConfig(64, 2, 32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=32, dtype="float32")
RULES = LogicalRules()


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(attention, "_BACKENDS", dict(attention._BACKENDS))
    pieces = functools.partial(splash_pieces, interpret=True)
    register_attention("interpreted", kernel=True, pieces=pieces)(functools.partial(splash_attention, interpret=True))


def arrays(length, batch=2, seed=0):
    r = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(r.standard_normal((batch, length, n, 8)), jnp.float32) for n in (4, 2, 2))
    return q, k, v, jnp.asarray(np.sort(r.integers(0, 4, (batch, length)), axis=1), jnp.int32)


def value_and_gradients(function, q, k, v, segments):
    weights = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def loss(q, k, v):
        out = function(q, k, v, segments)
        return (out * weights).sum(), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)


@pytest.mark.parametrize(
    "name, mesh, length",
    [
        ("reference", {"sequence": 8}, 40),
        ("blocked", {"sequence": 4, "tensor": 2}, 264),
        ("blocked", {"fsdp": 2, "tensor": 4}, 40),  # two key heads over four devices
        ("rowwise", {"data": 2, "tensor": 2, "fsdp": 1}, 40),
        ("interpreted", {"sequence": 2, "tensor": 2}, 200),
        ("interpreted", {"data": 2, "tensor": 2}, 100),
    ],
    ids=str,
)
def test_value_and_gradients_of_one_device(name, mesh, length):
    given = arrays(length)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    config = dataclasses.replace(CONFIG, attention=name)
    ours = value_and_gradients(mesh_attention(config, make_mesh(mesh, devices), RULES), *given)
    theirs = value_and_gradients(attention_function(CONFIG), *given)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["reference", "blocked", "interpreted"])
def test_documents_of_a_split_row_do_not_see_each_other(name):
    """A document lies across the border of two devices; another one changes: not a bit of it does."""
    q, k, v, _ = arrays(40)
    segments = jnp.asarray(np.repeat([[1, 2, 3], [1, 2, 3]], [13, 16, 11], axis=1), jnp.int32)
    mesh = make_mesh({"sequence": 4}, jax.devices()[:4])
    attend = jax.jit(mesh_attention(dataclasses.replace(CONFIG, attention=name), mesh, RULES))
    before = np.asarray(attend(q, k, v, segments))
    for changed in (1, 2, 3):
        other = [jnp.where((segments == changed)[..., None, None], x + 1.5, x) for x in (q, k, v)]
        after = np.asarray(attend(*other, segments))
        kept = np.asarray(segments) != changed
        assert np.array_equal(before[kept], after[kept])
        assert not np.array_equal(before[~kept], after[~kept])


@pytest.mark.parametrize(
    "mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"sequence": 2, "tensor": 4}], ids=str
)
def test_look_up_moves_rows_and_changes_nothing(mesh):
    r = np.random.default_rng(0)
    table = jnp.asarray(r.standard_normal((64, 32)), jnp.float32)
    ids = jnp.asarray(r.integers(0, 64, (8, 6)), jnp.int32)
    weights = jnp.asarray(r.standard_normal((8, 6, 32)), jnp.float32)
    look_up = functools.partial(mesh_look_up, mesh=make_mesh(mesh), rules=RULES)
    assert np.array_equal(jax.jit(look_up, static_argnums=2)(table, ids, "float32"), table[ids])
    gradient = jax.jit(jax.grad(lambda table: (look_up(table, ids, "float32") * weights).sum()))(table)
    expected = np.zeros((64, 32), np.float32)
    np.add.at(expected, np.asarray(ids), np.asarray(weights))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_what_a_mesh_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="'rowwise': needs whole rows of queries, and mesh.sequence = 8"):
        mesh_layout(dataclasses.replace(CONFIG, attention="rowwise"), make_mesh({"sequence": 8}), RULES)
    with pytest.raises(ConfigError, match="'splash': runs on tpu only"):
        mesh_layout(dataclasses.replace(CONFIG, attention="splash"), make_mesh({"data": 8}), RULES)
    with pytest.raises(ValueError, match="embed = .*sequence.*must be axes that split the batch"):
        arrays = jnp.zeros((8, 8)), jnp.zeros((8, 8), jnp.int32)
        mesh, rules = make_mesh({"sequence": 8}), LogicalRules(embed=("sequence",))
        mesh_look_up(*arrays, "float32", mesh=mesh, rules=rules)


def test_the_ring_that_is_measured_against_computes_the_same():
    given = arrays(512)
    mesh = make_mesh({"sequence": 4}, jax.devices()[:4])
    ours = value_and_gradients(ring_attention(mesh), *given)
    theirs = value_and_gradients(attention_function(CONFIG), *given)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("mesh", [{"fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2}], ids=str)
@pytest.mark.parametrize("policy, forward", [("zero_recompute", 1), ("full", 2)])
def test_the_kernel_runs_as_often_as_on_one_device(mesh, policy, forward):
    """Lowered for TPUs: the policies see the kernel's residuals through the mapping over the mesh."""
    register_attention("anywhere", kernel=True, pieces=splash_pieces)(splash_attention)
    config = TransformerConfig(64, 2, 128, 4, 2, 128, 64, attention="anywhere", remat=policy)
    layout = mesh_layout(config, make_mesh(mesh, jax.devices()[:4]), RULES)
    graph, state = nnx.split(abstract_transformer(config))
    batch = [jnp.ones((2, 256), jnp.int32)] * 3
    gradient = jax.jit(jax.grad(lambda s: nnx.merge(graph, s)(*batch, layout).astype(jnp.float32).sum()))
    text = gradient.trace(state).lower(lowering_platforms=("tpu",)).as_text()
    kernels = re.findall(r"kernel_name = \"splash_mha_(\w+?)_segmented", text)
    assert sorted(kernels) == sorted(["fwd"] * forward + ["dq", "dkv"])
