"""How fast documents are read for training, where the time of a build goes, and what memory the commands take.

    python -m data_pipelines.benchmark                      # everything, about half an hour on two cores
    python -m data_pipelines.benchmark --only=readers

Prints tables and writes benchmark.json, both with the machine's name. All data are made for the purpose: token
documents with the lengths of LAION, MLS and web pages in the published vocabulary, JPEG pictures, FLAC utterances.

readers   the same documents through packed shards and this loader, through JSON lines that one process parses and
          pads (the reference's way), and through HF datasets, where installed, padded too: useful tokens a second,
          and the useful share of a batch's places
build     seconds that build_shards spends on each stage, with media decoded by threads (0 workers) and by processes.
          Decoding runs beside the others; what the build waited for of it stands in "wait". Then decoding alone
memory    peak of each command at one and at ten times the documents, with the processes that it starts
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
from ar_omni_jax.tokenizers.bundle import Tokenizers, load_tokenizers
from ar_omni_jax.vocabulary import chameleon_vocabulary
from data_pipelines.benchmark import corpus, growth, readers
from data_pipelines.benchmark.memory import CommandFailed
from data_pipelines.build_shards import build
from data_pipelines.decode import DecodeRequest, decode
from data_pipelines.decode_pool import decode_pool
from data_pipelines.media import codecs_of
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.sources import open_source
from data_pipelines.stage_clock import STAGES, StageClock

PARTS = ("readers", "build", "memory")
WORKERS = (0, 2)  # processes that decode, of the measured builds


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


def measure_build(directory: Path, documents: int, workers: Sequence[int] = WORKERS) -> dict[str, Any]:
    """Seconds of each stage of building pictures and utterances with the toy world's tokenizers, by `workers`."""
    tokenizers = load_tokenizers("toyworld")
    manifest = corpus.write_media(directory / "media", documents)
    first = build("manifest", manifest, directory / "first", tokenizers, quiet=True)  # compiles the codecs
    tokens, runs = first.splits["train"]["tokens"], {}
    for count in workers:
        clock, start = StageClock(), time.perf_counter()
        build("manifest", manifest, directory / str(count), tokenizers, quiet=True, clock=clock, workers=count)
        seconds = time.perf_counter() - start
        rates = {"documents/s": documents / seconds, "tokens/s": tokens / seconds}
        runs[str(count)] = {"seconds": seconds, "stages": clock.seconds} | rates
    alone = {str(count): _decoding_rate(manifest, count, tokenizers) for count in workers}
    return {"documents": documents, "tokens": tokens, "workers": runs, "decoded/s": alone}


def _decoding_rate(manifest: Path, workers: int, tokenizers: Tokenizers) -> float:
    """Media a second of a pool that does nothing else, once it runs."""
    codecs, requests = codecs_of(tokenizers), []
    for record in open_source("manifest", manifest).read(0, sys.maxsize):
        for part in record.document.media():
            requests.append(DecodeRequest(record.id, part.modality, part.value, codecs.size_of(part.modality)))
    with decode_pool(workers) as pool:
        list(pool.map(decode, requests[:64]))
        start = time.perf_counter()
        found = list(pool.map(decode, requests))
        return len(found) / (time.perf_counter() - start)


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
        lines += ["", f"building {part['documents']} documents ({part['tokens']} tokens), seconds of each stage"]
        lines += [f"{'workers':8s}" + "".join(f"{name:>9s}" for name in (*STAGES, "all")) + f"{'tokens/s':>10s}"]
        for count, run in part["workers"].items():
            seconds = (*run["stages"].values(), run["seconds"])
            lines += [f"{count:8s}" + "".join(f"{value:9.2f}" for value in seconds) + f"{run['tokens/s']:10.0f}"]
        rates = ", ".join(f"{rate:.0f} media/s with {count}" for count, rate in part["decoded/s"].items())
        lines += [f"decoding alone: {rates} workers (0: threads)"]
    if "memory" in record:
        lines += ["", f"{'peak memory, MiB':34s}{'1 x':>10s}{f'{growth.TIMES} x':>10s}"]
        for name, peaks in record["memory"].items():
            lines += [f"{name:34s}" + ("".join(f"{peak:10.0f}" for peak in peaks) if peaks else " not installed")]
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
    parser.add_argument(
        "--memory_of", action="append", choices=growth.COMMANDS, help="a command to measure, may repeat; default: all"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="the record")
    args = parser.parse_args(argv)
    parts: dict[str, Callable[[Path], Any]] = {
        "readers": lambda path: measure_readers(path, args.documents, args.length, args.rows, args.seconds),
        "build": lambda path: measure_build(path, args.media),
        "memory": lambda path: growth.measure_memory(path, args.memory_documents, args.memory_of),
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
