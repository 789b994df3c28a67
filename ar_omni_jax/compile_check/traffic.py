"""Bytes that a compiled step reads from and writes to a device's main memory, loops counted as often as they turn."""

from __future__ import annotations

from ar_omni_jax.compile_check.hlo import Array, Computation, Instruction, Program

# Instructions that name, order or call, and move nothing themselves.
_STILL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "after-all"}
_STILL |= {"partition-id", "replica-id", "iota", "opt-barrier", "add-dependency", "domain", "infeed", "outfeed"}
_STILL_CALLS = ("AsyncCollectiveDone", "AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_STILL |= {"async-start", "async-update", "async-done"}  # their computation is counted


def memory_bytes(program: Program) -> int:
    """Bytes that instructions read from and write to the device's main memory.

    Every array that an instruction outside a fusion makes is written once and read once by each of its readers;
    slices and updates in place count as the piece they touch, arrays in the chip's own memory not at all. Caches are
    not modelled, and neither is what a kernel reads twice.
    """
    total = 0
    for computation, times in program.running():
        if computation.fused:
            continue
        for instruction in computation.instructions.values():
            still = instruction.opcode in _STILL or instruction.opcode.endswith("-done")
            if instruction.opcode == "custom-call":
                still = instruction.attribute("custom_call_target").strip('"') in _STILL_CALLS
            if not still:
                total += times * _traffic(program, computation, instruction)
    return total


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
    inner = program.computations.get(instruction.called.get("calls", ""))
    if instruction.opcode == "fusion" and inner is not None:
        return _fusion_traffic(computation, instruction, inner)
    results = sum(a.bytes for a in instruction.results if a.space == 0)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * results
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * computation.operand(instruction, -1 if instruction.opcode == "scatter" else 1).bytes
    if instruction.opcode.endswith("-start") and len(instruction.results) > 1:
        made = 0 if instruction.opcode == "copy-start" else 1  # (destination, source, ...), else the other way
        results = sum(a.bytes for a in instruction.results[made : made + 1] if a.space == 0)
    return results + sum(_read(computation, name) for name in instruction.operands)


def _read(computation: Computation, name: str) -> int:
    source = computation.instructions.get(name)
    return sum(a.bytes for a in source.results if a.space == 0) if source and len(source.results) == 1 else 0


def _fusion_traffic(computation: Computation, fusion: Instruction, inner: Computation) -> int:
    parameters = sorted((i for i in inner.instructions.values() if i.opcode == "parameter"), key=_number)
    root = inner.root
    total = 0
    updated = _updated(inner, root) if root else {}
    for parameter, operand in zip(parameters, fusion.operands, strict=False):
        if parameter.name in updated:
            continue  # updated in place: only the piece counts, below
        whole = _read(computation, operand)
        total += min(whole, _pieces(inner, parameter)) if whole else 0
    for index, array in enumerate(fusion.results):
        if array.space == 0:
            total += _written(inner, root, index, array)
    return total


def _number(parameter: Instruction) -> int:
    return int(parameter.rest)


def _pieces(inner: Computation, parameter: Instruction) -> int:
    """Bytes of a parameter that a fusion reads: those of its slices when all its readers cut pieces out."""
    users = inner.users.get(parameter.name, [])
    if users and all(u.opcode in ("dynamic-slice", "gather") and u.operands[0] == parameter.name for u in users):
        return sum(u.results[0].bytes for u in users)
    return parameter.results[0].bytes if parameter.results else 0


def _outputs(inner: Computation, root: Instruction) -> list[Instruction]:
    if root.opcode != "tuple":
        return [root]
    return [inner.instructions[name] for name in root.operands]


def _behind_views(inner: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in ("bitcast", "convert", "copy") and instruction.operands:
        instruction = inner.instructions[instruction.operands[0]]
    return instruction


def _updated(inner: Computation, root: Instruction) -> dict[str, Instruction]:
    """{parameter: the dynamic-update-slice that writes into it} of a fusion's results."""
    found = {}
    for output in _outputs(inner, root):
        output = _behind_views(inner, output)
        if output.opcode == "dynamic-update-slice":
            found[_behind_views(inner, inner.instructions[output.operands[0]]).name] = output
    return found


def _written(inner: Computation, root: Instruction | None, index: int, array: Array) -> int:
    outputs = _outputs(inner, root) if root else []
    if index < len(outputs):
        output = _behind_views(inner, outputs[index])
        if output.opcode == "dynamic-update-slice":
            return inner.instructions[output.operands[1]].results[0].bytes
    return array.bytes
