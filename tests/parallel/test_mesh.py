"""Axis sizes: -1 takes the rest; what cannot be is refused in words."""

import jax
import pytest

from ar_omni_jax.parallel.mesh import MESH_AXES, MeshError, make_mesh, mesh_shape


@pytest.mark.parametrize(
    "sizes,devices,shape",
    [
        ({}, 1, (1, 1, 1, 1)),
        ({"data": -1}, 8, (8, 1, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, 8, (2, 2, 1, 2)),
        ({"data": 1, "fsdp": -1, "sequence": 1, "tensor": 1}, 1, (1, 1, 1, 1)),
        ({"sequence": 4, "tensor": 2}, 8, (1, 1, 4, 2)),
    ],
)
def test_shapes(sizes, devices, shape):
    assert mesh_shape(sizes, devices) == shape


@pytest.mark.parametrize(
    "sizes,devices,message",
    [
        ({"data": 3}, 8, "multiply to 3, not to the 8"),
        ({"data": 3, "fsdp": -1}, 8, "do not divide the 8"),
        ({"data": -1, "fsdp": -1}, 8, "only one"),
        ({"data": 0}, 8, "positive"),
        ({"date": 8}, 8, "date"),
    ],
)
def test_refusals(sizes, devices, message):
    with pytest.raises(MeshError, match=message):
        mesh_shape(sizes, devices)


def test_mesh_over_fake_devices():
    assert len(jax.devices()) == 8
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert mesh.axis_names == MESH_AXES and dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert make_mesh({"data": -1}, jax.devices()[:1]).size == 1
