"""Corpora of many files: which files a path stands for, and where the records of them all lie."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax.documents import DocumentError

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
_PART = re.compile(r"(train|dev|val|test|eval)(?:ing|elopment|id|idation|uation)?(?:[-_.].*)?", re.IGNORECASE)


def list_files(path: str | os.PathLike, *suffixes: str) -> list[tuple[str, Path]]:
    """(name, file) of what `path` stands for, sorted by name: a file, all files ending in one of `suffixes` (in small
    or capital letters) under a folder, or all of those that a pattern such as DIR/train-*.parquet fits.

    A name is the path relative to the folder with "/", without the suffix where there is only one. Hidden files are
    passed over. Raises DocumentError when there is nothing to read, and where files would be left out without a word:
    folders or files that may not be read, links that lead nowhere, compressed files. So it does when parts for
    testing are among those for training.
    """
    path = Path(path)
    packed = tuple(suffix + end for suffix in suffixes for end in _COMPRESSED)
    if path.is_file():
        _refuse_compressed({path.name: path}, packed)
        return _readable([(_name(path.name, suffixes), path)])
    root, found = _found(path, (*suffixes, *packed))
    files = {file.relative_to(root).as_posix(): file for file in found if file.is_file()}
    _refuse_compressed(files, packed)
    kept = sorted((_name(name, suffixes), file) for name, file in files.items() if name.lower().endswith(suffixes))
    if not kept:
        raise DocumentError(f"{path}: has no *{' or *'.join(suffixes)} file; is it the right place?")
    _refuse_mixed_parts(path, [name for name, _ in kept])
    return _readable(kept)


def walk(*roots: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, names of subfolders, names of files) from `roots` down, each in order; hidden ones are passed over.

    Links are followed, and a folder that several lead to comes once. The caller may take names out of the subfolders.
    Raises DocumentError for a folder that may not be read and for a link that leads nowhere.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [*reversed(roots)]
    while waiting:
        folder = waiting.pop()
        subfolders, files = [], []
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink() and not os.path.exists(entry.path):
                        raise _dangling(entry.path)
                    (subfolders if entry.is_dir() else files).append(entry.name)
        except OSError as e:
            raise DocumentError(
                f"{folder}: cannot be listed ({e.strerror}); change its permissions or move it away"
            ) from e
        yield folder, subfolders, files
        waiting += [folder / name for name in reversed(subfolders)]


def _found(path: Path, ends: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """(folder that names are relative to, files with one of these endings) of a folder or a pattern."""
    if path.is_dir():
        return path, list(_below([path], ends))
    if not glob.has_magic(str(path)):
        raise DocumentError(f"{path}: no such file or folder; --input must name one")
    places = [Path(place) for place in sorted(glob.glob(str(path), recursive=True))]
    if not places:
        raise DocumentError(f"{path}: nothing fits this pattern; --input must name files, folders or a pattern of them")
    magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    if gone := next((place for place in places if not place.exists()), None):
        raise _dangling(gone)
    found = [place for place in places if place.is_file() and place.name.lower().endswith(ends)]
    return Path(*path.parts[:magic]), found + list(_below([place for place in places if place.is_dir()], ends))


def _below(roots: Sequence[Path], ends: tuple[str, ...]) -> Iterator[Path]:
    return (folder / name for folder, _, files in walk(*roots) for name in files if name.lower().endswith(ends))


def _dangling(link: str | os.PathLike) -> DocumentError:
    return DocumentError(
        f"{link}: leads to {os.readlink(link)}, which is not there; bring it back, or take the link away"
    )


def _name(name: str, suffixes: Sequence[str]) -> str:
    return name.removesuffix(suffixes[0]) if len(suffixes) == 1 else name


def _refuse_compressed(files: Mapping[str, Path], ends: tuple[str, ...]) -> None:
    """Compressed files whose plain form does not stand beside them would be left out."""
    packed = [str(file) for name, file in files.items() if name.lower().endswith(ends) and _plain(name) not in files]
    if packed:
        raise DocumentError(
            f"{len(packed)} files are compressed and cannot be read from any place: {', '.join(packed[:3])}"
            f"{', ...' if len(packed) > 3 else ''}; decompress them, or take them away"
        )


def _plain(name: str) -> str:
    return name.rpartition(".")[0]


def _refuse_mixed_parts(path: str | os.PathLike, names: list[str]) -> None:
    """Nobody is to train on what is tested: `train-0` and `test-0` are not read together."""
    parts: dict[str, str] = {}
    for name in names:
        for piece in name.split("/"):
            if match := _PART.fullmatch(piece):
                parts.setdefault(match[1].lower(), name)
    if len(parts) > 1:
        raise DocumentError(
            f"{path} has files of several parts: {', '.join(parts[part] for part in sorted(parts))}; name one part, so "
            "that what is tested is not trained on, as a folder or a pattern in quotes, such as --input='DIR/train*'"
        )


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
