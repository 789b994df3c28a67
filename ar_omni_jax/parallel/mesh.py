"""The device mesh: four named axes, any of them 1; over several slices, `data` crosses them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

# data: replicas of the model, each with its rows of the batch. fsdp: rows of the batch too, and the weights'
# shards. sequence: positions of a row. tensor: heads, feed-forward columns and vocabulary of a layer.
MESH_AXES = ("data", "fsdp", "sequence", "tensor")


class MeshError(ValueError):
    """Axis sizes that no mesh over the given devices can have; the message gives both."""


def mesh_shape(sizes: Mapping[str, int], device_count: int) -> tuple[int, ...]:
    """Sizes of MESH_AXES in order. Absent axes are 1; at most one may be -1, which takes the rest.

    Raises MeshError for an unknown axis, a size that is neither positive nor -1, two axes of -1, or a product
    that is not `device_count`.
    """
    sizes = dict(sizes)
    unknown = sorted(set(sizes) - set(MESH_AXES))
    if unknown:
        raise MeshError(f"unknown mesh axes {unknown}; the axes are {', '.join(MESH_AXES)}")
    shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
    described = _described(shape)
    if any(size < 1 and size != -1 for size in shape):
        raise MeshError(f"mesh {described}: sizes are positive, or -1 for 'the remaining devices'")
    if shape.count(-1) > 1:
        raise MeshError(f"mesh {described}: only one axis may be -1")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and device_count % known == 0:
        shape[shape.index(-1)] = device_count // known
    elif -1 in shape or known != device_count:
        what = "do not divide" if -1 in shape else f"multiply to {known}, not to"
        raise MeshError(f"mesh {described}: the sizes {what} the {device_count} devices; change mesh.* in the config")
    return tuple(shape)


def _described(shape: Sequence[int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with MESH_AXES over `devices` (default: all of them, on all hosts); MeshError when impossible.

    Devices of several slices (TPU devices with different `slice_index`, connected by the data centre's network
    alone): `data` is the axis that crosses slices, its slowest part, so that only gradients, once a step, go over
    that network; every other axis stays within a slice.

    `sizes`: axis -> size, e.g. {"data": -1, "tensor": 2}; see `mesh_shape`.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(sizes, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = slice_count(devices)
    if slices > 1:
        return Mesh(_across_slices(shape, slices, devices), MESH_AXES, axis_types=types)
    if len({getattr(device, "slice_index", None) for device in devices}) > 1:  # hosts of GPUs, which make_mesh refuses
        return Mesh(mesh_utils.create_device_mesh(shape, devices), MESH_AXES, axis_types=types)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)


def slice_count(devices: Sequence[jax.Device]) -> int:
    """Number of TPU slices that the devices belong to. GPUs name their hosts so, whose network carries any axis: 1."""
    return len({(getattr(device, "slice_index", None) or 0) if device.platform == "tpu" else 0 for device in devices})


def _across_slices(shape: tuple[int, ...], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    data = shape[0]
    if data % slices:
        raise MeshError(
            f"mesh {_described(shape)} over {slices} slices: data = {data} must be a multiple of {slices}, because "
            f"only the data axis crosses slices; set mesh.data to {slices} times the replicas within a slice"
        )
    within, across = (data // slices, *shape[1:]), (slices, 1, 1, 1)
    try:
        return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError) as error:
        raise MeshError(f"mesh {_described(shape)} over {slices} slices: {error}") from error
