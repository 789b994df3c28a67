"""Corpora of many files: which files a path stands for, and where the records of them all lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ar_omni_jax.documents import DocumentError


def list_files(path: str | os.PathLike, suffix: str) -> list[tuple[str, Path]]:
    """(name, file) of the file `path`, or of every file ending in `suffix` under the folder `path`, sorted by name.

    A name is the path relative to the folder with "/" and without `suffix`; hidden files are passed over.
    Raises DocumentError when there is nothing to read.
    """
    root = Path(path)
    if root.is_file():
        return _readable([(root.name.removesuffix(suffix), root)])
    if not root.is_dir():
        raise DocumentError(f"{path}: no such file or folder; --input must name one")
    found = ((file.relative_to(root), file) for file in root.rglob(f"*{suffix}") if file.is_file())
    kept = [
        (relative.as_posix().removesuffix(suffix), file)
        for relative, file in found
        if not any(piece.startswith(".") for piece in relative.parts)
    ]
    if not kept:
        raise DocumentError(f"{path}: this folder has no *{suffix} file; is it the right one?")
    return _readable(sorted(kept))


def _readable(files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    for _, file in files:
        if not os.access(file, os.R_OK):
            raise DocumentError(f"{file}: may not be read by this user; change its permissions or move it away")
    return files


class Spans:
    """Records 0 .. len - 1 that lie in parts of given sizes, one after another."""

    def __init__(self, sizes: Iterable[int]):
        self._starts = np.concatenate([[0], np.cumsum(np.fromiter(sizes, np.int64))])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def start(self, part: int) -> int:
        """Index of the first record of a part."""
        return int(self._starts[part])

    def ranges(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(part, first, last): the records [start, stop) as ranges [first, last) counted within each part."""
        stop = min(stop, len(self))
        part = int(np.searchsorted(self._starts, start, "right")) - 1
        while start < stop:
            begin, end = int(self._starts[part]), int(self._starts[part + 1])
            last = min(stop, end)
            if last > start:
                yield part, start - begin, last - begin
            start, part = max(start, last), part + 1
