"""Memory and time of the next-token loss and its gradients: whole [B, L, V] logits against a chunk of them at a time.

  python -m ar_omni_jax.benchmarks.cross_entropy_memory               # the toy world's vocabulary and the published one
  python -m ar_omni_jax.benchmarks.cross_entropy_memory --shapes=toy --chunk=512

"whole" is the definition of the loss, differentiated by JAX; "chunked" the loss that training has. Each runs in a
process of its own, in turn, float32, gradients of hidden states and output matrix. "compiled": the program's temporary
memory by its own account. "resident": how far the process's resident set rose above the inputs while it ran, results
(both gradients, the same for both ways) included. The two ways must agree in loss and gradients to 1e-4, or the run
fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.benchmarks.record import publish
from ar_omni_jax.benchmarks.resident import added_by
from ar_omni_jax.machine import machine
from ar_omni_jax.training.losses import plain_token_losses, token_losses

WAYS = ("whole", "chunked")
AGREE = 1e-4
Z_LOSS = 1e-5
MIB = 2.0**20


@dataclasses.dataclass(frozen=True)
class Shape:
    """rows B, length L, width D, vocabulary V; chunk: tokens whose logits exist at a time; runs: of one process."""

    rows: int
    length: int
    width: int
    vocabulary: int
    chunk: int
    runs: int


SHAPES = {
    "tiny": Shape(2, 64, 16, 512, 32, 1),  # for tests
    "toy": Shape(4, 512, 192, 4736, 1024, 5),  # the main job's model and batch
    "7b": Shape(4, 1300, 4096, 65536, 1024, 1),  # rows of configs/pretrain_7b.py, few enough for a machine of 16 GiB
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.benchmarks.cross_entropy_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--shapes", default="toy,7b", help=f"some of {', '.join(SHAPES)} (default %(default)s)")
    add("--chunk", type=int, help="tokens whose logits exist at a time (default: by shape)")
    add("--rows", type=int, help="of the batch (default: by shape)")
    add("--repeats", type=int, default=1, help="processes of each way and shape")
    add("--output", type=Path, default=Path("cross_entropy_memory.json"), help="the record")
    add("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.shapes = options.shapes.split(",")
    if unknown := [name for name in options.shapes if name not in SHAPES]:
        parser.error(f"--shapes={','.join(unknown)}: the shapes are {', '.join(SHAPES)}")
    if any(value is not None and value < 1 for value in (options.chunk, options.rows, options.repeats)):
        parser.error("--chunk, --rows and --repeats must be at least 1")
    return options


def shape_of(options: argparse.Namespace, name: str) -> Shape:
    """The named shape with the command line's changes."""
    changes = {key: getattr(options, key) for key in ("chunk", "rows") if getattr(options, key)}
    return dataclasses.replace(SHAPES[name], **changes)


# ------------------------------------------------------------------------------------------------ one way's process


def losses_of(way: str, shape: Shape):
    """(hidden [B, L, D], matrix [D, V], targets, weights [B, L]) -> (mean loss, gradients of the first two)."""

    def loss(hidden, matrix, targets, weights):
        if way == "whole":
            sums = plain_token_losses(hidden, matrix, targets, weights, Z_LOSS)
        else:
            sums = token_losses(hidden, matrix, targets, weights, Z_LOSS, shape.chunk)
        return sums.objective / jnp.sum(weights)

    return jax.value_and_grad(loss, argnums=(0, 1))


def inputs_of(shape: Shape) -> tuple[jax.Array, ...]:
    """Random hidden states of unit size, a matrix that makes logits of about unit size, targets, weights of 0 to 1."""
    keys = jax.random.split(jax.random.key(0), 4)
    places = (shape.rows, shape.length)
    hidden = jax.random.normal(keys[0], (*places, shape.width))
    matrix = jax.random.normal(keys[1], (shape.width, shape.vocabulary)) * shape.width**-0.5
    targets = jax.random.randint(keys[2], places, 0, shape.vocabulary)
    return jax.block_until_ready((hidden, matrix, targets, jax.random.uniform(keys[3], places)))


