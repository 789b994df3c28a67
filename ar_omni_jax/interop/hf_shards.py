"""safetensors shards and their index, as transformers names them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ar_omni_jax.interop.arrays import Specs, byte_sizes, group_by_size
from ar_omni_jax.interop.output import Progress
from ar_omni_jax.interop.safetensors_io import SafetensorsWriter


def write_shards(folder: Path, specs: Specs, tensors: Iterable[tuple[str, np.ndarray]], limit: int) -> str:
    """Writes all tensors, in whatever order they come; returns a line that says how many files there are."""
    sizes = byte_sizes(specs)
    shards = group_by_size(sizes, limit)
    count = len(shards)
    single = count == 1
    files = ["model.safetensors"] if single else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    writers = [
        SafetensorsWriter(folder / file, {name: specs[name] for name in shard})
        for file, shard in zip(files, shards, strict=True)
    ]
    place = {name: i for i, shard in enumerate(shards) for name in shard}
    total = sum(sizes.values())
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
