"""Text corpora in JSON lines: one text or dialogue a line, laid out as `text_documents` says.

    FOLDER/train_0.jsonl    {"id": "0", "data": ["How can ...?", "Cross training can ...", ...]}     (UltraChat)

--input is a file or a folder of *.jsonl. --columns=text:KEY,id:KEY names other keys. Ids are FILE/LINE, lines
counted from 1, or FILE/ID when a key is named for them; then equal ids are found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.base import LineIndex, Record
from data_pipelines.sources.listing import Spans, list_files
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.text_documents import text_document


class TextJsonlSource:
    """Source of the texts and dialogues of one file, or of all *.jsonl of a folder."""

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse("text_jsonl", "tasks", "instructions", "prompt_dropout")
        self._key, self._id_key = options.column("text"), options.column("id")
        self._files = [(name, LineIndex(file)) for name, file in list_files(path, ".jsonl")]
        self._spans = Spans(lines.count for _, lines in self._files)
        listing = "\n".join(f"{name}\0{lines.digest}" for name, lines in self._files)
        self.digest = hashlib.sha256(listing.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._spans)

    def ids(self) -> Iterator[str | None]:
        for name, lines in self._files:
            for _, number, line in lines.lines(0, lines.count):
                try:
                    yield self._name(name, number, _parse(line, "") if self._id_key else {})
                except DocumentError:
                    yield None

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for part, first, last in self._spans.ranges(start, stop):
            name, lines = self._files[part]
            offset = self._spans.start(part)
            for at, number, line in lines.lines(first, last):
                yield self._record(offset + at, name, lines.path, number, line)

    def _record(self, index: int, file: str, path: Path, number: int, line: bytes) -> Record:
        where, name = f"{path}: line {number}", ""
        try:
            row = _parse(line, where)
            name = self._name(file, number, row, where)
            return Record(index, where, name, text_document(name, row, self._key, source="text_jsonl", where=where))
        except DocumentError as e:
            return Record(index, where, name, error=str(e))

    def _name(self, file: str, number: int, row: dict, where: str = "") -> str:
        if self._id_key is None:
            return f"{file}/{number}"
        value = row.get(self._id_key)
        if not isinstance(value, str | int) or value == "":
            raise DocumentError(f"{where}: no id under {self._id_key!r}; supply it, or let lines be counted")
        return f"{file}/{value}"


def _parse(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise DocumentError(f"{where}: not UTF-8 (byte {e.start}); save the file as UTF-8") from e
    except ValueError as e:
        raise DocumentError(f"{where}: malformed JSON ({e}); each line must be one JSON object") from e
    if not isinstance(row, dict):
        raise DocumentError(f"{where}: a record must be a JSON object, not {type(row).__name__}")
    return row
