"""Parquet files whose every row is one document, by the columns that a set of data is known to have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, TokenDocument
from data_pipelines.sources.base import Record
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.parquet_columns import record_of, row_ids
from data_pipelines.sources.parquet_rows import ParquetFile, ParquetRows, Row

_BATCH = 64  # rows in memory: one may be a minute of speech


class ParquetDocuments:
    """Source of the rows of one .parquet file, or of all in a folder; ids are FILE/ROW.

    A subclass has `name`, the `required` and `optional` columns, and `_document`.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse(self.name, "tasks", "instructions", "prompt_dropout", "columns")
        self._rows = ParquetRows(path)
        self._rows.check(self._columns)
        self.digest = self._rows.digest

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> Iterator[str | None]:
        return row_ids(self._rows, NO_OPTIONS)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for row in self._rows.rows(start, stop, self._columns, _BATCH):
            yield record_of(row, NO_OPTIONS, self._of_row)

    def _of_row(self, row: Row, name: str) -> Document | TokenDocument:
        return self._document(row.values, name, row.where, row.file.path.parent)

    def _columns(self, file: ParquetFile) -> list[str]:
        names = file.schema.names
        missing = [name for name in self.required if name not in names]
        if missing:
            raise DocumentError(f"no column {', '.join(map(repr, missing))}; it has {', '.join(names)}")
        return [*self.required, *(name for name in self.optional if name in names)]

    def _document(self, values: Mapping[str, Any], name: str, where: str, folder: Path) -> Document | TokenDocument:
        """The document of a row's columns; DocumentError naming `where`. Paths are relative to `folder`."""
        raise NotImplementedError
