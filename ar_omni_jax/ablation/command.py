"""What the commands of all studies have in common: their words, and what is told when something goes wrong."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ar_omni_jax.ablation.keep import keep
from ar_omni_jax.ablation.runner import AblationError, Plan, run_all
from ar_omni_jax.ablation.study import Study
from ar_omni_jax.evaluation.report import ReportError


def parse_arguments(study: Study, about: str, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(options, words for the trainings)."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {study.module}",
        description=about,
        epilog="variants:\n" + "\n".join(f"  {name:20} {v.words}" for name, v in study.variants.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    every = set(study.usual) == set(study.variants)
    add("--run", type=Path, help="folder of launch/run_local.sh, with packed/ and toy/; --page_only needs none")
    add("--output", required=True, type=Path, help="folder of the runs and the page")
    usual = "all" if every else ",".join(study.usual)
    add("--variants", default=",".join(study.usual), help=f"comma-separated (default: {usual})")
    add("--seeds", type=int, default=3, help="runs of each variant")
    add("--jobs", type=int, default=1, help="runs side by side, each on an even share of the cores (CPUs only)")
    if study.judged:
        add("--limit", type=int, default=64, help="held-out documents a task")
    add("--page_only", action="store_true", help="write the page of what is there")
    add("--keep", type=Path, metavar="DIR", help="copy what the page stands on there, without checkpoints")
    options, rest = parser.parse_known_args(arguments)
    wrong = [word for word in rest if not (word.startswith("--config.") and "=" in word)]
    if options.run is None and not options.page_only and not options.keep:
        parser.error("--run is needed: the folder of a finished launch/run_local.sh")
    if wrong:
        parser.error(f"unexpected argument {wrong[0]!r}; settings of the trainings are given as --config.key=value")
    return options, rest


def page_command(study: Study, options: argparse.Namespace) -> list[str]:
    """Writes the page in a process of its own: what describes the machine takes hold of an accelerator."""
    own = ["--output", str(options.output), "--page_only"]
    return [sys.executable, "-m", study.module, *own]


def _listen() -> None:
    """Ends as by Ctrl-C when told to end or when the terminal is closed; the runs have sessions of their own, and would
    go on alone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A script's background job ignores Ctrl-C. So does this process, but not its runs, which are ended by one:
        # what is ignored is handed down, a handler is not.
        signal.signal(signal.SIGINT, lambda *_: None)


def run_command(
    study: Study, about: str, write_page: Callable[[Path], Path], arguments: Sequence[str] | None = None
) -> int:
    """Does what the words ask for; returns the exit code. about: the command's help text."""
    options, settings = parse_arguments(study, about, arguments)
    _listen()
    try:
        if options.keep:
            print(f"kept {keep(options.output, study, options.keep)} runs in {options.keep}")
            return 0
        if options.page_only:
            print(write_page(options.output))
            return 0
        plan = Plan(
            packed=options.run / "packed",
            manifest=options.run / "toy" / "test.jsonl",
            variants=tuple(options.variants.split(",")),
            seeds=options.seeds,
            settings=tuple(settings),
            study=study,
            **({"limit": options.limit} if study.judged else {}),
        )
        run_all(plan, options.output, page_command(study, options), options.jobs)
    except (AblationError, ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
