"""Rules to specs: the table for a whole model, collisions, sizes that do not divide, optimizer states."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import abstract_transformer
from ar_omni_jax.parallel import sharding
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.parallel.sharding import LogicalRules, ShardingError, partition_spec
from ar_omni_jax.training.state import model_logical_axes, model_params

RULES = LogicalRules()

# Parameter -> spec on a mesh with data, fsdp and tensor of 2 each; 2 layers, one key-value head.
TABLE = {
    "embedding": P("tensor", "fsdp"),
    "output": P("fsdp", "tensor"),
    "final_norm": P(),
    "blocks.wq": P(None, "fsdp", "tensor"),
    "blocks.wk": P(None, "fsdp"),  # one head does not split
    "blocks.wv": P(None, "fsdp"),
    "blocks.wo": P(None, "tensor", None, "fsdp"),
    "blocks.w_gate": P(None, "fsdp", "tensor"),
    "blocks.w_up": P(None, "fsdp", "tensor"),
    "blocks.w_down": P(None, "tensor", "fsdp"),
    "blocks.attention_norm": P(),
    "blocks.mlp_norm": P(),
    "blocks.q_norm_weight": P(),
    "blocks.q_norm_bias": P(),
    "blocks.k_norm_weight": P(),
    "blocks.k_norm_bias": P(),
}


def model_shardings(mesh):
    config = TransformerConfig(64, 2, 16, 4, 1, 4, 32)
    shapes = model_params(abstract_transformer(config))
    return shapes, sharding.tree_shardings(shapes, model_logical_axes(config), mesh, RULES)


def named(tree):
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in jax.tree.leaves_with_path(tree)}


def test_table_of_a_model():
    shapes, places = model_shardings(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    assert {name: place.spec for name, place in named(places).items()} == TABLE
    text = sharding.describe(shapes, places)
    assert len(text.splitlines()) == len(TABLE) and "blocks.w_down" in text


def test_one_device_splits_nothing():
    _, places = model_shardings(make_mesh({"data": -1}, jax.devices()[:1]))
    assert {place.spec for place in named(places).values()} == {P()}


def test_optimizer_state_lives_with_its_parameters():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    shapes, places = model_shardings(mesh)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = jax.eval_shape(tx.init, shapes)
    placed = sharding.follow_parameters(state, shapes, places, mesh)
    adam = placed[1][0]
    assert named(adam.mu) == named(places) == named(adam.nu)
    assert adam.count.spec == P()


def test_collisions_are_refused_whatever_the_mesh():
    mesh = make_mesh({"data": -1}, jax.devices()[:1])
    with pytest.raises(ShardingError, match="'embed' and 'mlp'.*'tensor'"):
        partition_spec((8, 8), ("embed", "mlp"), mesh, LogicalRules(embed=("tensor",)), "w_up")


def test_sizes_that_do_not_divide_stay_whole():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert partition_spec((7, 6), ("vocab", "embed"), mesh, RULES) == P(None, "fsdp")
    both = LogicalRules(mlp=("tensor", "data"))
    assert partition_spec((3, 8), ("layers", "mlp"), mesh, both) == P(None, ("tensor", "data"))
    assert partition_spec((3, 6), ("layers", "mlp"), mesh, both) == P(None, "tensor")


def test_wrong_rules_are_named():
    mesh = make_mesh({"data": -1})
    with pytest.raises(ShardingError, match="model"):
        LogicalRules(mlp=("model",))
    with pytest.raises(ShardingError, match="w: no rule for the logical axis 'expert'"):
        partition_spec((8,), ("expert",), mesh, RULES, "w")
    with pytest.raises(ShardingError, match="rank|dimensions"):
        partition_spec((8, 8), ("embed",), mesh, RULES)


def test_batches():
    mesh = make_mesh({"data": 2, "fsdp": 2, "sequence": 2})
    spec = sharding.batch_spec(RULES, mesh)
    assert spec == P(("data", "fsdp"), "sequence")
    array = jax.device_put(np.zeros((8, 6)), NamedSharding(mesh, spec))
    assert array.addressable_shards[0].data.shape == (2, 3)
    assert sharding.batch_spec(RULES, make_mesh({"tensor": 8})) == P(None, None)
