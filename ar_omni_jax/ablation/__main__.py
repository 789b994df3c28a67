"""The ablation: every variant of configs/ablation.py trained with several seeds, judged, and a page about it.

  python -m ar_omni_jax.ablation --run=runs/toyworld --output=runs/ablation

--run is a folder of launch/run_local.sh: its packed/ rows are trained on, its held-out toy/test.jsonl is judged.
Interrupt it and run it again: it goes on. The page, OUTPUT/index.html, is written anew after every run; every number
of it stands in OUTPUT/ablation.json. Further words, as --config.train.steps=3600, go to every training.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.ablation.page import write_page
from ar_omni_jax.ablation.runner import AblationError, Plan, run_all
from ar_omni_jax.ablation.variants import VARIANTS


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """(options, words for the trainings)."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.ablation",
        description=__doc__,
        epilog="variants:\n" + "\n".join(f"  {name:20} {v.words}" for name, v in VARIANTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run", required=True, type=Path, help="folder of launch/run_local.sh, with packed/ and toy/")
    add("--output", required=True, type=Path, help="folder of the runs and the page")
    add("--variants", default=",".join(VARIANTS), help="comma-separated (default: all)")
    add("--seeds", type=int, default=3, help="runs of each variant")
    add("--limit", type=int, default=64, help="held-out documents a task")
    add("--page_only", action="store_true", help="write the page of what is there")
    options, rest = parser.parse_known_args(arguments)
    wrong = [word for word in rest if not (word.startswith("--config.") and "=" in word)]
    if wrong:
        parser.error(f"unexpected argument {wrong[0]!r}; settings of the trainings are given as --config.key=value")
    return options, rest


def page_command(options: argparse.Namespace) -> list[str]:
    """Writes the page in a process of its own: what describes the machine takes hold of an accelerator."""
    own = ["--run", str(options.run), "--output", str(options.output), "--page_only"]
    return [sys.executable, "-m", "ar_omni_jax.ablation", *own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options, settings = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        plan = Plan(
            packed=options.run / "packed",
            manifest=options.run / "toy" / "test.jsonl",
            variants=tuple(options.variants.split(",")),
            seeds=options.seeds,
            limit=options.limit,
            settings=tuple(settings),
        )
        if options.page_only:
            print(write_page(options.output))
        else:
            run_all(plan, options.output, page_command(options))
    except (AblationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
