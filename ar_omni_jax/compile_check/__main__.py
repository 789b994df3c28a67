"""Compiles the training step for a machine that is not there: does it fit, and what will it do?

  python -m ar_omni_jax.compile_check --config=configs/pretrain_7b.py --target=v5p-64 [--config.KEY=VALUE ...]

The step is the one that training runs, compiled by the target's own compiler on this machine's CPU; nothing is
allocated and no accelerator is needed. Prints the memory of a device by kind, the collectives, arithmetic by the
project's formula beside what was compiled, and the least time of a step that the device's limits leave.

--search compiles a grid of remat policies and rows a device instead, and prints the ones that are worth having: those
that no other beats in both memory and time. Each result goes to a cache file at once, so the same command resumes.

Exit code: 0 the step fits (with --search: something does), 1 it does not, 2 there is no answer: a wrong command line,
settings that do not go together, an unknown target, a missing compiler or one that fails.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.compile_check.environment import EnvironmentMissing, prepare
from ar_omni_jax.compile_check.targets import TargetError, describe_targets, find_target
from ar_omni_jax.overrides import split_overrides

DEFAULT_CACHE = Path("runs/compile_check.jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options, overrides = parse_arguments(arguments)
    try:
        target = find_target(options.target)
        prepare(target)
    except (TargetError, EnvironmentMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from ar_omni_jax.compile_check.commands import run_check, run_search  # imports JAX: after the environment

    try:
        return (run_search if options.search else run_check)(options, overrides, target)
    except Exception:  # a fault, here or in JAX, is no verdict: left to Python it would end with 1, "does not fit"
        traceback.print_exc()
        return 2


def parse_arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """(options, overrides as (key, text))."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.compile_check",
        description=__doc__,
        epilog=f"targets:\n{describe_targets()}\n  2x... : slices joined by the data-centre network, along mesh.data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="such as configs/pretrain_7b.py")
    parser.add_argument("--target", required=True, metavar="NAME", help="such as v5p-64, 2xv5p-64, v5p:4x4x8, h200-8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the result as JSON, written whole or not at all")
    parser.add_argument("--search", action="store_true", help="try remat policies x rows a device")
    policies = "zero_recompute,save_attention,full"
    parser.add_argument("--policies", default=policies, metavar="A,B", help="of --search (default %(default)s)")
    rows = "rows a device of --search (default %(default)s)"
    parser.add_argument("--rows", default="1,2,4,8,16", metavar="N,M", help=rows)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="of --search (default %(default)s)")
    options, rest = parser.parse_known_args(arguments)
    return options, split_overrides(rest, parser.error)


if __name__ == "__main__":
    sys.exit(main())
