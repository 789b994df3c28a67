"""The rows of a parquet file, or of a folder of them, in order and from any place, a few at a time.

Format: apache/parquet-format, README.md: row groups of column chunks of pages, described by a footer whose length
stands in the file's last eight bytes. Opening reads the footers only. Reading goes page by page through the row
groups, so what is in memory is a page of each column (or a row group, where its writer made one page of it) and a
batch of rows, whatever the size of the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.listing import Spans, list_files

_BUFFER = 1 << 20  # bytes of a column chunk that are read at once


def pyarrow_parquet():
    """The module `pyarrow.parquet`; DocumentError saying how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise DocumentError("parquet files are read by pyarrow: pip install 'ar_omni_jax[data]'") from e
    return pyarrow.parquet


@dataclasses.dataclass(frozen=True)
class ParquetFile:
    """One file: rows of each row group, the schema (pyarrow), or why it cannot be read, in `fault`."""

    name: str
    path: Path
    groups: tuple[int, ...]
    schema: Any
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row. index: among all rows; number: in its file, from 0, -1 for a file that cannot be read.

    values: the columns asked for, as Python objects; None where `error` says why there are none.
    """

    index: int
    file: ParquetFile
    number: int
    values: dict[str, Any] | None = None
    error: str = ""

    @property
    def where(self) -> str:
        """File and row, for people."""
        return str(self.file.path) + (f": row {self.number}" if self.number >= 0 else "")


class ParquetRows:
    """All rows of --input. A file that cannot be opened counts as one row, with the error."""

    def __init__(self, path: str | os.PathLike):
        parquet = pyarrow_parquet()
        digest = hashlib.sha256()
        self.files = [_open(parquet, name, file, digest) for name, file in list_files(path, ".parquet")]
        self._spans = Spans(1 if file.fault else sum(file.groups) for file in self.files)
        self.digest = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._spans)

    def rows(
        self, start: int, stop: int, columns: Callable[[ParquetFile], list[str]], batch: int = 256
    ) -> Iterator[Row]:
        """Rows [start, stop).

        Args:
          columns: names of the columns wanted of a file, or DocumentError saying why it has not got them.
          batch: rows that are in memory at a time.
        """
        for part, first, last in self._spans.ranges(start, stop):
            file, offset = self.files[part], self._spans.start(part)
            if file.fault:
                yield Row(offset, file, -1, error=f"{file.path}: {file.fault}")
                continue
            try:
                with _opened(file) as opened:
                    names = columns(file)
                    for group, begin, end in Spans(file.groups).ranges(first, last):
                        for values in _group(opened, group, begin, end, names, batch):
                            yield _row(offset, file, first, values)
                            first += 1
            except DocumentError as e:
                for number in range(first, last):
                    yield _row(offset, file, number, str(e))

    def check(self, columns: Callable[[ParquetFile], Any]) -> ParquetFile | None:
        """The first file that can be read, if any; DocumentError when it has not got the columns."""
        file = next((file for file in self.files if not file.fault), None)
        try:
            if file is not None:
                columns(file)
        except DocumentError as e:
            raise DocumentError(f"{file.path}: {e}") from e
        return file


def _open(parquet, name: str, path: Path, digest) -> ParquetFile:
    """Reads the footer of one file; `digest` takes it in."""
    digest.update(name.encode("utf-8", "surrogatepass"))
    try:
        with open(path, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            tail = os.pread(raw.fileno(), 8, max(0, size - 8))
            length = min(int.from_bytes(tail[:4], "little"), size) if tail[4:] == b"PAR1" else 0
            digest.update(size.to_bytes(8, "little") + os.pread(raw.fileno(), length + 8, max(0, size - length - 8)))
        with parquet.ParquetFile(path) as file:
            return ParquetFile(name, path, _groups(file), file.schema_arrow)
    except (OSError, ValueError, NotImplementedError) as e:  # pyarrow's errors are of these kinds
        return ParquetFile(name, path, (), None, f"no whole parquet file ({_reason(e)}); copy or make it again")


def _opened(file: ParquetFile):
    """The file for reading; DocumentError when it is not there or not as it was."""
    try:
        # Without pre_buffer, or the group's whole column chunks would be in memory.
        opened = pyarrow_parquet().ParquetFile(
            file.path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
        )
    except (OSError, ValueError) as e:
        raise DocumentError(f"cannot be read any more ({_reason(e)}); start again when it is there") from e
    if _groups(opened) != file.groups:
        opened.close()
        raise DocumentError("the file has changed since it was listed; start again")
    return opened


def _groups(opened) -> tuple[int, ...]:
    return tuple(opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups))


def _group(opened, group: int, first: int, last: int, columns, batch: int) -> Iterator[dict[str, Any] | str]:
    """Columns of the rows [first, last) of a row group, or why one has none."""
    at, done = 0, first
    try:
        for table in opened.iter_batches(batch, row_groups=[group], columns=columns, use_threads=False):
            for number in range(max(first - at, 0), min(last - at, table.num_rows)):
                yield _python(table, number, columns)
                done += 1
            at += table.num_rows
            if at >= last:
                return
        reason = f"it has {at} rows where the footer says more"
    except (OSError, ValueError, NotImplementedError) as e:  # pyarrow's errors are of these kinds
        reason = _reason(e)
    for _ in range(done, last):  # the row groups behind may be whole
        yield f"row group {group} cannot be read ({reason}); copy or make the file again"


def _row(offset: int, file: ParquetFile, number: int, values: dict[str, Any] | str) -> Row:
    """A row with its values or, in words, why it has none."""
    row = Row(offset + number, file, number)
    if isinstance(values, str):
        return dataclasses.replace(row, error=f"{row.where}: {values}")
    return dataclasses.replace(row, values=values)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _python(table, number: int, columns: list[str]) -> dict[str, Any] | str:
    """One row as Python objects, or why it is none."""
    try:
        return {name: table.column(name)[number].as_py() for name in columns}
    except UnicodeDecodeError as e:
        return f"a string that is not UTF-8 (byte {e.start}); mend or drop the row"
