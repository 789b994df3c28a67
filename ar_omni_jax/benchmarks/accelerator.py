"""Training on the accelerator that is here: useful tokens a second, MFU and memory of the 1B and the 7B model.

  python -m ar_omni_jax.benchmarks.accelerator                     # on an H200: nine minutes at most
  python -m ar_omni_jax.benchmarks.accelerator --only=7b --seconds=300
  python -m ar_omni_jax.benchmarks.accelerator --only=tiny         # on a CPU: does the command work?

The step is the one that `main` jits, on full rows of random ids that lie on the device: no input, no saving. What is
measured stands in accelerator_plan.py, most wanted first, each in a process of its own, so that a point that runs out
of memory costs itself alone. RECORD (--output) is written after each; what --seconds leaves no time for is named.
MFU = useful tokens/s x FLOP a token / the devices' dense bfloat16 peak; the FLOP are counted as in training and
printed. Exit code: 0 every size that was asked for has a figure, 1 one has none, 2 wrong command line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.benchmarks.accelerator_plan import POINTS, SIZES, Point
from ar_omni_jax.benchmarks.record import write_record
from ar_omni_jax.files import replace_file
from ar_omni_jax.machine import take_gpu_memory

GOAL = 0.55  # MFU
LEAST = 30.0  # seconds; with less left no point is begun
GIB = 2**30


class PointFailed(RuntimeError):
    """A point without a figure; the message says why."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--only", default="1b,7b", metavar="A,B", help=f"sizes, of {', '.join(SIZES)} (default %(default)s)")
    add("--steps", type=int, default=5, help="steps of a timed block")
    add("--repeats", type=int, default=3, help="timed blocks of a point")
    add("--seconds", type=float, default=540.0, help="for all of it (default %(default)s)")
    add("--point_seconds", type=float, default=180.0, help="for one point (default %(default)s)")
    add("--output", type=Path, default=Path("accelerator_benchmark.json"), help="the record")
    add("--point", type=int, help=argparse.SUPPRESS)
    add("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(",") if name.strip()]
    if not options.only or set(options.only) - set(SIZES):
        parser.error(f"--only={','.join(options.only)}: give sizes of {', '.join(SIZES)}")
    if min(options.steps, options.repeats) < 1:
        parser.error("--steps and --repeats must be at least 1")
    if not min(options.seconds, options.point_seconds) > 0:
        parser.error("--seconds and --point_seconds must be positive")
    return options


# ------------------------------------------------------------------------------------------------------ one point


def run_point(options: argparse.Namespace) -> int:
    """In the point's own process: measures it and writes the answer."""
    take_gpu_memory()
    import jax

    from ar_omni_jax.benchmarks.accelerator_step import measure

    point = POINTS[options.point]
    if jax.default_backend() == "cpu" and point.size != "tiny":
        print("error: JAX has only this machine's CPU here; install ar_omni_jax[gpu] or [tpu], or give --only=tiny",
              file=sys.stderr)  # fmt: skip
        return 1
    found = measure(point, options.steps, options.repeats)
    replace_file(options.answer, json.dumps(found).encode())
    return 0


def ask(number: int, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs a point in a process; PointFailed when it gives no answer in that time."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "ar_omni_jax.benchmarks.accelerator", f"--point={number}"]
        command += [f"--answer={answer}", f"--steps={options.steps}", f"--repeats={options.repeats}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise PointFailed(f"no result in {seconds:.0f} s") from None
        if done.returncode or not answer.is_file():
            raise PointFailed(f"exit code {done.returncode}: {_why(done.stderr)}")
        return json.loads(answer.read_text())


def _why(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("error:") or "RESOURCE_EXHAUSTED" in line or "Error" in line]
    return (telling or lines or ["no message"])[-1][:300]


# -------------------------------------------------------------------------------------------------------- all points


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Of a point's answer: "tokens_per_second" (useful), "step_seconds", "spread" (of the blocks, of their median),
    "mfu" (None where the peak is not known). PointFailed where the steps computed nothing."""
    if found["skipped"] or not all(map(math.isfinite, found["losses"])):
        raise PointFailed(f"{found['skipped']} steps were skipped, losses {found['losses']}: this measures nothing")
    blocks = found["block_seconds"]
    step = statistics.median(blocks) / found["steps"]
    rate = found["useful_tokens"] / step
    peak = found["peak_flops"]
    return {
        "tokens_per_second": rate,
        "step_seconds": step,
        "spread": (max(blocks) - min(blocks)) / statistics.median(blocks),
        "mfu": rate * found["flops_per_token"] / peak if peak else None,
    }


def measure_all(options: argparse.Namespace, points: Sequence[Point] = POINTS) -> dict[str, Any]:
    """The record: {"points": {name: answer and summary, or "error"}}, on disk after every point."""
    end = time.monotonic() + options.seconds
    record: dict[str, Any] = {"sizes": options.only, "points": {}}
    wanted = [(i, point) for i, point in enumerate(points) if point.size in options.only]
    for number, point in wanted:
        left = end - time.monotonic()
        try:
            if left < min(LEAST, options.point_seconds):
                raise PointFailed("not begun: --seconds are over")
            say(f"{point.name}: begins, {left:.0f} s left")
            found = ask(number, options, min(options.point_seconds, left))
            row = {"size": point.size, "documents": point.documents} | found | summary(found)
        except PointFailed as error:
            row = {"size": point.size, "documents": point.documents, "error": str(error)}
        record["points"][point.name] = row
        say(line(point.name, row))
        write_record(record, options.output)
    return record


def line(name: str, row: dict[str, Any]) -> str:
    """One point for people."""
    if "error" in row:
        return f"{name}: {row['error']}"
    mfu = f"MFU {row['mfu']:.1%}" if row["mfu"] is not None else "no MFU (peak unknown)"
    used = row["memory"].get("memory/device_peak_gib")
    peak = f", peak {used:.1f}" if used is not None else ""
    return (
        f"{name}: {row['tokens_per_second']:,.0f} useful tokens/s, {mfu}, step {row['step_seconds']:.4f} s (blocks "
        f"differ by {row['spread']:.1%}), {row['attention']}; GiB a device: compiled "
        f"{row['compiled_bytes'] / GIB:.1f}{peak}; compiled in {row['compile_seconds']:.0f} s, "
        f"loss {row['losses'][0]:.3f} to {row['losses'][1]:.3f}"
    )


def page(record: dict[str, Any]) -> str:
    """The machine, every point, how MFU is counted, the best of each size, and what packing is worth."""
    rows = record["points"]
    good = {name: row for name, row in rows.items() if "error" not in row}
    lines = []
    if good:
        m = next(iter(good.values()))["machine"]
        lines.append(f"{m['devices']} x {m['device']}, {m['processor']}, {m['cores']} cores, jax {m['jax']}")
    lines += [line(name, row) for name, row in rows.items()]
    for size in record["sizes"]:
        mine = {name: row for name, row in good.items() if row["size"] == size}
        if not mine:
            lines.append(f"{size}: no figure")
            continue
        best = max(mine, key=lambda name: mine[name]["tokens_per_second"] * mine[name]["flops_per_token"])
        lines += [f"{size}, best: {best}", *(f"  {text}" for text in mine[best]["formula"])]
        if mine[best]["mfu"] is not None:
            lines.append(f"  the goal, {GOAL:.0%} MFU, is {'met' if mine[best]['mfu'] >= GOAL else 'not met'}")
        lines += [f"  {text}" for text in packing(mine)]
    return "\n".join(lines)


def packing(rows: dict[str, dict[str, Any]]) -> list[str]:
    """From what share of padding on packed rows are the faster, by the best point of each kind with rows of one
    length: one document a row does (1 - padding) of its places as useful work."""
    kinds: dict[tuple[int, bool], float] = {}
    for row in rows.values():
        key = (row["flops_per_token"], row["documents"] > 1)
        kinds[key] = max(kinds.get(key, 0.0), row["tokens_per_second"])
    found = []
    for (flops, packed), rate in kinds.items():
        if packed and (one := kinds.get((flops, False))):
            share = max(0.0, 1.0 - rate / one)
            found.append(f"packed rows win where one document a row would leave more than {share:.1%} padding")
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    if options.point is not None:
        return run_point(options)
    record = measure_all(options)
    print(page(record))
    print(f"wrote {options.output}")
    measured = {row["size"] for row in record["points"].values() if "error" not in row}
    return 0 if measured >= set(options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
