"""How fast documents are read for training, where the time of a build goes, and what memory the commands take.

    python -m data_pipelines.benchmark                      # everything, about a quarter of an hour on two cores
    python -m data_pipelines.benchmark --only=readers

Prints tables and writes benchmark.json, both with the machine's name. All data are made for the purpose: token
documents with the lengths of LAION, MLS and web pages in the published vocabulary, JPEG pictures, FLAC utterances.

readers   the same documents through packed shards and this loader, through JSON lines that one process parses and
          pads (the reference's way), and through HF datasets, where installed, padded too: useful tokens a second,
          and the useful share of a batch's places
build     seconds that build_shards spends on each stage. Decoding runs in threads beside the others; what the
          build waited for of it stands in "wait"
memory    peak of each command at one and at ten times the documents, in a process of its own
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.files import replace_file
from ar_omni_jax.machine import machine
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import chameleon_vocabulary
from data_pipelines.benchmark import corpus, readers
from data_pipelines.benchmark.memory import CommandFailed, peak_memory
from data_pipelines.build_shards import build
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.stage_clock import StageClock

PARTS = ("readers", "build", "memory")
TIMES = 10  # the larger corpus of the memory measurements


def measure_readers(directory: Path, documents: int, length: int, rows: int, seconds: float) -> dict[str, Any]:
    """Tokens a second and useful share of each way to read; None for a way that is not installed."""
    vocabulary = chameleon_vocabulary()
    corpus.write_token_shards(directory / "shards", documents, vocabulary)
    packed = pack(directory / "shards", directory / "packed", PackOptions(length, overlong="split", top_up="text"))
    lines = directory / "reference.jsonl"
    tokens = corpus.write_reference_jsonl(lines, documents, vocabulary)
    ways: dict[str, Callable[[], readers.Batches | None]] = {
        "packed shards, this loader": lambda: readers.packed_batches(directory / "packed", rows, 0, "repeat"),
        "packed shards, 2 workers": lambda: readers.packed_batches(directory / "packed", rows, 2, "repeat"),
        "JSON lines on one rank, padded": lambda: readers.jsonl_batches(lines, rows, vocabulary.pad),
        "HF datasets, padded": lambda: readers.datasets_batches(lines, rows, vocabulary.pad, directory / "cache"),
    }
    found = {name: readers.measure(make, seconds) for name, make in ways.items()}
    settings = {"documents": documents, "tokens": tokens, "length": length, "rows": rows}
    return settings | {"fill": packed.splits["train"]["fill"], "ways": found}


def measure_build(directory: Path, documents: int) -> dict[str, Any]:
    """Seconds of each stage of a build of pictures and utterances by the toy world's tokenizers."""
    tokenizers = load_tokenizers("toyworld")
    manifest = corpus.write_media(directory / "media", documents)
    build("manifest", manifest, directory / "first", tokenizers, quiet=True)  # compiles the codecs
    clock, start = StageClock(), time.perf_counter()
    info = build("manifest", manifest, directory / "again", tokenizers, quiet=True, clock=clock)
    seconds = time.perf_counter() - start
    tokens = info.splits["train"]["tokens"]
    rates = {"documents/s": documents / seconds, "tokens/s": tokens / seconds}
    return {"documents": documents, "tokens": tokens, "seconds": seconds, "stages": clock.seconds} | rates


def measure_memory(directory: Path, documents: int) -> dict[str, list[float]]:
    """{command: MiB at `documents`, MiB at TIMES as many}."""
    peaks: dict[str, list[float]] = {}
    for count in (documents, documents * TIMES):
        here = directory / str(count)
        manifest = corpus.write_media(here / "media", count)
        corpus.write_token_shards(here / "shards", count, chameleon_vocabulary())
        whole = ["--length=8192", "--unit_tokens=200000"]
        commands = [
            ("build_shards", [f"--input={manifest}", f"--output={here / 'built'}", "--records_per_shard=256"]),
            ("pack_shards", [f"--input={here / 'shards'}", f"--output={here / 'packed'}", *whole]),
            ("inspect_shards", [f"--input={here / 'packed'}"]),
            ("benchmark.readers", [str(here / "packed"), "8"]),
        ]
        for name, arguments in commands:
            peak = peak_memory(f"data_pipelines.{name}", arguments)
            peaks.setdefault("loader" if name == "benchmark.readers" else name, []).append(peak)
    return peaks


def tables(record: dict[str, Any]) -> str:
    """The record as text."""
    place = record["machine"]
    lines = [f"{place['processor']}, {place['cores']} cores, {place['device']}, load {place['load']}"]
    if "readers" in record:
        part = record["readers"]
        lines += [
            "",
            f"reading {part['documents']} documents ({part['tokens']} tokens), rows of {part['length']}, "
            f"{part['rows']} rows or documents a batch",
            f"{'':34s}{'useful tokens/s':>16s}{'places/s':>14s}{'useful share':>14s}",
        ]
        for name, way in part["ways"].items():
            if way is None:
                lines.append(f"{name:34s}{'not installed':>16s}")
            else:
                lines.append(f"{name:34s}{way['tokens/s']:16,.0f}{way['places/s']:14,.0f}{way['useful']:14.2%}")
    if "build" in record:
        part = record["build"]
        lines += [
            "",
            f"building {part['documents']} documents: {part['seconds']:.1f} s, {part['documents/s']:.0f} documents/s, "
            f"{part['tokens/s']:.0f} tokens/s",
            "seconds: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in part["stages"].items()),
        ]
    if "memory" in record:
        lines += ["", f"{'peak memory, MiB':34s}{'1 x':>10s}{f'{TIMES} x':>10s}"]
        lines += [f"{name:34s}{small:10.0f}{large:10.0f}" for name, (small, large) in record["memory"].items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part, may repeat; default: all")
    parser.add_argument("--documents", type=int, default=6000, help="token documents to read")
    parser.add_argument("--length", type=int, default=8192, help="tokens of a packed row")
    parser.add_argument("--rows", type=int, default=8, help="rows, or documents that are padded, in a batch")
    parser.add_argument("--seconds", type=float, default=10, help="time of each way to read")
    parser.add_argument("--media", type=int, default=1000, help="documents to build")
    parser.add_argument("--memory_documents", type=int, default=1024, help="documents of the smaller memory corpus")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="the record")
    args = parser.parse_args(argv)
    parts: dict[str, Callable[[Path], Any]] = {
        "readers": lambda path: measure_readers(path, args.documents, args.length, args.rows, args.seconds),
        "build": lambda path: measure_build(path, args.media),
        "memory": lambda path: measure_memory(path, args.memory_documents),
    }
    record: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only or PARTS:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            try:
                record[name] = parts[name](Path(scratch, name))
            except CommandFailed as e:
                sys.exit(f"benchmark: {e}")
    replace_file(args.output, (json.dumps(record, indent=1) + "\n").encode())
    print(tables(record))


if __name__ == "__main__":
    main()