def measure(way: str, shape: Shape) -> dict[str, Any]:
    """Compiles and runs one way: bytes, seconds of each run, and what must agree with the other way."""
    inputs = inputs_of(shape)
    start = time.perf_counter()
    compiled = jax.jit(losses_of(way, shape)).lower(*inputs).compile()
    compile_seconds = time.perf_counter() - start
    found, seconds = {}, []

    def run():
        start = time.perf_counter()
        found["results"] = jax.block_until_ready(compiled(*inputs))
        seconds.append(time.perf_counter() - start)

    resident = added_by(run)
    for _ in range(shape.runs - 1):
        run()
    loss, gradients = found["results"]
    norms = [float(np.sqrt(np.sum(np.square(np.asarray(g), dtype=np.float64)))) for g in gradients]
    temporary = compiled.memory_analysis().temp_size_in_bytes
    memory = {"compiled_bytes": temporary, "resident_bytes": resident}
    return memory | {"seconds": seconds, "compile_seconds": compile_seconds, "agree": [float(loss), *norms]}


# --------------------------------------------------------------------------------------------------- the comparison


def compare(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Both ways of one shape. RuntimeError when they compute different things or one fails."""
    shape = shape_of(options, name)
    runs: dict[str, list] = {way: [] for way in WAYS}
    for repeat in range(options.repeats):
        for way in WAYS:
            print(f"{name}, {way}, process {repeat + 1} of {options.repeats}", file=sys.stderr, flush=True)
            runs[way].append(_child(name, way, shape))
    whole, chunked = (runs[way][0]["agree"] for way in WAYS)
    if not np.allclose(chunked, whole, rtol=AGREE, atol=0.0):
        raise RuntimeError(
            f"{name}: loss and norms of the gradients differ: whole {whole}, chunked {chunked}; this compares nothing"
        )
    return dataclasses.asdict(shape) | {"ways": {way: _summary(found) for way, found in runs.items()}}


def _child(name: str, way: str, shape: Shape) -> dict[str, Any]:
    command = [sys.executable, "-m", "ar_omni_jax.benchmarks.cross_entropy_memory", f"--shapes={name}", f"--way={way}"]
    command += [f"--rows={shape.rows}", f"--chunk={shape.chunk}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(command)}; its message stands above")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the processes of one way: median seconds, least resident memory."""
    resident = [run["resident_bytes"] for run in runs if run["resident_bytes"] is not None]
    return {
        "compiled_bytes": runs[0]["compiled_bytes"],
        "resident_bytes": min(resident, default=None),
        "seconds": statistics.median(seconds for run in runs for seconds in run["seconds"]),
        "compile_seconds": min(run["compile_seconds"] for run in runs),
        "loss": runs[0]["agree"][0],
    }


def table(record: dict[str, Any]) -> str:
    """For people."""
    m = record["machine"]
    lines = [f"{m['processor']}, {m['cores']} cores, load {m['load']}; jax {m['jax']}, float32"]
    for name, row in record["shapes"].items():
        logits = row["rows"] * row["length"] * row["vocabulary"] * 4 / MIB
        lines.append(
            f"{name}: {row['rows']} rows of {row['length']} tokens, width {row['width']}, vocabulary "
            f"{row['vocabulary']:,} (all logits: {logits:,.0f} MiB), chunks of about {row['chunk']} tokens"
        )
        lines.append(f"{'':10}{'compiled, MiB':>15}{'resident, MiB':>15}{'seconds':>10}")
        for way, found in row["ways"].items():
            resident = "?" if found["resident_bytes"] is None else f"{found['resident_bytes'] / MIB:,.0f}"
            lines.append(f"{way:10}{found['compiled_bytes'] / MIB:15,.0f}{resident:>15}{found['seconds']:10.3f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    if options.way:
        print(json.dumps(measure(options.way, shape_of(options, options.shapes[0]))))
        return 0
    record = {"machine": machine(), "shapes": {}}
    try:
        for name in options.shapes:
            record["shapes"][name] = compare(options, name)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    publish(record, table(record), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
