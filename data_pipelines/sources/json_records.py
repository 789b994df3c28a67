"""The objects of a JSON-lines file, of a JSON array, or of all such files in a folder: random access, nothing kept."""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.base import LineIndex
from data_pipelines.sources.listing import Spans, list_files

# A whole string, a bracket, a comma of an array, or a quotation mark that no other one closes.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]|"', re.DOTALL)
_CHUNK = 1 << 20


class ArrayIndex:
    """Random access to the elements of one JSON array, the whole content of a file: 16 bytes of memory each."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        self.digest = digest.hexdigest()[:16]
        self._starts, self._ends = array.array("Q"), array.array("Q")
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            problem = self._scan(data)
        if problem:
            raise DocumentError(f"{self.path}: {problem}")
        self.count = len(self._starts)

    def _scan(self, data: mmap.mmap) -> str:
        """Notes where the elements are; returns what is wrong with the array, "" when nothing is."""
        depth, start, closed = 0, 0, False
        for match in _TOKEN.finditer(data):
            at, token = match.start(), data[match.start()]
            if closed:
                return f"more after the array, at byte {at}; save one array, or JSON lines"
            if match.end() - at > 1:
                continue
            if token == ord('"'):
                return f"a string at byte {at} has no end; is the file cut short? copy it again"
            if depth == 1 and token in b",]":
                if data[start:at].strip():
                    self._starts.append(start)
                    self._ends.append(at)
                elif token == ord(",") or self._starts:
                    return f"nothing between two commas at byte {at}; mend the array"
                start = at + 1
            depth += (token in b"[{") - (token in b"]}")
            if depth == 1 and not start:
                start = at + 1
            closed = not depth
        return "" if closed else "the array has no end; is the file cut short? copy it again"

    def elements(self, start: int, stop: int) -> Iterator[tuple[int, int, bytes]]:
        """(index, number from 1, JSON) of the elements [start, stop)."""
        try:
            with self.path.open("rb") as file:
                for index in range(start, min(stop, self.count)):
                    file.seek(self._starts[index])
                    yield index, index + 1, file.read(self._ends[index] - self._starts[index])
        except OSError as e:
            raise DocumentError(f"{self.path}: cannot be read any more ({e}); start again when it is there") from e


class JsonRecords:
    """All objects of the files of `path` in order: itself, or the files in it that end in one of `suffixes`, by name.

    A file is an array when its first character is "[", else JSON lines. `digest` covers names and contents.
    Raises DocumentError for a missing or empty file, or an array that has no end.
    """

    def __init__(self, path: str | os.PathLike, suffixes: Sequence[str] = (".jsonl", ".json")):
        self._files = [(name, _index(file)) for name, file in _list(path, suffixes)]
        self._spans = Spans(index.count for _, index in self._files)
        text = "\n".join(f"{name}\0{index.digest}" for name, index in self._files)
        self.digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, str, str, bytes]]:
        """(index, file and place for people, FILE/PLACE, JSON) of the records [start, stop)."""
        for part, first, last in self._spans.ranges(start, stop):
            name, index = self._files[part]
            array_ = isinstance(index, ArrayIndex)
            for at, place, data in (index.elements if array_ else index.lines)(first, last):
                where = f"{index.path}: {'record' if array_ else 'line'} {place}"
                yield self._spans.start(part) + at, where, f"{name}/{place}", data


def _list(path: str | os.PathLike, suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """(name, file) as `list_files` has them, for several suffixes, which then are part of the names."""
    if len(suffixes) == 1 or not Path(path).is_dir():
        return list_files(path, suffixes[0] if len(suffixes) == 1 else "")
    found = []
    for suffix in suffixes:
        with contextlib.suppress(DocumentError):  # there are others
            found += [(name + suffix, file) for name, file in list_files(path, suffix)]
    if not found:
        raise DocumentError(f"{path}: this folder has no *{' or *'.join(suffixes)} file; is it the right one?")
    return sorted(found)


def _index(path: Path) -> ArrayIndex | LineIndex:
    with path.open("rb") as file:
        while (head := file.read(_CHUNK)) and not head.strip():
            pass
    if not head:
        raise DocumentError(f"{path}: is empty; was it written to its end?")
    return ArrayIndex(path) if head.lstrip()[:1] == b"[" else LineIndex(path)


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
