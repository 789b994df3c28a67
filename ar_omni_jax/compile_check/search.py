"""Remat policies x rows a device: which combinations fit, and which of them are worth having."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.compile_check.cache import CheckFailed, cached_check
from ar_omni_jax.compile_check.targets import GIB, Target
from ar_omni_jax.config import load_config
from ar_omni_jax.model.config import REMAT_POLICIES
from ar_omni_jax.parallel.mesh import MESH_AXES, mesh_shape


class GridError(ValueError):
    """A list of --policies or --rows that cannot be used; the message says why."""


def read_grid(policies: str, rows: str) -> tuple[list[str], list[int]]:
    """The two lists of the command line; GridError with the nearest policy, or the word that is no number of rows."""
    names = [name.strip() for name in policies.split(",") if name.strip()]
    for name in names:
        if name not in REMAT_POLICIES:
            near = difflib.get_close_matches(name, REMAT_POLICIES, 1)
            hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(REMAT_POLICIES)}"
            raise GridError(f"--policies: no remat policy {name!r}; {hint}")
    words = [word.strip() for word in rows.split(",") if word.strip()]
    if wrong := [word for word in words if not word.isdigit() or int(word) < 1]:
        raise GridError(f"--rows: {', '.join(wrong)} is no number of rows")
    if not names or not words:
        raise GridError("--policies and --rows need at least one entry each")
    return names, sorted({int(word) for word in words})


def batch_size(spec: str, overrides: Sequence[tuple[str, str]], target: Target, rows: int) -> int:
    """The global batch of `rows` rows a device in each micro-batch; MeshError when the mesh does not fit."""
    config = load_config(spec, overrides)
    sizes = dict(zip(MESH_AXES, mesh_shape(config.mesh.to_dict(), target.devices), strict=True))
    return rows * sizes["data"] * sizes["fsdp"] * config.optimizer.accumulate


def search(
    spec: str,
    overrides: Sequence[tuple[str, str]],
    target: Target,
    policies: Sequence[str],
    rows: Sequence[int],
    cache: Path,
    say=lambda line: print(line, file=sys.stderr, flush=True),
) -> list[dict[str, Any]]:
    """`report.check` of every combination, those left out whose policy failed to fit with fewer rows.

    Each result also has "policy", "rows" (a device) and "best" (is it on the frontier?); a combination that could not
    be compiled has "error" instead. Raises CheckFailed when none could.
    """
    points: list[dict[str, Any]] = []
    done, total, start = 0, len(policies) * len(rows), time.monotonic()
    for policy in policies:
        full = False
        for count in rows:
            done += 1
            if full:
                continue
            where = {"policy": policy, "rows": count}
            settings = [*overrides, ("model.remat", policy)]
            settings.append(("data.batch_size", str(batch_size(spec, overrides, target, count))))
            try:
                result, known = cached_check(spec, settings, target, cache)
            except CheckFailed as error:
                points.append(where | {"error": str(error)})
                say(f"[{done}/{total}] {_line(points[-1])}")
                continue
            points.append(where | result)
            full = not result["fits"]
            took = "from the cache" if known else f"{time.monotonic() - start:.0f} s so far"
            say(f"[{done}/{total}] {_line(points[-1])}; {took}")
    if points and all("error" in point for point in points):
        raise CheckFailed(points[-1]["error"])
    best = frontier(points)
    return [point | {"best": point in best} for point in points]


def frontier(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that fit and that no other beats in both memory and time a token."""
    usable = [p for p in points if p.get("fits") and "roofline" in p]

    def beats(a, b) -> bool:
        one, other = _cost(a), _cost(b)
        return one != other and all(x <= y for x, y in zip(one, other, strict=True))

    return [p for p in usable if not any(beats(other, p) for other in usable)]


def _cost(point: Mapping[str, Any]) -> tuple[float, float]:
    return point["memory_bytes"]["total"], 1 / point["roofline"]["tokens_per_second_serial"]


def _line(point: Mapping[str, Any]) -> str:
    if "error" in point:
        return f"{point['policy']:<15} {point['rows']:>3} rows a device: {point['error']}"
    text = f"{point['policy']:<15} {point['rows']:>3} rows a device: {point['memory_bytes']['total'] / GIB:7.2f} GiB"
    if not point["fits"]:
        return f"{text}, {point['over_bytes'] / GIB:.2f} GiB too many"
    found = point["roofline"]
    return (
        f"{text}, at least {found['overlapped']:.3f} to {found['serial']:.3f} s a step, MFU at most "
        f"{found['mfu_overlapped']:.1%} to {found['mfu_serial']:.1%}"
    )


def page(points: Sequence[Mapping[str, Any]], target: Target) -> str:
    """The frontier, from the least memory to the most, and what lay behind it."""
    best = sorted((p for p in points if p.get("best")), key=lambda p: p["memory_bytes"]["total"])
    rest = [p for p in points if not p.get("best")]
    lines = [target.describe(), "worth having (nothing else takes less memory and less time a token):"]
    lines += [f"  {_line(p)}" for p in best] or ["  nothing fits"]
    if rest:
        lines += ["the others:"]
        lines += [f"  {_line(p)}" for p in rest]
    return "\n".join(lines)
