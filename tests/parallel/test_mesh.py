"""Axis sizes: -1 takes the rest; what cannot be is refused in words."""

import jax
import numpy as np
import pytest

from ar_omni_jax.parallel.mesh import MESH_AXES, MeshError, make_mesh, mesh_shape, slice_count


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


class SliceDevice:
    """As much of a device as the making of a mesh reads."""

    platform, device_kind, process_index = "tpu", "a chip of a test", 0

    def __init__(self, number: int, slice_index: int):
        self.id, self.slice_index = number, slice_index
        self.coords, self.core_on_chip = (number % 2, number // 2 % 2, number // 4), 0

    def __repr__(self):
        return f"device {self.id} of slice {self.slice_index}"


class HostDevice(SliceDevice):
    """A GPU: its slice_index is its host."""

    platform = "gpu"


def slices_of(mesh) -> np.ndarray:
    return np.vectorize(lambda device: device.slice_index)(mesh.devices)


def test_data_alone_crosses_slices():
    # Listed in an order that has nothing to do with their slices.
    devices = [SliceDevice(n, n % 2) for n in range(8)]
    mesh = make_mesh({"data": 4, "tensor": 2}, devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 2}
    assert slices_of(mesh)[:, 0, 0, 0].tolist() == [0, 0, 1, 1]  # the slices are the slow part of data
    assert (slices_of(mesh) == slices_of(mesh)[:, :1, :1, :1]).all()
    mesh = make_mesh({"data": -1, "fsdp": 4}, devices)
    assert slices_of(mesh)[:, :, 0, 0].tolist() == [[0] * 4, [1] * 4]


def test_hosts_of_gpus_are_no_slices():
    devices = [HostDevice(n, n // 4) for n in range(8)]
    assert slice_count(devices) == 1
    assert slices_of(make_mesh({"fsdp": -1}, devices))[0, :, 0, 0].tolist() == [0] * 4 + [1] * 4


def test_slices_that_data_cannot_cross_are_refused():
    devices = [SliceDevice(n, n // 4) for n in range(8)]
    with pytest.raises(MeshError, match="2 slices: data = 1 must be a multiple of 2"):
        make_mesh({"fsdp": -1}, devices)
    with pytest.raises(MeshError, match="2 slices: .*3"):  # 3 devices in one slice, 5 in the other
        make_mesh({"data": 2, "fsdp": 4}, [SliceDevice(n, int(n > 2)) for n in range(8)])
