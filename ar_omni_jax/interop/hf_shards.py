"""safetensors shards and their index, as transformers names them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ar_omni_jax.interop.arrays import DTYPES
from ar_omni_jax.interop.output import Progress
from ar_omni_jax.interop.safetensors_io import SafetensorsWriter

Specs = Mapping[str, tuple[tuple[int, ...], str]]


def plan_shards(specs: Specs, limit: int) -> list[dict[str, tuple[tuple[int, ...], str]]]:
    """Tensors in their order, in as few files of at most `limit` bytes as that takes (one tensor at least)."""
    shards, filled = [{}], 0
    for name, (shape, dtype) in specs.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
    return shards


def write_shards(folder: Path, specs: Specs, tensors: Iterable[tuple[str, np.ndarray]], limit: int) -> str:
    """Writes all tensors, in whatever order they come; returns a line that says how many files there are."""
    shards = plan_shards(specs, limit)
    count = len(shards)
    single = count == 1
    files = ["model.safetensors"] if single else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    writers = [SafetensorsWriter(folder / file, shard) for file, shard in zip(files, shards, strict=True)]
    place = {name: i for i, shard in enumerate(shards) for name in shard}
    total = sum(math.prod(shape) * DTYPES[dtype].itemsize for shape, dtype in specs.values())
    progress = Progress(total)
    for name, array in tensors:
        writers[place[name]].write(name, array)
        progress.add(array.nbytes)
    for writer in writers:
        writer.close()
    if not single:
        index = {"metadata": {"total_size": total}, "weight_map": {name: files[i] for name, i in place.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return f"{len(specs)} tensors, {total / 1e9:.2f} GB, in {len(files)} safetensors file{'' if single else 's'}"
