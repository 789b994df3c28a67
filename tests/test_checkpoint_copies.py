"""Copies of a train state: equal, apart from what they were made of, and in the same memory from save to save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax.checkpoint_copies import Copies

DTYPES = ["float32", "bfloat16", "int32", "bool", "uint8"]


def state_of(start: int) -> dict[str, jax.Array]:
    leaves = {dtype: jnp.arange(start, start + 6 * 7).reshape(6, 7).astype(dtype) for dtype in DTYPES}
    return leaves | {"scalar": jnp.asarray(start, jnp.int32), "none": jnp.zeros((0, 3))}


def places(leaves: dict[str, jax.Array]) -> dict[str, int]:
    return {name: leaf.unsafe_buffer_pointer() for name, leaf in leaves.items() if leaf.size}


def check(copies: dict[str, jax.Array], leaves: dict[str, jax.Array]) -> None:
    assert copies.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert (copies[name].dtype, copies[name].sharding) == (leaf.dtype, leaf.sharding), name
        np.testing.assert_array_equal(np.asarray(copies[name]), np.asarray(leaf), err_msg=name)


@pytest.mark.parametrize("prepared", [False, True])
def test_copies_are_equal_and_lie_elsewhere(prepared):
    copies, leaves = Copies(), state_of(0)
    if prepared:
        copies.prepare(abstract(leaves))
    made = copies.of(leaves)
    check(made, leaves)
    assert not set(places(made).values()) & set(places(leaves).values())


def abstract(leaves: dict[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in leaves.items()}


def test_the_next_save_uses_the_memory_of_the_one_before():
    copies = Copies()
    first = places(copies.of(state_of(0)))
    later = state_of(50)
    made = copies.of(later)
    check(made, later)
    assert places(made) == first


def test_arrays_that_change_their_form_get_memory_of_their_own():
    copies = Copies()
    copies.of({"x": jnp.zeros((4, 4))})
    for leaf in (jnp.ones((2, 3)), jnp.ones((2, 3), jnp.bfloat16), jnp.ones((4, 4))):
        check(copies.of({"x": leaf}), {"x": leaf})


def test_arrays_over_several_devices_are_copied_as_they_lie():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("a",))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names)) for names in (("a",), ()))
    leaves = {"split": jax.device_put(np.arange(64.0), split), "whole": jax.device_put(np.arange(5), whole)}
    copies = Copies()
    copies.prepare(abstract(leaves))
    made = copies.of(leaves)
    check(made, leaves)
    for name, leaf in leaves.items():
        pairs = zip(made[name].addressable_shards, leaf.addressable_shards, strict=True)
        assert all(a.data.unsafe_buffer_pointer() != b.data.unsafe_buffer_pointer() for a, b in pairs)
