"""What the paper's model does on one GPU, against what it has to do: 7B, random weights, bfloat16 and int8, one table.

  python -m ar_omni_jax.evaluation.latency_goals                    # on a GPU, some minutes
  python -m ar_omni_jax.evaluation.latency_goals --batches=1,8,32   # rows beyond the goals' one

Each kind of weights is measured as `python -m ar_omni_jax.evaluation.latency --model=7b --prompt=64` does it; the goals
are for an H200, one row, bfloat16, and the second table says which are met. The first sound is that of the codec that
ships here. Records of both stand beside each other in --output.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from ar_omni_jax.evaluation import latency
from ar_omni_jax.evaluation.latency_subjects import MODELS
from ar_omni_jax.files import replace_file
from ar_omni_jax.predictor import FOR_PEOPLE

WEIGHTS = ("bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Goal:
    """One figure of a record: `value` reads it, and it is met at `bound` or better."""

    name: str
    bound: float
    least: bool
    value: Callable[[dict], float]

    def met(self, record: dict) -> bool:
        value = self.value(record)
        return value >= self.bound if self.least else value <= self.bound


def _alone(record: dict) -> dict:
    return record["batches"][0]


GOALS = (
    Goal("% of the memory's limit, one row", 70.0, True, lambda r: _alone(r)["percent_of_limit"]),
    Goal("first token, ms", 40.0, False, lambda r: _alone(r)["first_token_ms"]),
    Goal("first sound, ms", 100.0, False, lambda r: r["speech"]["first_sound_ms"]),
    Goal("real-time factor with codec", 0.2, False, lambda r: r["speech"]["rtf_with_codec"]),
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.evaluation.latency_goals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="7b", choices=MODELS, help="another size, to try the command")
    add("--batches", default="1", help="numbers of rows, comma-separated; 1 is always measured")
    add("--new", type=int, default=256, help="tokens of an answer")
    latency.add_repeats(parser)
    add("--speech_codes", type=int, default=200, help="codes of the spoken answer (40 a second)")
    add("--hf", default="auto", choices=("auto", "no"), help="beside HF transformers, where PyTorch has the GPU")
    add("--bandwidth", type=float, help="of the memory, GB/s (default: measured)")
    add("--output", type=Path, default=Path("latency_goals.json"), help="the records")
    options = parser.parse_args(arguments)
    if options.speech_codes < 1:
        parser.error("--speech_codes must be at least 1")
    return options


def one_weights(options: argparse.Namespace, weights: str) -> dict:
    """The record of `evaluation.latency` for one kind of weights."""
    words = [f"--weights={weights}", "--prompt=64"]
    same = ("model", "new", "repeats", "short_repeats", "speech_codes", "hf")
    words += [f"--{name}={getattr(options, name)}" for name in same]
    rest = [n for n in options.batches.split(",") if n != "1"]
    words += [f"--batches={','.join(['1', *rest])}"]
    words += [f"--bandwidth={options.bandwidth}"] if options.bandwidth else []
    return latency.measure(latency.parse_arguments(words), say=lambda line: print(line, file=sys.stderr, flush=True))


def goals_table(records: dict[str, dict]) -> str:
    """Each goal, what was measured of it by weights, and whether bfloat16 meets it."""
    lines = [f"{'goal':<34} {'bound':>8}" + "".join(f" {weights:>10}" for weights in records) + "  met"]
    for goal in GOALS:
        bound = f"{'>=' if goal.least else '<='} {goal.bound:g}"
        values = "".join(f" {goal.value(record):>10.3g}" for record in records.values())
        lines.append(f"{goal.name:<34} {bound:>8}{values}  {'yes' if goal.met(records['bfloat16']) else 'NO'}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 for an error, whether or not the goals are met."""
    options = parse_arguments(arguments)
    records: dict[str, dict] = {}
    try:
        for weights in WEIGHTS:
            records[weights] = one_weights(options, weights)
            replace_file(options.output, (json.dumps(records, indent=1) + "\n").encode())  # a time limit keeps this one
            print(f"{latency.table(records[weights])}\n", flush=True)
            gc.collect()
    except FOR_PEOPLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{goals_table(records)}\n")
    if options.model != "7b" or "H200" not in records["bfloat16"]["machine"]["device"]:
        print(f"The goals are for 7b on an H200; this was {options.model} on {jax.devices()[0].device_kind}.")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
