"""Memory and products of a training step under each remat policy, from the compiled program; nothing runs.

    python -m ar_omni_jax.benchmarks.remat_memory [--target=cpu] [--layers=4] [--rows=2] [--length=1300] ...

Targets: "cpu", or one of `compile_check`, such as v5p-8, v5p:2x2x2 or h200-1, which needs that machine's compiler and
not the machine. Shapes are those of the 7B model unless flags say otherwise; a few layers are enough, since memory is
linear in their number.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time

import jax

from ar_omni_jax.benchmarks import compiling
from ar_omni_jax.model.config import REMAT_POLICIES, TransformerConfig, chameleon_7b
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.training.step import Trainer
from ar_omni_jax.vocabulary import chameleon_vocabulary

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one policy: bytes on a device for state and for what the step adds, products in the program's text (a layer
    is there once), seconds of compiling."""

    state: int
    temporary: int
    products: int
    seconds: float


def measure(config: TransformerConfig, devices, rows: int, length: int, **mesh: int) -> Measured:
    """Compiles the training step (AdamW, next-token loss) for a global batch [rows, length]."""
    vocabulary = chameleon_vocabulary()
    mesh = make_mesh(mesh or {"fsdp": -1}, devices)
    trainer = Trainer(config, {"chunk": 2048}, {"peak_lr": 1e-4}, vocabulary, mesh, total_steps=10)
    start = time.perf_counter()
    lowered = trainer.lower(rows, length)
    products = len(re.findall(r"stablehlo\.dot_general", lowered.as_text()))
    memory = lowered.compile().memory_analysis()
    seconds = time.perf_counter() - start
    return Measured(memory.argument_size_in_bytes, memory.temp_size_in_bytes, products, seconds)


def table(config: TransformerConfig, devices, rows: int, length: int, say=print, **mesh: int) -> dict[str, Measured]:
    """Measures every policy and prints a line of Markdown for each."""
    say("| remat | state, GiB a device | step, GiB a device | products more than zero_recompute | compiled in, s |")
    say("|---|---|---|---|---|")
    found: dict[str, Measured] = {}
    for policy in sorted(REMAT_POLICIES, key=lambda name: name != "zero_recompute"):
        try:
            m = measure(dataclasses.replace(config, remat=policy), devices, rows, length, **mesh)
        except jax.errors.JaxRuntimeError as error:
            say(f"| {policy} | {str(error).splitlines()[0][:160]} | | | |")
            continue
        found[policy] = m
        more = m.products - found.get("zero_recompute", m).products
        say(f"| {policy} | {m.state / GIB:.2f} | {m.temporary / GIB:.2f} | {more} | {m.seconds:.0f} |")
    return found


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ar_omni_jax.benchmarks.remat_memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", default="cpu", help=compiling.HELP)
    shape = chameleon_7b()
    for name in ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
        parser.add_argument(f"--{name}", type=int, default=getattr(shape, name))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2, help="of the global batch")
    parser.add_argument("--length", type=int, default=1300, help="tokens a row")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--dtype", default="bfloat16", help="of the products; CPUs widen 16 bits, so float32 there")
    parser.add_argument("--packed_rows", type=int, default=1, help="0: one document a row")
    for axis in ("data", "sequence", "tensor"):
        parser.add_argument(f"--{axis}", type=int, default=1, help="devices along this axis; fsdp takes the rest")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse(arguments)
    config = chameleon_7b(
        num_layers=args.layers,
        attention=args.attention,
        dtype=args.dtype,
        packed_rows=bool(args.packed_rows),
        max_length=max(args.length, 4096),
        **{name: getattr(args, name) for name in ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")},
    )
    axes = {"data": args.data, "fsdp": -1, "sequence": args.sequence, "tensor": args.tensor}
    try:
        with compiling.compiling_for(args.target) as devices:
            print(f"{len(devices)} x {devices[0].device_kind}, {args.layers} layers, rows {args.rows} x {args.length}")
            table(config, devices, args.rows, args.length, **axes)
    except (ValueError, RuntimeError) as error:
        print(f"remat_memory: {error}")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
