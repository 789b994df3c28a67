"""Reading compiled programs: which arrays does a program write to memory?"""

from __future__ import annotations

import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")
_FUSED = re.compile(r" fusion\(.*calls=%?([\w.-]+)")

# Names for what is there already.
VIEWS = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant"}


def written_arrays(text: str, least: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """(opcode, dtype, shape) of every instruction that writes an array of at least `least` elements.

    What happens inside a fusion stays in registers: of a fusion only its result counts. A fusion or call that ends
    in a dynamic-update-slice or scatter has that opcode, since it may write in place.
    """
    fused = set(_FUSED.findall(text))
    roots, found, name = {}, [], ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head.group(1)
        elif "ROOT" in line and (match := _INSTRUCTION.match(line)):
            roots[name] = match.group(3)
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head.group(1)
        match = _INSTRUCTION.match(line)
        if not match or name in fused:
            continue
        dtype, shape, opcode = match.groups()
        shape = tuple(int(n) for n in shape.split(",") if n)
        if called := _FUSED.search(line):
            root = roots.get(called.group(1), opcode)
            opcode = root if root in ("dynamic-update-slice", "scatter") else opcode
        if opcode not in VIEWS and math.prod(shape) >= least:
            found.append((opcode, dtype, shape))
    return found
