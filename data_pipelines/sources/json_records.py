"""The objects of a JSON-lines file, of a JSON array, or of all such files in a folder: random access, nothing kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, TokenDocument
from data_pipelines.sources.base import BOM, LineIndex, Record
from data_pipelines.sources.json_stream import ArrayIndex
from data_pipelines.sources.listing import Spans, list_files
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions

_CHUNK = 1 << 20


class JsonRecords:
    """All objects of the files of `path` in order: itself, or the files in it that end in one of `suffixes`, by name.

    A file is an array when its first character is "[", else JSON lines. `digest` covers names and contents.
    Raises DocumentError for a missing or empty file, or an array that has no end.
    """

    def __init__(self, path: str | os.PathLike, suffixes: Sequence[str] = (".jsonl", ".json")):
        self._files = [(name, _index(file)) for name, file in list_files(path, *suffixes)]
        self._spans = Spans(index.count for _, index in self._files)
        text = "\n".join(f"{name}\0{index.digest}" for name, index in self._files)
        self.digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, str, bytes, Path]]:
        """(index, file and place for people, FILE/PLACE, JSON, file) of the records [start, stop)."""
        for part, first, last in self._spans.ranges(start, stop):
            name, index = self._files[part]
            array_ = isinstance(index, ArrayIndex)
            for at, place, data in (index.items if array_ else index.lines)(first, last):
                where = f"{index.path}: {'record' if array_ else 'line'} {place}"
                yield self._spans.start(part) + at, where, f"{name}/{place}", data, index.path


class JsonDocuments:
    """Source of the documents of one JSON file or of all in a folder, one document a record.

    A subclass has `name`; `suffixes` and `unused`, the options that it refuses, where they are others; `_id` and
    `_document`.
    """

    name: str
    suffixes: tuple[str, ...] = (".jsonl", ".json")
    unused: tuple[str, ...] = ("tasks", "instructions", "prompt_dropout", "columns")

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse(self.name, *self.unused)
        self.path, self.options = Path(path), options
        self._records = JsonRecords(path, self.suffixes)
        self.digest = self._records.digest

    def __len__(self) -> int:
        return len(self._records)

    def ids(self) -> Iterator[str | None]:
        for _, where, place, data, _ in self._records.read(0, len(self)):
            try:
                yield self._id(parse_object(data, where), place, where)
            except DocumentError:
                yield None

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for index, where, place, data, file in self._records.read(start, stop):
            name = ""
            try:
                record = parse_object(data, where)
                name = self._id(record, place, where)
                yield Record(index, where, name, self._document(record, name, where, file.parent))
            except DocumentError as e:
                yield Record(index, where, name, error=str(e))

    def _id(self, record: dict[str, Any], place: str, where: str) -> str:
        """The document's id; `place` is FILE/PLACE. DocumentError naming `where`."""
        return own_id(place, record.get("id"))

    def _document(self, record: dict[str, Any], name: str, where: str, folder: Path) -> Document | TokenDocument:
        """The document of a record; DocumentError naming `where`. Paths are relative to `folder`, its file's."""
        raise NotImplementedError


def _index(path: Path) -> ArrayIndex | LineIndex:
    with path.open("rb") as file:
        while (head := file.read(_CHUNK)) and not head.strip():
            pass
    if not head:
        raise DocumentError(f"{path}: is empty; was it written to its end?")
    return ArrayIndex(path) if head.removeprefix(BOM).lstrip()[:1] == b"[" else LineIndex(path)


def own_id(name: str, own: Any) -> str:
    """FILE/OWN of a record called `name` (FILE/PLACE) with an id of its own; `name` where that is missing or empty.

    Ids often begin anew in each file of a corpus; in one file an equal id is a duplicate.
    """
    return name if own is None or own == "" else f"{name.rpartition('/')[0]}/{own}"


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """One record's JSON -> dict; DocumentError naming `where` for bad UTF-8, bad JSON or no object."""
    try:
        found = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise DocumentError(f"{where}: not UTF-8 (byte {e.start}); save the file as UTF-8") from e
    except (ValueError, RecursionError) as e:
        raise DocumentError(f"{where}: malformed JSON ({e}); each record must be one JSON object") from e
    if not isinstance(found, dict):
        raise DocumentError(f"{where}: a record must be a JSON object, not {type(found).__name__}")
    return found
