"""Three ways to read the same documents for training: packed shards, JSON lines that are padded, HF datasets.

Each reader yields (useful tokens, places) of the batches that it makes; `measure` times it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.dataset_info import read_info
from data_pipelines.loader import make_loader

Batches = Generator[tuple[int, int], None, None]


def packed_batches(directory: Path, rows: int, workers: int = 0, stop: str = "all_exhausted") -> Batches:
    """Batches of `rows` packed rows from this project's loader, with targets and loss weights, all groups in turn."""
    data = {"path": directory, "workers": workers, "stop": stop, "mixture": _sizes(directory)}
    with make_loader(data, split="train", global_batch=rows, seed=0) as loader:
        for batch in loader:
            yield int(np.count_nonzero(batch["segment_ids"])), batch["tokens"].size


def _sizes(directory: Path) -> dict[str, float]:
    """The mixture that reads each group as often as it has rows."""
    return {group: float(n) for group, n in read_info(directory).splits["train"]["rows"].items() if n}


def jsonl_batches(path: Path, rows: int, pad: int) -> Batches:
    """The reference's way: one process parses a line a document; a batch is padded to its longest document."""
    with path.open() as file:
        while lines := list(itertools.islice(file, rows)):
            yield _padded([_example(json.loads(line)) for line in lines], pad)


def _example(record: dict[str, Any]) -> tuple[np.ndarray, int]:
    return np.array(record["discrete_code"], np.int32), len(record["response"])


def _padded(examples: list[tuple[np.ndarray, int]], pad: int) -> tuple[int, int]:
    """Makes the arrays that a trainer needs: ids, mask, labels, and weights of the responses."""
    longest = max(len(ids) for ids, _ in examples)
    ids = np.full((len(examples), longest), pad, np.int32)
    mask, weights = np.zeros(ids.shape, np.int32), np.ones(ids.shape, np.float32)
    for i, (tokens, response) in enumerate(examples):
        ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
        weights[i, len(tokens) - response : len(tokens)] = 2
    labels = np.where(mask == 1, ids, -100)
    return int(np.count_nonzero(labels != -100)), ids.size


def datasets_batches(path: Path, rows: int, pad: int, cache: Path) -> Batches | None:
    """HF datasets (Arrow, memory-mapped) over the same lines, padded the same way; None where it is not installed.

    Converting the lines to Arrow is done before the first batch is asked for.
    """
    try:
        import datasets
    except ImportError:
        return None
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "task": datasets.Value("string"),
            "discrete_code": datasets.Sequence(datasets.Value("int32")),
            "response": datasets.Sequence(datasets.Value("int32")),
        }
    )
    data = datasets.Dataset.from_json(str(path), features=features, cache_dir=str(cache)).with_format("numpy")

    def batches() -> Batches:
        for batch in data.iter(rows):
            yield _padded(list(zip(batch["discrete_code"], map(len, batch["response"]), strict=True)), pad)

    return batches()


def measure(make: Callable[[], Batches | None], seconds: float) -> dict[str, float] | None:
    """Reads for about so many seconds, passing through the data anew where it ends, after one batch to warm up.

    Returns tokens a second (useful ones), places a second, and the useful share of all places of one whole pass,
    or of what was read where that is less; None where there is nothing to read with.
    """
    batches = make()
    if batches is None:
        return None
    next(batches)
    total = places = 0
    once: tuple[int, int] | None = None
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not total:
        found = next(batches, None)
        if found is None:
            once = once or ((total, places) if total else None)
            batches = make()
            continue
        total, places = total + found[0], places + found[1]
    batches.close()  # ends read-ahead and workers
    useful, all_places = once or (total, places)
    return {"tokens/s": total / spent, "places/s": places / spent, "useful": useful / max(all_places, 1)}


def main(argv: list[str] | None = None) -> None:
    """DIRECTORY ROWS: reads all packed rows of a directory once, for whoever measures the memory of that."""
    directory, rows = sys.argv[1:] if argv is None else argv
    useful, places = (sum(column) for column in zip(*packed_batches(Path(directory), int(rows)), strict=True))
    print(f"{useful} tokens in {places} places")


if __name__ == "__main__":
    main()
