"""The 7B shapes on a mesh of 128 devices that nobody has to own: where every parameter lives, and what it weighs."""

import math

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from ar_omni_jax.model.config import chameleon_7b
from ar_omni_jax.model.transformer import abstract_transformer
from ar_omni_jax.parallel import sharding
from ar_omni_jax.parallel.mesh import MESH_AXES
from ar_omni_jax.training.state import model_logical_axes, model_params

# name: (shape, spec with fsdp and tensor in use, shape of a device's shard with fsdp=16 and tensor=4)
GOLDEN = {
    "embedding": ((65536, 4096), P("tensor", "fsdp"), (16384, 256)),
    "output": ((4096, 65536), P("fsdp", "tensor"), (256, 16384)),
    "final_norm": ((4096,), P(), (4096,)),
    "blocks.wq": ((32, 4096, 32, 128), P(None, "fsdp", "tensor"), (32, 256, 8, 128)),
    "blocks.wk": ((32, 4096, 32, 128), P(None, "fsdp", "tensor"), (32, 256, 8, 128)),
    "blocks.wv": ((32, 4096, 32, 128), P(None, "fsdp", "tensor"), (32, 256, 8, 128)),
    "blocks.wo": ((32, 32, 128, 4096), P(None, "tensor", None, "fsdp"), (32, 8, 128, 256)),
    "blocks.w_gate": ((32, 4096, 11008), P(None, "fsdp", "tensor"), (32, 256, 2752)),
    "blocks.w_up": ((32, 4096, 11008), P(None, "fsdp", "tensor"), (32, 256, 2752)),
    "blocks.w_down": ((32, 11008, 4096), P(None, "tensor", "fsdp"), (32, 2752, 256)),
    "blocks.attention_norm": ((32, 4096), P(), (32, 4096)),
    "blocks.mlp_norm": ((32, 4096), P(), (32, 4096)),
    "blocks.q_norm_weight": ((32, 1, 128), P(), (32, 1, 128)),
    "blocks.q_norm_bias": ((32, 1, 128), P(), (32, 1, 128)),
    "blocks.k_norm_weight": ((32, 1, 128), P(), (32, 1, 128)),
    "blocks.k_norm_bias": ((32, 1, 128), P(), (32, 1, 128)),
}


def abstract_mesh(**sizes) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.get(a, 1) for a in MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def placed(mesh):
    """{name: (ShapeDtypeStruct, NamedSharding)} of the 7B shapes."""
    config = chameleon_7b()
    shapes = model_params(abstract_transformer(config))
    places = sharding.tree_shardings(shapes, model_logical_axes(config), mesh, sharding.LogicalRules())
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(shapes)]
    return dict(zip(names, zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True), strict=True))


def test_every_parameter_of_the_7b():
    table = placed(abstract_mesh(data=2, fsdp=16, tensor=4))
    found = {name: (leaf.shape, place.spec, place.shard_shape(leaf.shape)) for name, (leaf, place) in table.items()}
    assert found == GOLDEN


@pytest.mark.parametrize("sizes", [{"fsdp": 64}, {"fsdp": 256}, {"fsdp": 16, "tensor": 4}, {"fsdp": 32, "sequence": 2}])
def test_the_matrices_split_evenly(sizes):
    """Replicated norms aside, a device has its part of the 7.01e9 parameters and no more."""
    table = placed(abstract_mesh(**sizes))
    here = sum(math.prod(place.shard_shape(leaf.shape)) for leaf, place in table.values())
    total = sum(leaf.size for leaf, _ in table.values())
    parts = sizes["fsdp"] * sizes.get("tensor", 1)
    assert total == chameleon_7b().parameter_count()
    assert total / parts <= here < total / parts * 1.02
