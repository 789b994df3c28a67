"""Compiled programs as text -> instructions, and how often each runs.

XLA's text of an optimized program is the one description that every backend gives. `cost_analysis` counts the body
of a loop once, so with layers in a scan it misses nearly everything; here a loop's body counts as often as the loop
turns (`known_trip_count`, which the compiler writes beside each loop it understands).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2, "c64": 8, "c128": 16}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*->.*\{")
_END = re.compile(r"^\}(?:, execution_thread=\S*)?\s*$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.-]+))")
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result. `space` 0 is the device's main memory, others are on the chip."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles."""
        if self.dtype in BYTES:
            return self.size * BYTES[self.dtype]
        bits = re.match(r"[a-z]+(\d+)", self.dtype)  # f32, s8, u4, f8e4m3fn
        return math.ceil(self.size * int(bits[1]) / 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`operands` are names in the same computation; `rest` is what stands behind them, attributes and metadata (of a
    constant its value, of a parameter its number)."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    def attribute(self, name: str) -> str:
        """The text of an attribute, with its brackets; "" when there is none."""
        match = re.search(rf"\b{name}=", self.rest)
        if not match:
            return ""
        depth = 0
        for end, letter in enumerate(self.rest[match.end() :], match.end()):
            depth += (letter in "([{") - (letter in ")]}")
            if depth == 0 and letter in ", ":
                return self.rest[match.end() : end]
        return self.rest[match.end() :]

    @property
    def called(self) -> dict[str, str]:
        """{"calls" | "body" | "condition" | "to_apply": computation}."""
        return {role: name for role, name in _CALLED.findall(self.rest)}

    @property
    def branches(self) -> list[str]:
        """Computations of a conditional."""
        found = []
        for many, one in _BRANCHES.findall(self.rest):
            found += [one] if one else [name.strip().lstrip("%") for name in many.split(",")]
        return found


@dataclasses.dataclass
class Computation:
    """Instructions by name, in order. `fused`: some fusion's inside, whose results stay in registers."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    fused: bool = False

    @property
    def root(self) -> Instruction | None:
        return next((i for i in self.instructions.values() if i.root), None)

    def operand(self, instruction: Instruction, index: int) -> Array:
        """The array that an instruction reads."""
        return self.instructions[instruction.operands[index]].results[0]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> the instructions that read it."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found


@dataclasses.dataclass
class Program:
    """A compiled program.

    Attributes:
      times: how often each computation runs. homes: the computation in whose order it runs, its own name or, for the
        inside of a fusion, the one that the fusion stands in.
      unknown_loops: loops counted as one turn each.
    """

    computations: dict[str, Computation]
    entry: str
    times: dict[str, int] = dataclasses.field(default_factory=dict)
    homes: dict[str, str] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0

    def running(self) -> Iterator[tuple[Computation, int]]:
        """(computation, times) of everything that runs, fused computations included."""
        for name, times in self.times.items():
            yield self.computations[name], times


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _whole_lines(text):
        if head := _HEAD.match(line):
            current = computations[head[2]] = Computation(head[2])
            entry = head[2] if head[1] else entry
        elif current is not None and (instruction := _instruction(line)):
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    program = Program(computations, entry)
    _count(program, entry, 1, entry)
    return program


def _whole_lines(text: str) -> Iterator[str]:
    """Heads of computations and whole instructions; metadata of kernels may run over several lines."""
    waiting = ""
    for line in text.splitlines():
        if _NAME.match(line) or _HEAD.match(line) or _END.match(line):
            if waiting:
                yield waiting
            waiting = "" if _END.match(line) else line
        elif waiting:
            waiting += line
    if waiting:
        yield waiting


def _instruction(line: str) -> Instruction | None:
    line = _COMMENT.sub("", line)
    match = _NAME.match(line)
    if not match:
        return None
    body = line[match.end() :]
    end = _closing(body, 0) + 1 if body.startswith("(") else body.index(" ")
    types, body = body[:end], body[end:].lstrip()
    opening = body.index("(")
    end = _closing(body, opening)
    results = tuple(
        Array(dtype, tuple(int(n.lstrip("<=")) for n in shape.split(",") if n), _space(layout))
        for dtype, shape, layout in _ARRAY.findall(types)
    )
    operands = tuple(_OPERAND.findall(body[opening + 1 : end]))
    opcode, inside, rest = body[:opening], body[opening + 1 : end], body[end + 1 :].lstrip(", ")
    if opcode in ("constant", "parameter"):
        rest = inside
    return Instruction(match[2], opcode, results, operands, rest, bool(match[1]))


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _space(layout: str) -> int:
    match = re.search(r"S\((\d+)\)", layout)
    return int(match[1]) if match else 0


def _count(program: Program, name: str, times: int, home: str) -> None:
    """Adds `times` runs of a computation and of all that it calls."""
    computation = program.computations.get(name)
    if computation is None:
        return
    program.times[name] = program.times.get(name, 0) + times
    program.homes[name] = home
    for instruction in computation.instructions.values():
        called = instruction.called
        if instruction.opcode == "while":
            turns = _turns(program, computation, instruction)
            program.unknown_loops += turns is None
            _count(program, called.get("body", ""), times * (1 if turns is None else turns), called.get("body", ""))
        elif instruction.opcode == "conditional":
            for branch in instruction.branches:  # one of them runs; which is not known, so all count
                _count(program, branch, times, branch)
        elif "calls" in called:
            inner = program.computations.get(called["calls"])
            if inner and instruction.opcode == "fusion":
                inner.fused = True
            _count(program, called["calls"], times, home)
        elif instruction.opcode == "call" and "to_apply" in called:
            _count(program, called["to_apply"], times, home)


def _turns(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs: as the compiler says, or counted from a counter that stays below a constant."""
    if match := _TRIPS.search(loop.rest):
        return int(match[1])
    body, condition = (program.computations.get(loop.called.get(role, "")) for role in ("body", "condition"))
    test = condition.root if condition else None
    if not body or not test or test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    bound = _constant(condition, test.operands[1])
    index = condition.instructions[test.operands[0]].attribute("index")
    given, result = computation.instructions[loop.operands[0]], body.root
    if bound is None or not index or given.opcode != "tuple" or result is None or result.opcode != "tuple":
        return None
    start, counted = _constant(computation, given.operands[int(index)]), body.instructions[result.operands[int(index)]]
    step = _constant(body, counted.operands[1]) if counted.opcode == "add" else None
    return None if start is None or not step or step < 0 else max(0, -(-(bound - start) // step))


def _constant(computation: Computation, name: str) -> int | None:
    """The integer that a value is, through copies; None when it is computed."""
    instruction = computation.instructions[name]
    while instruction.opcode == "copy":
        instruction = computation.instructions[instruction.operands[0]]
    integer = instruction.opcode == "constant" and instruction.rest.lstrip("-").isdigit()
    return int(instruction.rest) if integer else None
