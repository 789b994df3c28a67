"""Text corpora in parquet: one text or dialogue a row, laid out as `text_documents` says.

    FOLDER/part-001.parquet     content: string   score: double   ...      (Ultra-FineWeb)
    FOLDER/train_sft-0.parquet  messages: list of {content, role}   ...    (ultrachat_200k)

--input is a file or a folder. --columns=text:NAME,id:NAME names other columns. Ids are FILE/ROW, rows counted from
0, or FILE/ID when a column is named for them; then equal ids are found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ar_omni_jax.documents import Document
from data_pipelines.sources.base import Record
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.parquet_columns import find_id, record_of, row_ids
from data_pipelines.sources.parquet_rows import ParquetFile, ParquetRows, Row
from data_pipelines.sources.text_documents import find_key, text_document


class TextParquetSource:
    """Source of the texts and dialogues of one parquet file, or of all of a folder."""

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse("text_parquet", "tasks", "instructions", "prompt_dropout")
        self._options = options
        self._rows = ParquetRows(path)
        self.digest = self._rows.digest
        self._rows.check(self._columns)

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> Iterator[str | None]:
        yield from row_ids(self._rows, self._options)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for row in self._rows.rows(start, stop, self._columns):
            yield record_of(row, self._options, self._document)

    def _columns(self, file: ParquetFile) -> list[str]:
        there = dict.fromkeys(file.schema.names)
        text, name = find_key(there, self._options.column("text"), "columns"), find_id(file, self._options)
        return [text] if name is None else [text, name]

    def _document(self, row: Row, name: str) -> Document:
        key = self._options.column("text")
        return text_document(name, row.values, key, source="text_parquet", where=row.where)
