"""Pictures or utterances with their texts in parquet, as Hugging Face's hub stores them (MLS, GigaSpeech and others).

    FOLDER/train-00000-of-00004.parquet     audio: {bytes, path}   transcript: string   ...

--input is a file or a folder. The medium's column is a struct of `bytes` (the encoded file) and `path`: the storage
of the features Audio and Image of huggingface/datasets (src/datasets/features). Which of the two it is stands in
the schema's metadata under "huggingface", written by that library; else the first medium is looked at. The text is
the first column of TEXT_COLUMNS that there is. --columns=media:NAME,text:NAME,id:NAME names them instead, and a
column that is named may also be plain binary.

A medium with no bytes is looked for under its path, relative to the parquet file. Ids are FILE/ROW, rows counted
from 0, or FILE/ID when a column is named for them; then equal ids are found.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, Part
from ar_omni_jax.vocabulary import Modality
from data_pipelines.pairs import pair_document
from data_pipelines.sources.base import Record
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.parquet_columns import find_column, find_id, is_text, record_of, row_ids
from data_pipelines.sources.parquet_rows import ParquetFile, ParquetRows, Row

TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence", "caption", "normalized_text")
BATCH = 16  # rows with media in memory at a time
LOOKED_AT = 64  # rows, where nothing says whether their media are pictures or sounds

_FEATURES = {"Image": Modality.IMAGE, "Audio": Modality.SPEECH}
_SUFFIXES = {
    Modality.IMAGE: (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    Modality.SPEECH: (".wav", ".flac", ".mp3", ".ogg", ".opus"),
}


@dataclasses.dataclass(frozen=True)
class _Columns:
    media: str
    text: str
    id: str | None

    def names(self) -> list[str]:
        return [name for name in (self.media, self.text, self.id) if name is not None]


class HFParquetSource:
    """Source of the rows of one parquet file, or of all of a folder."""

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        self._options = options
        self._rows = ParquetRows(path)
        self._found: dict[str, _Columns] = {}
        self.digest = self._rows.digest
        first = self._rows.check(self._columns)
        self._kind = first and (_stated_kind(first, self._columns(first).media) or self._seen_kind())

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> Iterator[str | None]:
        yield from row_ids(self._rows, self._options)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for row in self._rows.rows(start, stop, lambda file: self._columns(file).names(), BATCH):
            yield record_of(row, self._options, self._document)

    def _document(self, row: Row, name: str) -> Document:
        columns = self._columns(row.file)
        value = row.values[columns.media]
        if isinstance(value, dict):
            value, path = _bytes_and_path(value)
            value = str(row.file.path.parent / path) if not value and path else value
        if not value:
            raise DocumentError(f"{row.where}: no medium in column {columns.media!r}: neither bytes nor a path")
        part = Part(self._kind, value)
        text = row.values[columns.text]
        return pair_document(name, text, part, self._options, source="hf_parquet", where=row.where)

    def _columns(self, file: ParquetFile) -> _Columns:
        if file.name in self._found:
            return self._found[file.name]
        media = find_column(file, "media", self._options, _is_media(self._options), "a struct of bytes and path")
        text = find_column(file, "text", self._options, is_text, "a string", TEXT_COLUMNS)
        return self._found.setdefault(file.name, _Columns(media, text, find_id(file, self._options)))

    def _seen_kind(self) -> Modality:
        """The kind of the first medium that is known among some."""
        unknown = None
        for row in self._rows.rows(0, LOOKED_AT, lambda file: self._columns(file).names(), 1):
            if row.error:
                continue
            column = self._columns(row.file).media
            value = row.values[column]
            data, path = _bytes_and_path(value) if isinstance(value, dict) else (value, None)
            kind = _kind_of_bytes(data or b"") or _kind_of_path(path or "")
            if kind is not None:
                return kind
            unknown = unknown or row
        if unknown is not None:
            raise DocumentError(
                f"{unknown.where}: column {column!r} begins with neither a picture nor a sound that is known; "
                "name the right one with --columns=media:NAME"
            )
        return Modality.IMAGE  # no row can be read, and each will say so


def _bytes_and_path(value: dict[str, Any]) -> tuple[bytes | None, str | None]:
    """Of a medium's struct; a path that is no string (some sets have numbers there) tells of no file."""
    path = value.get("path")
    return value.get("bytes"), path if isinstance(path, str) else None


def _is_media(options: SourceOptions):
    """Test of a type: a struct of bytes and path, or, where the user named the column, also binary."""

    def test(kind) -> bool:
        import pyarrow.types as types

        def binary(kind) -> bool:
            return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)

        if types.is_struct(kind):
            fields = {field.name: field.type for field in kind}
            return "bytes" in fields and (binary(fields["bytes"]) or types.is_null(fields["bytes"]))
        return options.column("media") is not None and binary(kind)

    return test


def _stated_kind(file: ParquetFile, column: str) -> Modality | None:
    """What the file's metadata says of the column, if anything."""
    stored = (file.schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(stored)["info"]["features"][column]
        return _FEATURES.get(feature["_type"])
    except (TypeError, ValueError, KeyError):
        return None


def _kind_of_bytes(data: bytes) -> Modality | None:
    """By the signature of the file format: RFC 2083 (PNG), ITU T.81 (JPEG), RIFF for WebP and WAV, and so on."""
    head = bytes(data[:12])
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or head[8:12] == b"WEBP":
        return Modality.IMAGE
    if head.startswith((b"fLaC", b"OggS", b"ID3", b"FORM")) or head[8:12] == b"WAVE":
        return Modality.SPEECH
    return Modality.SPEECH if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 else None  # MPEG audio


def _kind_of_path(path: str) -> Modality | None:
    return next((kind for kind, suffixes in _SUFFIXES.items() if path.lower().endswith(suffixes)), None)
