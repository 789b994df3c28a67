"""How long a step takes at least: the time each of the device's limits alone would need, and the MFU that leaves.

This is a bound, not a forecast. Between `overlapped` (arithmetic, memory and network all at once, each at its peak)
and `serial` (one after the other, each at its peak) lies a well-tuned program; published runs of 7B-class models
reach 45 to 65 % MFU on these chips.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ar_omni_jax.compile_check.collectives import Collective
from ar_omni_jax.compile_check.targets import Chip, Target
from ar_omni_jax.training.metrics import PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step, each limit for itself, and what follows.

    Attributes:
      compute: matrix products as compiled, at the dense bfloat16 peak. memory: HBM traffic at its bandwidth.
      links: collectives inside a slice or node. network: collectives between slices.
      useful_flops: of one device and step, by the model's formula. peak: FLOP/s of one device.
    """

    compute: float
    memory: float
    links: float
    network: float
    useful_flops: float
    peak: float

    @property
    def overlapped(self) -> float:
        """The longest of the four."""
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def serial(self) -> float:
        """Their sum."""
        return self.compute + self.memory + self.links + self.network

    @property
    def limit(self) -> str:
        """The name of the longest of the four."""
        names = ("compute", "memory", "links", "network")
        return max(names, key=lambda name: getattr(self, name))

    def mfu(self, seconds: float) -> float:
        """Model FLOP utilization of a step that takes `seconds`."""
        return self.useful_flops / (self.peak * seconds) if seconds else 0.0


def peak_flops(chip: Chip) -> float:
    """Dense bfloat16 FLOP/s, from the table that training's own MFU uses."""
    return next(peak for name, peak in PEAK_FLOPS.items() if chip.kind.startswith(name))


def estimate(
    target: Target, useful_flops: float, product_flops: float, memory_bytes: float, collectives: Sequence[Collective]
) -> Roofline:
    """The limits of a step; all numbers are of one device.

    Args:
      useful_flops: by the model's formula. product_flops, memory_bytes, collectives: as compiled.
    """
    chip = target.chip
    inside = sum(c.times * c.wire_bytes / link_bandwidth(target, c.group) for c in collectives if not c.crosses)
    return Roofline(
        compute=product_flops / peak_flops(chip),
        memory=memory_bytes / chip.hbm_bandwidth,
        links=inside,
        network=sum(c.times * network_bytes(c, target) / chip.network_bandwidth for c in collectives if c.crosses),
        useful_flops=useful_flops,
        peak=peak_flops(chip),
    )


def link_bandwidth(target: Target, group: int) -> float:
    """bytes/s that reach a device in a collective of `group` devices of one slice.

    A group takes the longest axes of the torus first, as many as it needs; each axis has its share of the chip's
    links, and half of that where the axis is open: the chips at its ends hear from one side only.
    """
    chip = target.chip
    axes = sorted(zip(target.shape, target.wraps, strict=True), reverse=True)
    used, reached = 0.0, 1
    for size, wraps in axes:
        if reached >= group or size == 1:
            break
        used += 1.0 if wraps or chip.links == 1 else 0.5
        reached *= size
    return chip.link_bandwidth * max(used, 0.5 if chip.links > 1 else 1.0) / chip.links


def network_bytes(collective: Collective, target: Target) -> float:
    """Bytes that a device receives from other slices: the ring over the slices, the array's share of this device
    within its slice."""
    inside = max(collective.group // target.slices, 1)
    share = (target.slices - 1) / target.slices * (2 if collective.kind == "all-reduce" else 1)
    return collective.bytes / inside * share


def assumptions(target: Target) -> list[str]:
    """What the numbers stand on, for people."""
    chip = target.chip
    ring = math.prod(target.shape)
    lines = [
        f"peak {peak_flops(chip) / 1e12:.0f} TFLOP/s bfloat16, HBM {chip.hbm_bandwidth / 1e12:.2f} TB/s, links "
        f"{link_bandwidth(target, ring) / 1e9:.0f} GB/s into a device over the whole "
        f"{'slice' if chip.platform == 'tpu' else 'node'}"
        + (f", {chip.network_bandwidth / 1e9:.1f} GB/s between slices" if target.slices > 1 else ""),
        f"source: {chip.source}",
        "rows are full (no padding); every limit is reached; no time between kernels; HBM traffic as each array "
        "written once and read once by each reader; collectives as rings",
    ]
    return lines
