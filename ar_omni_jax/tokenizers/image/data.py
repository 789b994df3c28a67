"""Pictures of a data set for codec training: DIR/{split}.jsonl, whose parts {"image": path} name the files.

Any JSON nesting will do (the manifest of a tri-modal data set has turns of parts); paths are relative to DIR.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.tokenizers.image.preprocess import read_image

CACHE_BYTES = 2 * 2**30  # pictures are kept decoded, as uint8, when they all fit in this many bytes


def _image_paths(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "image" and isinstance(value, str):
                yield value
            else:
                yield from _image_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from _image_paths(value)


def list_images(folder: str | Path, split: str, limit: int | None = None) -> list[Path]:
    """Files named by DIR/{split}.jsonl, in order, each once; FileNotFoundError or ValueError if none."""
    manifest = Path(folder) / f"{split}.jsonl"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} does not exist; data_dir must hold train.jsonl and test.jsonl")
    found: dict[str, None] = {}
    with open(manifest, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found.update(dict.fromkeys(_image_paths(json.loads(line))))
            except json.JSONDecodeError as error:
                raise ValueError(f"{manifest}, line {number}: not JSON ({error})") from error
            if limit is not None and len(found) >= limit:
                break
    if not found:
        raise ValueError(f'{manifest} names no picture (no part {{"image": path}} in any line)')
    return [Path(folder) / name for name in list(found)[:limit]]


class ImageSet:
    """Preprocessed pictures by index; decoded once and kept as uint8 when the whole set is small enough."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size
        shape = (len(paths), size, size, 3)
        self._cache = np.zeros(shape, np.uint8) if np.prod(shape) <= CACHE_BYTES else None
        self._known = np.zeros(len(paths), bool)
        self._read(0)  # a wrong folder fails here, before training starts

    def __len__(self) -> int:
        return len(self.paths)

    def _read(self, index: int) -> np.ndarray:
        if self._cache is None:
            return self._decode(index)
        if not self._known[index]:
            self._cache[index], self._known[index] = self._decode(index), True
        return self._cache[index]

    def _decode(self, index: int) -> np.ndarray:
        pixels = read_image(self.paths[index], self.size)
        return np.round((pixels + 1) * 127.5).astype(np.uint8)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """float32 [len(indices), size, size, 3] in [-1, 1]."""
        pixels = np.stack([self._read(int(index)) for index in indices])
        return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Indices of the batch of one step: a shuffle of all `count` for each epoch, one after the other."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    chosen = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch))).permutation(count)
        chosen[epochs == epoch] = order[positions[epochs == epoch] % count]
    return chosen


def busiest_crops(pixels_BHWC: np.ndarray, size: int, step: int, tries: int, rng: np.random.Generator) -> np.ndarray:
    """From each picture the crop [size, size] of most variance among `tries` at multiples of `step` pixels.

    Crops at multiples of the network's downsampling keep each code's patch where it is in whole pictures.
    """
    height, width = pixels_BHWC.shape[1:3]
    crops = []
    for picture in pixels_BHWC:
        tops = rng.integers(0, (height - size) // step + 1, tries) * step
        lefts = rng.integers(0, (width - size) // step + 1, tries) * step
        found = [picture[t : t + size, x : x + size] for t, x in zip(tops, lefts, strict=True)]
        crops.append(max(found, key=np.var))
    return np.stack(crops)
