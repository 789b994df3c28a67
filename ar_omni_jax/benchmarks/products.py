"""Time of a decoding step's matrix products on a CPU, by the form of the matrices and the number of rows.

  python -m ar_omni_jax.benchmarks.products                     # the 7m model of evaluation.latency, on one core
  python -m ar_omni_jax.benchmarks.products --model=100m --threads=all --rows=1,8,32
  python -m ar_omni_jax.benchmarks.products --model=tiny --rows=4

Matrices are whole ([inputs, outputs]), in tiles (`model/tiled.py`), or transposed (`model/transposed.py`). All are
compiled as lanes compile them (`decoding/rows.py`; --threads=one: programs of one thread) and run in turn in one
process on the same numbers; a run that finds them to differ fails. Times are medians over --repeats of the microseconds
for one step's products, all matrices of the model in their order. They say which form lanes should have on this
processor (`_forms` in `decoding/lanes.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.benchmarks.record import publish
from ar_omni_jax.decoding.rows import known_options
from ar_omni_jax.evaluation.latency_subjects import SIZES, random_subject
from ar_omni_jax.machine import machine
from ar_omni_jax.model.decode_weights import DecodeWeights, make_decode_weights, tile_weights, transpose_weights
from ar_omni_jax.model.quantized import Matrix, multiply

STEPS = 20  # of a timed call
AGREE = 1e-4


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.benchmarks.products",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", choices=tuple(SIZES), default="7m", help="default: %(default)s")
    add("--rows", default="2,4,6,8,12,16", help="numbers of rows (default: %(default)s)")
    add("--threads", choices=("one", "all"), default="one", help="of a program (default: %(default)s)")
    add("--repeats", type=int, default=15, help="timed calls of each (default: %(default)s)")
    add("--output", type=Path, default=Path("products.json"), help="the record")
    options = parser.parse_args(arguments)
    try:
        options.rows = [int(n) for n in options.rows.split(",")]
    except ValueError:
        parser.error(f"--rows={options.rows}: numbers, comma-separated")
    if min(*options.rows, options.repeats) < 1:
        parser.error("--rows and --repeats must be at least 1")
    return options


def matrices(weights: DecodeWeights) -> list[Matrix]:
    """All that a step multiplies with, in the order of its products."""
    every = [m for layer in weights.layers for m in (*layer.qkv, layer.out, *layer.gate_up, layer.down)]
    return every if weights.output is None else [*every, weights.output]


def products(x_NI: jax.Array, every: list[Matrix]) -> jax.Array:
    """float32 [N]: a sum that needs all products; each one's input depends on the one before."""
    total = jnp.zeros(x_NI.shape[0], jnp.float32)
    for matrix in every:
        rows = jnp.resize(x_NI, (x_NI.shape[0], matrix.shape[0])) + total[:, None] * 1e-3
        total = jnp.tanh(multiply(rows, matrix).sum(axis=-1))
    return total


def program(rows: int, every: list[Matrix], threads: str) -> Callable[[], np.ndarray]:
    """Compiles STEPS times all products of `rows` rows; the call runs them."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, every[0].shape[0])), jnp.float32)

    def steps(x, every):
        return jax.lax.fori_loop(0, STEPS, lambda _, x: x + products(x, every)[:, None], x)

    options = known_options() if threads == "one" else None
    compiled = jax.jit(steps, compiler_options=options).lower(x, every).compile()
    return lambda: np.asarray(compiled(x, every))


def compare(rows: int, forms: dict[str, list[Matrix]], repeats: int, threads: str = "one") -> dict[str, float]:
    """Median microseconds a step of each form, in turn. RuntimeError when their results differ."""
    runs = {name: program(rows, every, threads) for name, every in forms.items()}
    results = {name: run() for name, run in runs.items()}
    for name, result in results.items():
        difference = np.abs(result - results["whole"]).max()
        if not np.allclose(result, results["whole"], rtol=AGREE, atol=AGREE):
            raise RuntimeError(f"{rows} rows: whole and {name} differ by {difference:.2g}; this compares nothing")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: 1e6 * statistics.median(found) / STEPS for name, found in seconds.items()}


def table(record: dict[str, Any]) -> str:
    """For people."""
    m = record["machine"]
    used = f"one of {m['cores']} cores" if record["threads"] == "one" else f"{m['cores']} cores"
    names = [name for name in record["rows"][0] if name != "rows"]
    lines = [
        f"{m['processor']}, {used}, load {m['load']}; jax {m['jax']}, float32; {record['model']}; us a step",
        f"{'rows':>4}" + "".join(f"{name:>12}" + ("" if name == "whole" else f"{'ratio':>8}") for name in names),
    ]
    for row in record["rows"]:
        line = f"{row['rows']:4}"
        for name in names:
            line += f"{row[name]:12,.0f}" + ("" if name == "whole" else f"{row['whole'] / row[name]:8.2f}")
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    made, _ = make_decode_weights(random_subject(options.model, dtype="float32").model, "float32")
    made_so = {"whole": made, "tiled": tile_weights(made), "transposed": transpose_weights(made)}
    forms = {name: matrices(weights) for name, weights in made_so.items()}
    record: dict[str, Any] = {"machine": machine(), "model": options.model, "threads": options.threads, "rows": []}
    try:
        for rows in options.rows:
            record["rows"].append({"rows": rows} | compare(rows, forms, options.repeats, options.threads))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    publish(record, table(record), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
