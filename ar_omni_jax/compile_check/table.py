"""Makes the table of docs/scale.md: the 7B model on every target, at the lengths of both training stages.

  python -m ar_omni_jax.compile_check.table [--only=v5p-64,h200-8] [--cache=FILE] [--output=docs/scale.md]

For each target and stage the settings of PLAN are compiled in turn until one fits; that one is the row. Results go to
the cache file at once: the same command goes on where it was stopped, and a second run takes seconds. The part of
OUTPUT between its two markers is replaced when all is done, and what was not asked for by --only but is in the cache
is kept. Exit code: 0 every row was made, 1 a row has no setting that fits or could not be made, 2 wrong command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.compile_check.environment import EnvironmentMissing, prepare
from ar_omni_jax.compile_check.targets import GIB, TargetError, find_target

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
STAGES = {"configs/pretrain_7b.py": 1300, "configs/instruct_7b.py": 3456}
# Most wanted first.
ORDER = ("v5p-64", "v5p-8", "v6e-64", "v5e-256", "h200-8", "h200-1", "v5p-128", "v6e-256", "v5e-64", "2xv5p-64")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings to try: a remat policy, rows a device, and what else differs from the config file."""

    remat: str
    rows: int
    others: tuple[tuple[str, str], ...] = ()


_HALF_MOMENTS = (("optimizer.moment_dtype", "bfloat16"),)


def _choices(pretraining: int, instruction: int, others=(), policies=("zero_recompute", "save_attention", "full")):
    """Remat policies from the fastest to the most frugal, with the rows a device of the two stages."""
    return {
        length: tuple(Choice(policy, rows, others) for policy in policies)
        for length, rows in zip(STAGES.values(), (pretraining, instruction), strict=True)
    }


PLAN = {
    "v5p-64": _choices(8, 4),
    "v5p-8": _choices(8, 4),
    "v5p-128": _choices(8, 4),
    "2xv5p-64": _choices(8, 4),
    "v6e-64": _choices(4, 1),
    "v6e-256": _choices(4, 1),
    "v5e-256": _choices(2, 1),
    "v5e-64": _choices(2, 1),
    "h200-8": _choices(16, 6),
    "h200-1": _choices(8, 3, _HALF_MOMENTS),  # float32 moments and gradients would leave no room for activations
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.compile_check.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(ORDER), metavar="A,B", help="targets to make (default all)")
    parser.add_argument("--cache", type=Path, default=Path("runs/compile_check.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("docs/scale.md"))
    options = parser.parse_args(arguments)
    wanted = [name.strip() for name in options.only.split(",") if name.strip()]
    try:
        unknown = [name for name in wanted if name not in PLAN]
        if unknown or not wanted:
            what = ", ".join(unknown) or "nothing"
            raise TargetError(f"--only: no plan for {what}; there is one for {', '.join(ORDER)}")
        prepare(find_target(wanted[0]))
    except (TargetError, EnvironmentMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows, missing = make_rows(wanted, options.cache)
    write_table(options.output, rows)
    print(f"{len(rows)} rows in {options.output}" + (f"; not made: {', '.join(missing)}" if missing else ""))
    return 1 if missing else 0


def make_rows(wanted: Sequence[str], cache: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows in the order of ORDER, names of those that were wanted and could not be made)."""
    rows, missing, start = [], [], time.monotonic()
    for number, (name, spec) in enumerate((name, spec) for name in ORDER for spec in STAGES):
        row = make_row(name, spec, cache, make=name in wanted)
        if row is not None:
            rows.append(row)
        elif name in wanted:
            missing.append(f"{name} at {STAGES[spec]}")
        if name in wanted:
            _say(f"[{number + 1}/{len(ORDER) * len(STAGES)}] {name} {spec}: {time.monotonic() - start:.0f} s so far")
    return rows, missing


def make_row(name: str, spec: str, cache: Path, make: bool = True) -> dict[str, Any] | None:
    """The first choice of the plan that fits, or None; without `make` only what the cache has counts."""
    from ar_omni_jax.compile_check.cache import CheckFailed, cached_check, key, read

    target = find_target(name)
    for choice in PLAN[name][STAGES[spec]]:
        settings = overrides(spec, choice, name)
        if not make and key(spec, settings, target) not in read(cache):
            return None
        try:
            result, known = cached_check(spec, settings, target, cache)
        except CheckFailed as error:
            _say(f"  {choice.remat}, {choice.rows} rows a device: {error}")
            continue
        total = result["memory_bytes"]["total"] / GIB
        _say(
            f"  {choice.remat}, {choice.rows} rows a device: {total:.2f} GiB, {'fits' if result['fits'] else 'no'}"
            + (", from the cache" if known else f", {result['seconds']:.0f} s")
        )
        if result["fits"]:
            return result | {"rows": choice.rows}
    return None


def overrides(spec: str, choice: Choice, name: str) -> list[tuple[str, str]]:
    """A choice as settings, with the batch that the mesh makes of it."""
    from ar_omni_jax.compile_check.search import batch_size

    target = find_target(name)
    settings = [("model.remat", choice.remat), *choice.others, ("mesh.data", str(target.slices)), ("mesh.fsdp", "-1")]
    if target.chip.platform == "cuda":  # cuDNN's kernel knows no segment ids: one document a row
        settings += [("model.attention", "cudnn"), ("model.packed_rows", "false")]
    return [*settings, ("data.batch_size", str(batch_size(spec, settings, target, choice.rows)))]


COLUMNS = (
    *("target", "devices", "tokens a row", "rows a device", "batch", "remat", "attention", "state GiB", "temp GiB"),
    *("total of limit GiB", "received GiB a step", "TFLOP needed / compiled", "step s, at least", "MFU, at most"),
    *("limit", "compiled in s"),
)


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    memory, found, settings = row["memory_bytes"], row["roofline"], row["settings"]
    limit = row["limit_bytes"] - row["headroom_bytes"]
    moments = "" if settings["optimizer.moment_dtype"] == "float32" else ", bf16 moments"
    received = sum(kind["wire_bytes"] for kind in row["collectives"].values())
    return [
        row["target"],
        str(row["devices"]),
        str(settings["data.length"]),
        str(row["rows"]),
        str(settings["data.batch_size"]),
        settings["model.remat"] + moments,
        settings["model.attention"],
        f"{(memory['parameters'] + memory['moments']) / GIB:.2f}",
        f"{memory['temporaries'] / GIB:.2f}",
        f"{memory['total'] / GIB:.2f} of {limit / GIB:.2f}",
        f"{received / GIB:.1f}",
        f"{row['flops']['formula'] / 1e12:.0f} / {row['flops']['products'] / 1e12:.0f}",
        f"{found['overlapped']:.2f} to {found['serial']:.2f}",
        f"{found['mfu_overlapped']:.0%} to {found['mfu_serial']:.0%}",
        found["limit"],
        f"{row['seconds']:.0f}",
    ]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Puts the table between the markers of a page; a page without them gets both at its end."""
    from ar_omni_jax.files import replace_file

    text = path.read_text() if path.is_file() else "# Scale\n"
    if BEGIN not in text or END not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    made = sum(row["seconds"] for row in rows)
    versions = sorted({f"{name} {version}" for row in rows for name, version in row["versions"].items()})
    foot = f"Compiled with {', '.join(versions)}; {made / 60:.0f} minutes of compiling for the rows shown."
    replace_file(path, f"{head}{BEGIN}\n{render(rows)}\n\n{foot}\n{END}{tail}".encode())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
