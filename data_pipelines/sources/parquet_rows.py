"""Rows of a parquet file, or of all in a folder: random access by row groups, some rows in memory at a time."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import DocumentError

_TAIL = 8  # length of the footer, and magic
_BATCH = 64  # rows decoded at once


class ParquetRows:
    """Rows of all files in order, reduced to `columns` (which must be there) and those of `optional` that are.

    `digest` covers names, sizes and footers, which tell each column chunk's place and statistics.
    Raises DocumentError for what is missing, no parquet, or without a column.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], optional: Sequence[str] = ()):
        try:
            import pyarrow.parquet
        except ImportError as e:
            raise DocumentError("parquet needs pyarrow: pip install pyarrow") from e
        self._parquet = pyarrow.parquet
        self._errors = (OSError, ValueError, pyarrow.lib.ArrowException)
        path = Path(path)
        self.files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")) if path.is_dir() else [path]
        if not self.files:
            raise DocumentError(f"{path}: no .parquet files in it; --input must name a file or their folder")
        self._columns, self._ends, footers = {}, [], []
        self._groups: dict[Path, list[int]] = {}  # ends of the row groups
        for file in self.files:
            metadata, names = self._open(file)
            missing = [name for name in columns if name not in names]
            if missing:
                raise DocumentError(f"{file}: no column {', '.join(map(repr, missing))}; it has {', '.join(names)}")
            self._columns[file] = [*columns, *(name for name in optional if name in names)]
            groups = (metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
            self._groups[file] = list(itertools.accumulate(groups))
            self._ends.append(metadata.num_rows + (self._ends[-1] if self._ends else 0))
            footers.append(f"{file.name} {_footer_digest(file)}")
        self.digest = hashlib.sha256("\n".join(footers).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def _open(self, file: Path) -> tuple[Any, list[str]]:
        if not file.is_file():
            raise DocumentError(f"{file}: no such file; --input must name a .parquet file or their folder")
        try:
            with self._parquet.ParquetFile(file) as found:
                return found.metadata, list(found.schema_arrow.names)
        except self._errors as e:
            raise DocumentError(f"{file}: no parquet file, or cut short ({_first_line(e)}); copy it again") from e

    def __len__(self) -> int:
        return self._ends[-1]

    def places(self) -> Iterator[tuple[str, str]]:
        """(file and row for people, a name unique among the rows) of every row, without reading one."""
        for file in self.files:
            for row in range(self._groups[file][-1] if self._groups[file] else 0):
                yield _place(file, row)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, str, Mapping[str, Any] | DocumentError]]:
        """(index, file and row, unique name, {column: pyarrow scalar}) of the rows [start, stop).

        In place of the columns a DocumentError for each row of a row group that cannot be decoded.
        """
        start, stop = max(start, 0), min(stop, len(self))
        for number in range(bisect.bisect_right(self._ends, start), len(self.files)):
            file, first = self.files[number], self._ends[number - 1] if number else 0
            if first >= stop:
                return
            for row, values in self._file_rows(file, max(start - first, 0), stop - first):
                yield first + row, *_place(file, row), values

    def _file_rows(self, file: Path, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        ends = self._groups[file]
        for group in range(bisect.bisect_right(ends, start), len(ends)):
            begin, end = ends[group - 1] if group else 0, min(ends[group], stop)
            if begin >= stop:
                return
            row = begin
            try:
                for values in self._group_rows(file, group):
                    if row >= end:
                        break
                    if row >= start:
                        yield row, values
                    row += 1
            except self._errors as e:
                error = f"row group {group} cannot be decoded ({_first_line(e)}); copy the file again"
                for lost in range(max(row, start), end):
                    yield lost, DocumentError(f"{_place(file, lost)[0]}: {error}")

    def _group_rows(self, file: Path, group: int) -> Iterator[Mapping[str, Any]]:
        names = self._columns[file]
        with self._parquet.ParquetFile(file, page_checksum_verification=True) as found:
            for batch in found.iter_batches(_BATCH, [group], names):
                columns = [batch.column(name) for name in names]
                for row in range(batch.num_rows):
                    yield {name: column[row] for name, column in zip(names, columns, strict=True)}


def _place(file: Path, row: int) -> tuple[str, str]:
    return f"{file}: row {row}", f"{file.stem}:{row}"


def _footer_digest(file: Path) -> str:
    """Of size and footer, which a parquet file ends in."""
    with file.open("rb") as stream:
        size = stream.seek(-_TAIL, os.SEEK_END) + _TAIL
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-_TAIL - length, os.SEEK_END)
        return hashlib.sha256(f"{size} ".encode() + stream.read(length)).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
