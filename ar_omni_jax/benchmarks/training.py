"""Training beside PyTorch: tokens a second and peak memory, same documents, weights and losses, in one run.

  python -m ar_omni_jax.benchmarks.training --size=toy
  python -m ar_omni_jax.benchmarks.training --size=100m --steps=4

Needs PyTorch and transformers (pip install 'ar_omni_jax[torch]'). Each side runs in processes of its own, in turn. A
useful token is one of a document; padding is none. Memory is the process's largest resident set, libraries and
compilation included: "peak" at the end, "ready" when the first step begins. The losses of the first step, from equal
weights, must agree to 1e-4, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax.benchmarks import training_work as work
from ar_omni_jax.benchmarks.record import publish
from ar_omni_jax.machine import machine, peak_resident_bytes

SIDES = ("ours", "torch")
OURS = ("attention", "remat", "accumulate")  # settings of this project's side
AGREE = 1e-4


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--size", choices=sorted(work.SIZES), default="toy", help="shape of the model")
    add("--steps", type=int, default=10, help="timed steps of a process, after a first one")
    add("--repeats", type=int, default=2, help="processes of each side")
    add("--attention", default="rowwise", help="this project's attention (model/attention.py)")
    add("--remat", default="none", help="this project's remat policy (model/remat.py)")
    add("--accumulate", type=int, default=1, help="this project's micro-batches of a step")
    add("--output", type=Path, default=Path("training_benchmark.json"), help="the record")
    add("--side", choices=(*SIDES, "weights"), help=argparse.SUPPRESS)
    add("--exchange", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.steps, options.repeats, options.accumulate) < 1:
        parser.error("--steps, --repeats and --accumulate must be at least 1")
    return options


# ----------------------------------------------------------------------------------------------- one side's process


def write_weights(options: argparse.Namespace) -> None:
    """The weights that both sides start from, as PyTorch takes them."""
    weights, projection = _ours(options).weights()
    np.savez(options.exchange / "weights.npz", **weights)
    np.savez(options.exchange / "projection.npz", **projection)


def _ours(options: argparse.Namespace):
    from ar_omni_jax.benchmarks.training_ours import OurStep

    settings = {name: getattr(options, name) for name in OURS}
    return OurStep(work.SIZES[options.size], options.steps + 1, **settings)


def measure(options: argparse.Namespace) -> dict:
    """Runs one side: losses, seconds and useful tokens of the timed steps, peak resident set in bytes at the end and
    when the first step begins (libraries, batches, weights)."""
    size = work.SIZES[options.size]
    found = [work.documents(size, step) for step in range(options.steps + 1)]
    if options.side == "ours":
        step, batches = _ours(options), [work.packed_batch(size, documents) for documents in found]
    else:
        from ar_omni_jax.benchmarks.training_torch import TorchStep

        arrays = (dict(np.load(options.exchange / name)) for name in ("weights.npz", "projection.npz"))
        step, batches = TorchStep(size, *arrays), [work.padded_batches(size, documents) for documents in found]
    ready, started = peak_resident_bytes(), time.perf_counter()
    losses = [step(batches[0])]
    first = time.perf_counter() - started
    seconds = []
    for batch in batches[1:]:
        started = time.perf_counter()
        losses.append(step(batch))
        seconds.append(time.perf_counter() - started)
    useful = [sum(len(d.tokens) for d in documents) for documents in found[1:]]
    places = sum(b["tokens"].size for bs in batches[1:] for b in (bs if isinstance(bs, list) else [bs]))
    return {
        "name": step.name, "losses": losses, "seconds": seconds, "useful_tokens": useful, "first_seconds": first,
        "useful_share": sum(useful) / places, "ready_bytes": ready, "peak_bytes": peak_resident_bytes(),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------- the comparison


def compare(options: argparse.Namespace) -> dict:
    """Runs both sides in turn and puts their numbers beside each other. RuntimeError when their losses differ."""
    with tempfile.TemporaryDirectory() as folder:
        _child(options, "weights", folder)
        runs = {side: [] for side in SIDES}
        for repeat in range(options.repeats):
            for side in SIDES:
                print(f"{side}, process {repeat + 1} of {options.repeats}", file=sys.stderr, flush=True)
                runs[side].append(_child(options, side, folder))
    ours, theirs = runs["ours"][0]["losses"][0], runs["torch"][0]["losses"][0]
    if not abs(ours - theirs) <= AGREE * abs(theirs):
        raise RuntimeError(
            f"the losses of the first step differ: {ours} here, {theirs} in PyTorch; this compares nothing"
        )
    sides = {side: _summary(rows) for side, rows in runs.items()}
    return {
        "size": options.size,
        "machine": machine(),
        "steps": options.steps,
        "settings": {name: getattr(options, name) for name in OURS},
        "first_losses": [ours, theirs],
        "sides": sides,
        "speed_ratio": sides["ours"]["tokens_per_second"] / sides["torch"]["tokens_per_second"],
        "memory_ratio": sides["ours"]["peak_bytes"] / sides["torch"]["peak_bytes"],
    }


def _child(options: argparse.Namespace, side: str, folder: str) -> dict:
    words = [f"--{name}={getattr(options, name)}" for name in ("size", "steps", *OURS)]
    command = [
        sys.executable,
        "-m",
        "ar_omni_jax.benchmarks.training",
        *words,
        f"--side={side}",
        f"--exchange={folder}",
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(command)}; its message stands above")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(runs: list[dict]) -> dict:
    """Medians over all timed steps of all processes; memory of the smallest process."""
    pairs = [pair for run in runs for pair in zip(run["useful_tokens"], run["seconds"], strict=True)]
    return {
        "name": runs[0]["name"],
        "tokens_per_second": statistics.median(tokens / seconds for tokens, seconds in pairs),
        "step_seconds": statistics.median(seconds for _, seconds in pairs),
        "first_seconds": min(run["first_seconds"] for run in runs),
        "useful_share": runs[0]["useful_share"],
        "ready_bytes": min(run["ready_bytes"] for run in runs),
        "peak_bytes": min(run["peak_bytes"] for run in runs),
    }


def table(record: dict) -> str:
    """For people."""
    m, settings = record["machine"], " ".join(f"--{name}={value}" for name, value in record["settings"].items())
    lines = [
        f"{record['size']}: {m['processor']}, {m['cores']} cores, load {m['load']}; {settings}",
        f"{'':8}{'useful tokens/s':>16}{'step s':>9}{'useful':>8}{'ready MiB':>11}{'peak MiB':>10}{'first step s':>14}",
    ]
    for side, row in record["sides"].items():
        lines.append(
            f"{side:8}{row['tokens_per_second']:16,.0f}{row['step_seconds']:9.3f}{row['useful_share']:8.1%}"
            f"{row['ready_bytes'] / 2**20:11,.0f}{row['peak_bytes'] / 2**20:10,.0f}{row['first_seconds']:14.1f}"
            f"  {row['name']}"
        )
    ratios = f"{record['speed_ratio']:.2f} times the speed at {record['memory_ratio']:.2f} times the memory"
    return "\n".join([*lines, f"{ratios}; losses of the first step {record['first_losses']}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    if options.side == "weights":
        write_weights(options)
        print("{}")
        return 0
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    try:
        record = compare(options)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    publish(record, table(record), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
