"""The plain manifest: JSON lines, one document each, media as paths relative to the manifest's directory.

    {"id": "a1", "task": "caption", "turns": [[{"image": "images/a1.png"}], [{"text": "a red circle"}]]}

A turn is a list of parts (user and assistant in turn), or {"role": ..., "parts": [...]}; "group" and "meta" are
optional. Format: `ar_omni_jax.documents.document_from_json`. `SourceOptions.prompt_dropout` leaves out prompts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ar_omni_jax.documents import Document, DocumentError, Part, document_from_json, is_id
from ar_omni_jax.vocabulary import Modality
from data_pipelines.pairs import prompt_dropped
from data_pipelines.sources.base import LineIndex, Record
from data_pipelines.sources.json_records import parse_object
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions


class ManifestSource:
    """Source of the documents of one .jsonl manifest."""

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        # Each document says itself what it is.
        options.refuse("manifest", "tasks", "instructions", "columns")
        self._options = options
        self._index = LineIndex(path)
        self.path, self.digest = Path(path), self._index.digest

    def __len__(self) -> int:
        return self._index.count

    def ids(self) -> Iterator[str | None]:
        for _, _, line in self._index.lines(0, len(self)):
            try:
                yield _name(parse_object(line, "")) or None
            except DocumentError:
                yield None

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for index, number, line in self._index.lines(start, stop):
            where, name = f"{self.path}: line {number}", ""
            try:
                data = parse_object(line, where)
                name = _name(data)
                document = document_from_json(data, source="manifest", where=where)
                yield Record(index, where, name, self._resolved(document, where))
            except DocumentError as e:
                yield Record(index, where, name, error=str(e))

    def _resolved(self, document: Document, where: str) -> Document:
        """The document with media paths made absolute or relative to the working directory."""

        def resolve(part: Part) -> Part:
            if part.modality == Modality.TEXT:
                return part
            if not isinstance(part.value, str) or not part.value:
                raise DocumentError(
                    f"{where}: {part.modality.name.lower()} must be a path in quotes, got {part.value!r}"
                )
            return Part(part.modality, str(self.path.parent / part.value))

        turns = tuple(dataclasses.replace(t, parts=tuple(resolve(p) for p in t.parts)) for t in document.turns)
        dropped = prompt_dropped(document.task, document.id, self._options)
        return dataclasses.replace(document, turns=turns, prompt_dropped=dropped)


def _name(record: Mapping) -> str:
    """The record's id; empty for none that names it."""
    return str(record["id"]) if is_id(record.get("id")) else ""
