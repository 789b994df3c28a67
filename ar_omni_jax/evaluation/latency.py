"""First token, first sound, tokens a second, real-time factor, and the share of the memory's speed that is used.

  python -m ar_omni_jax.evaluation.latency --model=7m                       # against HF transformers, same weights
  python -m ar_omni_jax.evaluation.latency --model=100m --batches=1,8
  python -m ar_omni_jax.evaluation.latency --model=7b --weights=bfloat16    # on a GPU; again with --weights=int8
  python -m ar_omni_jax.evaluation.latency --checkpoint=runs/toyworld/train

Every row of a batch reads a prompt of --prompt random text ids and makes --new tokens greedily, all ids legal. HF
does the same with the same weights and prompts in the same run, turn by turn with ours; `same ids` is the share of
ids that agree (rounding may part two likeliest ids, and such a row then goes its own way). A step is limited by the
bytes it must read (all matrices once, keys and values of every row) over the memory's speed, which is measured by a
copy unless --bandwidth says it; `% of limit` is that time over a step's, above 100 where a cache holds the weights.
Compilation is timed by the first run alone and counted nowhere else. Times are medians: of --short_repeats runs where
a run is short (one row's first token, the spoken answer), of --repeats where it is a whole batch with HF's beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from ar_omni_jax.evaluation.hf_baseline import Baseline, BaselineError, has_gpu
from ar_omni_jax.evaluation.latency_runs import measure_batch, measure_speech
from ar_omni_jax.evaluation.latency_subjects import MODELS, Subject, checkpoint_subject, random_subject
from ar_omni_jax.evaluation.machine import copy_bandwidth
from ar_omni_jax.files import replace_file
from ar_omni_jax.machine import machine
from ar_omni_jax.predictor import FOR_PEOPLE

LARGEST_BASELINE = 1e9  # parameters of a model that HF is asked to run on a CPU
SHORT_REPEATS = 20  # the protocol of first sounds and real-time factors asks for 20 or more


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.evaluation.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="7m", choices=MODELS, help="a size, with random weights")
    add("--checkpoint", help="directory of a training run: measure it instead")
    add("--step", type=int, help="checkpoint step (default: the newest)")
    add("--weights", choices=("float32", "bfloat16", "int8"), help="default: float32 on CPU, bfloat16 elsewhere")
    add("--batches", default="1,2,4,8,16,32", help="numbers of rows, comma-separated")
    add("--prompt", type=int, default=32, help="tokens of a prompt")
    add("--new", type=int, default=128, help="tokens of an answer")
    add("--chunk", type=int, default=32, help="tokens between two looks of the host")
    add_repeats(parser)
    add("--speech_codes", type=int, default=200, help="codes of the spoken answer (40 a second); 0: no speech")
    add("--speech_chunk", type=int, default=4, help="as --chunk, for the spoken answer: a stream looks more often")
    add(
        "--hf",
        default="auto",
        choices=("auto", "no"),
        help="auto: where installed; on a CPU up to 1e9 parameters, on a GPU if PyTorch has it",
    )
    add("--bandwidth", type=float, help="of the memory, GB/s (default: measured)")
    add("--output", type=Path, default=Path("latency.json"), help="the record")
    options = parser.parse_args(arguments)
    try:
        options.batches = [int(x) for x in options.batches.split(",")]
    except ValueError:
        parser.error(f"--batches={options.batches}: give numbers such as 1,8,32")
    for name in ("prompt", "new", "chunk", "speech_chunk", "repeats", "short_repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if min(options.batches) < 1:
        parser.error("--batches must be at least 1 each")
    return options


def add_repeats(parser: argparse.ArgumentParser) -> None:
    """--repeats and --short_repeats."""
    add = parser.add_argument
    add("--repeats", type=int, default=3, help="timed runs of each whole batch (default: %(default)s)")
    add(
        "--short_repeats",
        type=int,
        default=SHORT_REPEATS,
        help="timed runs of what is short: one row's first token, the spoken answer (default: %(default)s)",
    )


def make_subject(options: argparse.Namespace) -> Subject:
    """The model of the command line."""
    if options.checkpoint:
        return checkpoint_subject(options.checkpoint, options.step)
    dtype = "float32" if jax.default_backend() == "cpu" and options.weights != "bfloat16" else "bfloat16"
    return random_subject(options.model, dtype=dtype)


def make_baseline(subject: Subject, wanted: str) -> tuple[Baseline | None, str]:
    """(HF's model, its name), or (None, why there is none)."""
    if wanted == "no":
        return None, "left out (--hf=no)"
    try:
        if jax.default_backend() == "cpu" and subject.model.config.parameter_count() > LARGEST_BASELINE:
            raise BaselineError("the model is too large for PyTorch on a CPU")
        if jax.default_backend() != "cpu" and not has_gpu():  # before minutes are spent on its copy of the weights
            raise BaselineError("PyTorch has no GPU here, and a CPU is no comparison")
        baseline = Baseline(subject.model, subject.vocabulary)
        return baseline, f"{baseline.name}, {baseline.threads} threads"
    except BaselineError as error:
        return None, f"left out: {error}"


def measure(options: argparse.Namespace, say=print) -> dict:
    """The whole record; `say` is called with a line on progress."""
    subject = make_subject(options)
    weights = options.weights or str(subject.model.config.dtype)
    before = machine()
    bandwidth = options.bandwidth * 1e9 if options.bandwidth else copy_bandwidth()
    baseline, about = make_baseline(subject, options.hf)
    record = {
        "machine": before,
        "model": subject.name,
        "parameters": subject.model.config.parameter_count(),
        "weights": f"{subject.weights}; decoded as {weights}",
        "prompt": options.prompt,
        "new": options.new,
        "chunk": options.chunk,
        "bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "bandwidth": "given" if options.bandwidth else "measured copy, bytes read and written",
        "hf": about,
        "batches": [],
    }
    settings = dict(weights=weights, prompt=options.prompt)
    whole = dict(new=options.new, chunk=options.chunk, bandwidth=bandwidth, baseline=baseline, repeats=options.repeats)
    for rows in options.batches:
        row = measure_batch(subject, rows, short_repeats=options.short_repeats, **whole, **settings)
        record["batches"].append(row)
        say(f"batch {rows}: {row['tokens_per_second']:.0f} tokens/s")
        gc.collect()
    del baseline, whole
    if options.speech_codes:
        spoken = dict(codes=options.speech_codes, chunk=options.speech_chunk, repeats=options.short_repeats)
        record["speech"] = measure_speech(subject, **spoken, **settings)
    return record


def table(record: dict) -> str:
    """The record for people."""
    m = record["machine"]
    lines = [
        f"{m['device']}; {m['processor']}, {m['cores']} cores, load {m['load']}; jax {m['jax']}",
        f"{record['model']}: {record['parameters'] / 1e6:.1f} M parameters, {record['weights']}",
        f"{record['prompt']} + {record['new']} tokens, greedy, chunks of {record['chunk']}; memory "
        f"{record['bandwidth_gb_s']:g} GB/s ({record['bandwidth']})",
        f"HF: {record['hf']}",
        *([f"THE MACHINE WAS BUSY (load {m['load']} before the start): these times say little"] if _busy(m) else []),
        "",
        f"{'batch':>5} {'first ms':>9} {'tokens/s':>9} {'step ms':>8} {'% of limit':>10} {'compile s':>9} "
        f"{'HF first ms':>11} {'HF tokens/s':>11} {'ratio':>6} {'same ids':>8} {'margin':>8} {'runs':>6}",
    ]
    for r in record["batches"]:
        hf = r.get("hf")
        right = [f"{'-':>{width}}" for width in (11, 11, 6, 8, 8)]
        if hf:
            right = [f"{hf['first_token_ms']:>11.1f}", f"{hf['tokens_per_second']:>11.0f}", f"{hf['ratio']:>6.2f}"]
            right += [f"{hf['same_ids']:>8.1%}", f"{'-' if hf['margin'] is None else format(hf['margin'], '.1e'):>8}"]
        lines.append(
            f"{r['batch']:>5} {r['first_token_ms']:>9.1f} {r['tokens_per_second']:>9.0f} {r['step_ms']:>8.2f} "
            f"{r['percent_of_limit']:>10.1f} {r['compile_seconds']:>9.1f} {' '.join(right)} "
            f"{'{first_token_repeats}, {repeats}'.format(**r):>6}"
        )
    lines.append("runs: medians are of so many, those of the first token and all others, HF's too")
    if any(r.get("hf") for r in record["batches"]):
        lines.append("margin: logits apart, in standard deviations, where an answer first differs from HF's")
    lines += [f"batch {r['batch']}: {r['note']}" for r in record["batches"] if r.get("note")]
    if "speech" in record:
        s = record["speech"]
        lines += [
            "",
            f"speech: {s['codes']} codes, {s['seconds_of_sound']:.2f} s of sound; codec {s['codec']}; chunks of "
            f"{s['chunk']} codes",
            f"first token {s['first_token_ms']:.1f} ms, first sound {s['first_sound_ms']:.1f} ms "
            f"({s['first_sound_codes']} codes at once); RTF {s['rtf_without_codec']:.3f} without codec, "
            f"{s['rtf_with_codec']:.3f} with; medians of {s['repeats']} runs",
        ]
    return "\n".join(lines)


def _busy(machine: dict) -> bool:
    """Whether others used so much of the machine that the measurement is not one."""
    return machine["load"] is not None and machine["load"] > machine["cores"] / 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(arguments)
    try:
        record = measure(options, say=lambda line: print(line, file=sys.stderr, flush=True))
    except FOR_PEOPLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    replace_file(options.output, (json.dumps(record, indent=1) + "\n").encode())
    print(f"{table(record)}\n\nwrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
