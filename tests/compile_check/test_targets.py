"""Names of machines: Cloud's counting, shapes, slices, and what is said about a wrong name."""

import pytest

from ar_omni_jax.compile_check.targets import CHIPS, TARGETS, TargetError, describe_targets, find_target
from ar_omni_jax.training.metrics import PEAK_FLOPS


@pytest.mark.parametrize(
    "name,devices,topology",
    [
        ("v5p-8", 4, "v5p:2x2x1"),  # v5p counts TensorCores, two a chip
        ("v5p-64", 32, "v5p:2x4x4"),
        ("v5p-128", 64, "v5p:4x4x4"),
        ("v5e-64", 64, "v5e:8x8"),  # v5e and v6e count chips
        ("v5litepod-64", 64, "v5e:8x8"),
        ("v5e-256", 256, "v5e:16x16"),
        ("v6e-64", 64, "v6e:8x8"),
        ("v6e-256", 256, "v6e:16x16"),
        ("2xv5p-64", 64, "v5p:2x4x4"),
        ("v5p:4x4x8", 128, "v5p:4x4x8"),
        ("4xv6e:4x4", 64, "v6e:4x4"),
    ],
)
def test_devices_and_topology(name, devices, topology):
    target = find_target(name)
    assert (target.devices, target.topology, target.name) == (devices, topology, name)


@pytest.mark.parametrize("name", TARGETS)
def test_the_number_in_a_name_counts_cores(name):
    target = TARGETS[name]
    assert int(name.split("-")[1]) == target.devices * target.chip.cores
    assert name in describe_targets()


@pytest.mark.parametrize(
    "name,near",
    [("v5p-63", "v5p-6"), ("v6-256", "v6e-256"), ("h100-8", "h200-8"), ("2xh200-8", "h200-8"), ("v5e:2x2x2", "v5e")],
)
def test_an_unknown_target_names_the_nearest(name, near):
    with pytest.raises(TargetError, match=f"no target '{name}'; did you mean {near}"):
        find_target(name)


def test_nonsense_lists_all():
    with pytest.raises(TargetError, match="the targets are .*v5p-64.*h200-8"):
        find_target("§§§§")


def test_full_cubes_and_sides_of_sixteen_are_rings():
    assert find_target("v5p-128").wraps == (True, True, True)
    assert find_target("v5p-64").wraps == (False, False, False)
    assert find_target("v5e-256").wraps == (True, True)
    assert find_target("v5e-128").wraps == (False, True)


def test_every_chip_has_a_peak_and_a_source():
    for chip in CHIPS.values():
        assert any(chip.kind.startswith(name) for name in PEAK_FLOPS) and "TFLOP/s" in chip.source
        assert 0 < chip.headroom_bytes < chip.hbm_bytes
