"""What a compiled program sends between devices and which arrays it makes, in the words of the tests."""

from __future__ import annotations

import math
from typing import NamedTuple

from ar_omni_jax.compile_check.collectives import KINDS, device_groups
from ar_omni_jax.compile_check.hlo import parse

DEVICES = 8


class Collective(NamedTuple):
    """kind: "all-gather" and so on; dtype; shape: of (one of) its results on a device."""

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _all(text: str):
    return (i for computation in parse(text).computations.values() for i in computation.instructions.values())


def instructions(text: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(operation, dtype, shape) of every result of every instruction of an HLO text."""
    return [(i.opcode, array.dtype, array.shape) for i in _all(text) for array in i.results]


def collectives(text: str) -> list[Collective]:
    """The collectives of an HLO text; asynchronous ones once, where they start; none within groups of one device."""
    found = [i for i in _all(text) if i.opcode.removesuffix("-start") in KINDS]
    found = [i for i in found if max(map(len, device_groups(i, DEVICES))) > 1]
    return [Collective(i.opcode.removesuffix("-start"), array.dtype, array.shape) for i in found for array in i.results]
