"""The machines that a step can be compiled for: chips with their peaks, slices with their shapes.

Names follow Google Cloud's accelerator types: the number in v5p-64 counts TensorCores, two a chip, so v5p-64 has 32
chips; the number in v5e-64 (which Cloud writes v5litepod-64) and v6e-64 counts chips. "2xv5p-64" is two such slices
joined by the data-centre network, and "v5p:4x4x8" a slice by its shape.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

from ar_omni_jax.machine import GPU_MEMORY_SHARE

GIB = 2**30


class TargetError(ValueError):
    """A target that nobody builds; the message names the nearest one."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as its maker's data sheet has it.

    Attributes:
      kind: start of `device_kind` in training/metrics.py, whose peak FLOP/s it takes.
      platform: JAX's name of it, "tpu" or "cuda".
      hbm_bytes: memory a program may use. headroom_bytes: what must stay free of it, and why (`headroom_reason`).
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s that reach one chip over all its links inside the slice or node, one direction.
      links: axes of the torus (3: v5p, 2: v5e, v6e; 1: a switch).
      network_bandwidth: bytes/s of one chip to other slices or nodes, one direction.
      cores: how many of what the target's number counts there are in a chip.
      source: where the numbers are from.
    """

    kind: str
    platform: str
    hbm_bytes: int
    headroom_bytes: int
    headroom_reason: str
    hbm_bandwidth: float
    link_bandwidth: float
    links: int
    network_bandwidth: float
    cores: int
    source: str


_TPU_HEADROOM = (GIB // 4, "other programs' code and batches on their way")
_H200_BYTES = 150754820096
# Training's pool has the rest of the memory (machine.take_gpu_memory).
_H200_HEADROOM = (
    _H200_BYTES - int(_H200_BYTES * GPU_MEMORY_SHARE),
    "CUDA context, cuBLAS, cuDNN and NCCL buffers, which the compiler does not count",
)
CHIPS = {
    # The compiler's own limit stands for the HBM: it is what is left after the runtime's reserve.
    "v5e": Chip(
        *("TPU v5e", "tpu", int(15.75 * GIB), *_TPU_HEADROOM, 819e9, 200e9, 2, 3.125e9, 1),
        "docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, ICI 400 GB/s both ways, 6.4 Tbit/s a pod",
    ),
    "v5p": Chip(
        *("TPU v5p", "tpu", int(95.74 * GIB), *_TPU_HEADROOM, 2765e9, 600e9, 3, 6.25e9, 2),
        "docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2765 GB/s, ICI 1200 GB/s both ways, DCN 50 Gbit/s",
    ),
    "v6e": Chip(
        *("TPU v6e", "tpu", int(31.25 * GIB), *_TPU_HEADROOM, 1638e9, 400e9, 2, 12.5e9, 1),
        "docs.cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1638 GB/s, ICI 800 GB/s both ways, 25.6 Tbit/s a pod",
    ),
    "h200": Chip(
        *("NVIDIA H200", "cuda", _H200_BYTES, *_H200_HEADROOM, 4800e9, 450e9, 1, 50e9, 1),
        "NVIDIA H200 SXM data sheet: 989 TFLOP/s dense, 141 GB, 4.8 TB/s, NVLink 900 GB/s both ways, 400 Gbit/s a GPU",
    ),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: `slices` slices of `shape` chips each. `name` is what the user typed."""

    name: str
    chip_name: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def devices(self) -> int:
        """Chips in all: one JAX device each."""
        return self.slices * math.prod(self.shape)

    @property
    def topology(self) -> str:
        """The compiler's name of one slice, such as "v5p:2x4x4"."""
        return f"{self.chip_name}:{'x'.join(map(str, self.shape))}"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Of each torus axis: is it closed to a ring? v5p in full cubes of 4x4x4, v5e and v6e where 16 long."""
        if self.chip_name == "v5p":
            return (all(n % 4 == 0 for n in self.shape),) * len(self.shape)
        return tuple(n == 16 for n in self.shape)

    def describe(self) -> str:
        """One line: chips, shape, memory."""
        chip = self.chip
        number = f"; the name counts TensorCores, {chip.cores} a chip" if chip.cores > 1 and "-" in self.name else ""
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        shape = f" ({slices}{self.topology})" if chip.platform == "tpu" else ""
        return f"{self.name}: {self.devices} x {chip.kind}{shape}{number}; {chip.hbm_bytes / GIB:.2f} GiB each"


# Cloud's names -> shapes (its configuration tables for v5e, v5p and v6e).
_SHAPES = {
    "v5e-4": (2, 2),
    "v5e-8": (2, 4),
    "v5e-16": (4, 4),
    "v5e-32": (4, 8),
    "v5e-64": (8, 8),
    "v5e-128": (8, 16),
    "v5e-256": (16, 16),
    "v5p-8": (2, 2, 1),
    "v5p-16": (2, 2, 2),
    "v5p-32": (2, 2, 4),
    "v5p-64": (2, 4, 4),
    "v5p-128": (4, 4, 4),
    "v5p-256": (4, 4, 8),
    "v5p-512": (4, 8, 8),
    "v6e-4": (2, 2),
    "v6e-8": (2, 4),
    "v6e-16": (4, 4),
    "v6e-32": (4, 8),
    "v6e-64": (8, 8),
    "v6e-128": (8, 16),
    "v6e-256": (16, 16),
    "h200-1": (1,),
    "h200-8": (8,),
}
TARGETS = {name: Target(name, name.partition("-")[0], shape) for name, shape in _SHAPES.items()}


def find_target(name: str) -> Target:
    """The target of that name; TargetError naming the nearest one when there is none."""
    slices, base = 1, name.strip()
    if match := re.fullmatch(r"(\d+)x(v\w+[-:].*)", base):
        slices, base = int(match[1]), match[2]
    base = base.replace("v5litepod-", "v5e-")
    found = TARGETS.get(base) or _by_shape(base)
    if found is None or slices < 1 or (slices > 1 and found.chip.platform != "tpu"):
        near = difflib.get_close_matches(base, TARGETS, 1, 0.3)
        hint = f"did you mean {near[0]}?" if near else f"the targets are {', '.join(TARGETS)}"
        raise TargetError(f"no target {name!r}; {hint} (also NxTARGET for N TPU slices, or a shape such as v5p:4x4x8)")
    return dataclasses.replace(found, name=name.strip(), slices=slices)


def _by_shape(text: str) -> Target | None:
    match = re.fullmatch(r"(v5e|v5p|v6e):(\d+(?:x\d+)*)", text)
    if not match:
        return None
    shape = tuple(map(int, match[2].split("x")))
    fits = len(shape) == CHIPS[match[1]].links and min(shape) > 0 and math.prod(shape) > 1
    return Target(text, match[1], shape) if fits else None


def describe_targets() -> str:
    """All named targets, one a line."""
    return "\n".join(f"  {target.describe()}" for target in TARGETS.values())
