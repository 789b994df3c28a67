"""The least time of a step, by hand."""

import pytest

from ar_omni_jax.compile_check.collectives import Collective
from ar_omni_jax.compile_check.roofline import assumptions, estimate, link_bandwidth, network_bytes, peak_flops
from ar_omni_jax.compile_check.targets import CHIPS, find_target


def test_each_limit_alone_and_all_together():
    target = find_target("v5p-128")  # full cube: 600 GB/s into each chip
    gather = Collective("all-gather", "", 10, 64, 64_000_000)
    found = estimate(target, useful_flops=459e12, product_flops=2 * 459e12, memory_bytes=2765e9, collectives=[gather])
    assert found.compute == pytest.approx(2.0) and found.memory == pytest.approx(1.0)
    assert found.links == pytest.approx(10 * 63_000_000 / 600e9) and found.network == 0
    assert found.overlapped == pytest.approx(2.0) and found.limit == "compute"
    assert found.serial == pytest.approx(3.0 + found.links)
    assert found.mfu(found.overlapped) == pytest.approx(0.5)


def test_peaks_are_those_of_training():
    assert [peak_flops(CHIPS[name]) for name in ("v5e", "v5p", "v6e", "h200")] == [197e12, 459e12, 918e12, 989e12]


@pytest.mark.parametrize(
    "name,group,bandwidth",
    [
        ("v5p-128", 64, 600e9),
        ("v5p-128", 4, 200e9),  # one axis of three
        ("v5p-64", 32, 300e9),  # no axis is a ring: half
        ("v5p-64", 2, 100e9),
        ("v5e-256", 256, 200e9),
        ("v5e-256", 16, 100e9),
        ("v6e-64", 64, 200e9),
        ("v5p-8", 4, 200e9),  # 2x2x1: the third axis does not exist
        ("h200-8", 8, 450e9),
        ("h200-8", 2, 450e9),
    ],
)
def test_links_of_a_group(name, group, bandwidth):
    assert link_bandwidth(find_target(name), group) == pytest.approx(bandwidth)


def test_between_slices_a_device_receives_its_share_of_the_array():
    target = find_target("2xv5p-64")
    everybody = Collective("all-reduce", "", 1, 64, 3200, crosses=True)
    assert network_bytes(everybody, target) == pytest.approx(3200 / 32)
    pairs = Collective("all-reduce", "", 1, 2, 3200, crosses=True)
    assert network_bytes(pairs, target) == pytest.approx(3200)
    found = estimate(target, 1.0, 0.0, 0.0, [pairs])
    assert found.network == pytest.approx(3200 / 6.25e9) and found.links == 0 and found.limit == "network"


def test_assumptions_name_numbers_and_source():
    text = "\n".join(assumptions(find_target("2xv5p-64")))
    assert "459 TFLOP/s" in text and "300 GB/s" in text and "6.2 GB/s between slices" in text and "docs.cloud" in text
