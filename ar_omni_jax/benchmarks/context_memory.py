"""Memory of attention over rows that are split over devices: keys gathered, or travelling round a ring.

    python -m ar_omni_jax.benchmarks.context_memory [--target=v5p:2x2x2] [--length=32768] [--heads=32] ...

One layer's attention and its gradients, bfloat16, one row, compiled and not run. Targets as in `remat_memory`.
"""

from __future__ import annotations

import argparse

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ar_omni_jax.benchmarks import compiling
from ar_omni_jax.benchmarks.ring_attention import ring_attention
from ar_omni_jax.model.config import chameleon_7b
from ar_omni_jax.parallel.layout import mesh_attention
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.parallel.sharding import LogicalRules

MIB = 2.0**20


def temporary_bytes(attend, mesh: Mesh, length: int, heads: int, key_heads: int, width: int = 128) -> int:
    """Bytes on a device beside the arguments and results: gradients of one attention over one row of `length`."""

    def array(heads):
        place = NamedSharding(mesh, P(None, "sequence"))
        return jax.ShapeDtypeStruct((1, length, heads, width), "bfloat16", sharding=place)

    ids = jax.ShapeDtypeStruct((1, length), "int32", sharding=NamedSharding(mesh, P(None, "sequence")))

    def gradients(q, k, v, ids, g):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, ids), q, k, v)
        return out, back(g)

    given = array(heads), array(key_heads), array(key_heads), ids, array(heads)
    return jax.jit(gradients).lower(*given).compile().memory_analysis().temp_size_in_bytes


def compare(args: argparse.Namespace, mesh: Mesh) -> None:
    """Prints a line for each way."""
    config = chameleon_7b(attention="auto", num_heads=args.heads, num_kv_heads=args.kv_heads)
    print(f"{mesh.size} x {mesh.devices.flat[0].device_kind}, a row of {args.length}, {args.heads} heads")
    for name, attend in (
        ("keys gathered", mesh_attention(config, mesh, LogicalRules())),
        ("ring", ring_attention(mesh)),
    ):
        size = temporary_bytes(attend, mesh, args.length, args.heads, args.kv_heads)
        print(f"{name:<16}{size / MIB:10.1f} MiB a device")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ar_omni_jax.benchmarks.context_memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", default="v5p:2x2x2", help=compiling.HELP)
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv_heads", type=int, default=32)
    args = parser.parse_args(arguments)
    try:
        with compiling.compiling_for(args.target) as devices:
            compare(args, make_mesh({"sequence": -1}, devices))
    except (ValueError, RuntimeError) as error:
        print(f"context_memory: {error}")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
