"""Reads a compiled program: which collectives it has, over which shapes, and which arrays it makes."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ([\w-]+)\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}|\[\d+,1\])")


class Collective(NamedTuple):
    """kind: "all-gather" and so on; dtype; shape: of (one of) its results on a device."""

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _SHAPE.findall(text)]


def instructions(text: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(operation, dtype, shape) of every result of every instruction of an HLO text."""
    found = []
    for line in text.splitlines():
        match = _RESULT.match(line)
        if match:
            found += [(match.group(2), dtype, shape) for dtype, shape in _shapes(match.group(1))]
    return found


def collectives(text: str) -> list[Collective]:
    """The collectives of an HLO text; asynchronous ones once, where they start; none within groups of one device."""
    out = []
    for line in text.splitlines():
        if _ALONE.search(line):
            continue
        for operation, dtype, shape in instructions(line):
            kind = operation.removesuffix("-start")
            if kind in _COLLECTIVES:
                out.append(Collective(kind, dtype, shape))
    return out
