"""Peak memory of every command at one and at TIMES as many documents: none may grow with its corpus.

`build_shards` is measured for each kind of index that a source keeps: lines of a manifest, headers of tars, parquet's
footers, listings of a tree of sounds, and a tree of sounds with a file a text. The manifest has pictures and sounds of
two seconds; tars have small pictures, the others short sounds, for it is their index that could grow.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ar_omni_jax.vocabulary import chameleon_vocabulary
from data_pipelines.benchmark import corpus
from data_pipelines.benchmark.memory import peak_memory

TIMES = 10
WORKERS = 2  # processes that decode, which count as well

SOURCES: dict[str, Callable[[Path, int], Path]] = {  # source: (folder, documents) -> what --input names
    "manifest": corpus.write_media,
    "webdataset": corpus.write_webdataset,
    "hf_parquet": corpus.write_parquet,
    "librispeech": corpus.write_librispeech,
    "vctk": corpus.write_vctk,
}


def measure_memory(
    directory: Path, documents: int, names: Collection[str] | None = None
) -> dict[str, list[float] | None]:
    """{name: [MiB at `documents`, MiB at TIMES as many]} of COMMANDS or those named; None for what is not installed."""
    found: dict[str, list[float] | None] = {}
    for name in COMMANDS if names is None else names:
        source = name.partition("build_shards, ")[2]
        if source == "hf_parquet" and importlib.util.find_spec("pyarrow") is None:
            found[name] = None
            continue
        sizes = {count: directory / (source or "tokens") / str(count) for count in (documents, documents * TIMES)}
        peak = functools.partial(_build, source) if source else _READING[name]
        found[name] = [peak(here, count) for count, here in sizes.items()]
        print(f"{name}: {found[name][0]:.0f} and {found[name][1]:.0f} MiB", file=sys.stderr, flush=True)
    return found


def _build(source: str, here: Path, count: int) -> float:
    path = SOURCES[source](here / "input", count)
    flags = [f"--source={source}", f"--input={path}", f"--output={here / 'shards'}", f"--workers={WORKERS}"]
    return peak_memory("data_pipelines.build_shards", [*flags, "--records_per_shard=256"])


def _pack(here: Path, count: int, name: str = "packed", options: Sequence[str] = ("--length=8192",)) -> float:
    if not (here / "shards").is_dir():
        corpus.write_token_shards(here / "shards", count, chameleon_vocabulary())
    flags = [f"--input={here / 'shards'}", f"--output={here / name}", "--unit_tokens=200000", *options]
    return peak_memory("data_pipelines.pack_shards", flags)


def _pack_in_buckets(here: Path, count: int) -> float:
    """Some two thirds of the documents are longer than the ordinary rows."""
    return _pack(here, count, "buckets", ["--length=512", "--overlong=bucket", "--bucket_lengths=2048,8192"])


def _packed(here: Path, count: int) -> Path:
    if not (here / "packed").is_dir():
        _pack(here, count)
    return here / "packed"


_READING: dict[str, Callable[[Path, int], float]] = {  # command: (folder, documents) -> MiB
    "pack_shards": _pack,
    "pack_shards, buckets": _pack_in_buckets,
    "inspect_shards": lambda here, count: peak_memory(
        "data_pipelines.inspect_shards", [f"--input={_packed(here, count)}"]
    ),
    "loader": lambda here, count: peak_memory("data_pipelines.benchmark.readers", [str(_packed(here, count)), "8"]),
}
COMMANDS = (*(f"build_shards, {source}" for source in SOURCES), *_READING)
