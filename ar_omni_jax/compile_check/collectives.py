"""Which collectives a compiled step runs, how often, and how many bytes they move."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

from ar_omni_jax.compile_check.hlo import Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
KINDS += ("collective-broadcast",)
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: of KINDS. name: the instruction's. times: runs a step. group: devices that take part together.
      bytes: of the whole array of one group, once: what an all-gather makes, what an all-reduce or reduce-scatter
        starts from on each device.
      crosses: it joins devices of different slices.
    """

    kind: str
    name: str
    times: int
    group: int
    bytes: int
    crosses: bool = False

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device must receive in one run, by the ring: (g - 1) / g of the array, twice for an
        all-reduce, all of it for a permutation."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        share = (self.group - 1) / self.group
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def find_collectives(program: Program, devices: int, slices: int = 1) -> list[Collective]:
    """All collectives of a program over `devices` devices, the first devices / slices of them in the first slice.

    Communication inside one device (groups of one) is left out. An all-reduce inside a fusion that keeps only a
    slice of it is the TPU's reduce-scatter and counts as one. A collective that the TPU spreads over several fusions,
    each with a piece of other work beside it, stands in all of them with one channel and counts once. Between TPU
    slices every device hands its part to the host, which does the rest: a `send` that says what it is for.
    """
    found, seen = [], set()
    for computation, times in program.running():
        for instruction in computation.instructions.values():
            if instruction.opcode == "send" and (purpose := _TRANSFER.search(instruction.rest)):
                kind, part = purpose[1].lower().replace("_", "-"), instruction.results[0].bytes
                found.append(Collective(kind, instruction.name, times, slices, part, crosses=True))
                continue
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or instruction.opcode.endswith("-done"):
                continue
            spread = (program.homes[computation.name], instruction.attribute("channel_id"))
            if computation.fused and spread in seen:
                continue
            seen.add(spread)
            groups = device_groups(instruction, devices)
            size = max(map(len, groups), default=devices)
            if size < 2:
                continue
            whole = _bytes(instruction, computation, kind)
            if kind == "all-reduce" and _keeps_a_slice(computation, instruction):
                kind = "reduce-scatter"
            per_slice = devices // slices
            crosses = any(len({d // per_slice for d in group}) > 1 for group in groups) if slices > 1 else False
            found.append(Collective(kind, instruction.name, times, size, whole, crosses))
    return found


def _bytes(instruction: Instruction, computation: Computation, kind: str) -> int:
    """Bytes of the larger side; "-start" results in both sides, in one tuple."""
    results = sum(array.bytes for array in instruction.results)
    given = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
    operands = sum(array.bytes for source in given for array in source.results)
    if instruction.opcode == "collective-permute-start":  # (source, destination, semaphores)
        results = instruction.results[1].bytes
    elif instruction.opcode == "all-gather-start":
        results = max(results - operands, 0)
    return results if kind in ("all-gather", "collective-permute") else max(operands, results if not given else 0)


def _keeps_a_slice(computation: Computation, instruction: Instruction) -> bool:
    """True for an all-reduce in a fused computation whose only reader cuts a piece out."""
    if "all-reduce-scatter" in computation.name:
        return True
    users = computation.users.get(instruction.name, [])
    return computation.fused and len(users) == 1 and users[0].opcode == "dynamic-slice"


def device_groups(instruction: Instruction, devices: int) -> list[tuple[int, ...]]:
    """The groups of devices that talk to each other, by their number in the program's mesh.

    Understands lists ({{0,1},{2,3}}), strided ones ([2,4]<=[4,2]T(1,0)), axes of a mesh (mesh['a'=2,'b'=4] {'b'}) and
    pairs of a permutation; no groups at all means that every device takes part.
    """
    if pairs := instruction.attribute("source_target_pairs"):
        return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs) if a != b] or [(0,)]
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.rest):
        return _mesh_groups(match[1], match[2])
    text = instruction.attribute("replica_groups")
    if match := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        groups, shape = (tuple(map(int, part.split(","))) for part in match.group(1, 2))
        order = tuple(map(int, match[3].split(","))) if match[3] else tuple(range(len(shape)))
        ids = _transposed(shape, order)
        size = groups[-1]
        return [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]
    listed = [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", text)]
    return listed or [tuple(range(devices))]


def _mesh_groups(axes: str, taken: str) -> list[tuple[int, ...]]:
    """Groups along the `taken` axes of a mesh; 'b':(2)4 is the part of axis b of size 4 that has 2 before it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    shape, together = [], []  # every axis in up to three parts: before, taken, after
    parts = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", taken)}
    for name, size in sizes.items():
        before, part = (int(n or d) for n, d in zip(parts.get(name, ("", "")), (1, size), strict=True))
        shape += [before, part, size // before // part]
        together += [len(shape) - 2] if name in parts else []
    apart = [axis for axis in range(len(shape)) if axis not in together]
    ids = _transposed(tuple(shape), (*apart, *together))
    group = math.prod(shape[axis] for axis in together)
    return [tuple(ids[i : i + group]) for i in range(0, len(ids), group)]


def _transposed(shape: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """Numbers 0, 1, ... of an array of `shape` in the order of its transpose."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    ids = [0]
    for axis in order:
        ids = [base + i * strides[axis] for base in ids for i in range(shape[axis])]
    return ids


def summarize(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """{kind: {"instructions", "runs", "bytes", "wire_bytes"}} a step, kinds over slices apart ("... (slices)")."""
    out: dict[str, dict[str, float]] = {}
    for one in collectives:
        kind = f"{one.kind} (slices)" if one.crosses else one.kind
        row = out.setdefault(kind, {"instructions": 0, "runs": 0, "bytes": 0, "wire_bytes": 0.0})
        row["instructions"] += 1
        row["runs"] += one.times
        row["bytes"] += one.bytes * one.times
        row["wire_bytes"] += one.wire_bytes * one.times
    return dict(sorted(out.items()))
