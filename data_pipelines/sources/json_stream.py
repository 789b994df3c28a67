"""The items of one array in a JSON file of any size, one at a time, with the bytes where each stands."""

from __future__ import annotations

import array
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.base import vanished

CHUNK = 1 << 20
MAX_ITEM = 256 << 20  # bytes of one value: beyond that something is damaged
_MARGIN = 16  # an error this near to the end of what was read may be the end's fault
_DECODER = json.JSONDecoder()
_BOM = "\xef\xbb\xbf"
# A whole string, a bracket, a comma, or a quotation mark that no other one closes.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)


class ArrayIndex:
    """Random access to the items of an array in a JSON file, see `array_items`: 16 bytes of memory each.

    visit: is shown each item as `array_items` has it. `count`: items; `digest`: of the file's bytes.
    """

    def __init__(self, path: str | os.PathLike, key: str | None = None, visit: Callable[[Any], None] | None = None):
        self.path = Path(path)
        digest = hashlib.sha256()
        self._places = array.array("Q")  # first byte, byte after the last; flat
        for first, last, item in array_items(path, key, digest):
            self._places.extend((first, last))
            if visit is not None:
                visit(item)
        self.count, self.digest = len(self._places) // 2, digest.hexdigest()[:16]

    def items(self, start: int, stop: int) -> Iterator[tuple[int, int, bytes]]:
        """(index, number from 1, JSON) of the items [start, stop); DocumentError when the file is gone."""
        try:
            with self.path.open("rb") as file:
                for index in range(start, min(stop, self.count)):
                    first, last = self._places[2 * index : 2 * index + 2]
                    file.seek(first)
                    yield index, index + 1, file.read(last - first)
        except OSError as e:
            raise vanished(self.path, e) from e


def array_items(path: str | os.PathLike, key: str | None, digest: Any = None) -> Iterator[tuple[int, int, Any]]:
    """Items of an array: (first byte, byte after the last, item, or None where that is malformed).

    The items' strings are decoded as Latin-1, in which one character is one byte: good for looking at the shape of
    an item; read the bytes again for its text.

    Args:
      key: of the array in the object that the file is; None when the file is an array.
      digest: a hash that is given every byte of the file.
    Raises DocumentError, naming the byte, for anything that is not such a file or is cut short.
    """
    with Path(path).open("rb") as file:
        text = _Text(file, str(path), digest)
        yield from _items(text) if key is None else _items_of(text, key)
        if text.peek():
            raise text.error(f"something follows the end of the JSON {'array' if key is None else 'object'}")


def _items_of(text: _Text, key: str) -> Iterator[tuple[int, int, Any]]:
    found = False
    text.take("{")
    while text.peek() != "}":
        name = text.value()[2]
        text.take(":")
        if name == key and text.peek() == "[":
            found = True
            yield from _items(text)
        else:
            text.value()
        if text.peek() != "}":
            text.take(",")
    text.take("}")
    if not found:
        raise DocumentError(f"{text.path}: there is no list {key!r} in it; is it the right file?")


def _items(text: _Text) -> Iterator[tuple[int, int, Any]]:
    text.take("[")
    while text.peek() != "]":
        yield text.value_or_none()
        if text.peek() != "]":
            text.take(",")
    text.take("]")


class _Text:
    """A window on the file's characters (its bytes as Latin-1), moved on as they are used."""

    def __init__(self, file: BinaryIO, path: str, digest: Any):
        self._file, self.path, self._digest = file, path, digest
        self._window, self._at, self._offset = "", 0, 0  # _offset: byte of the window's first character
        while len(self._window) < len(_BOM) and self._more():
            pass
        if self._window.startswith(_BOM):
            self._at = len(_BOM)

    def error(self, reason: str, at: int | None = None) -> DocumentError:
        place = self._offset + (self._at if at is None else at)
        return DocumentError(f"{self.path}: byte {place}: {reason}; was it copied or downloaded whole?")

    def _more(self) -> bool:
        """Reads on, twice as far each time that one value needs it; False, and nothing has moved, at the end."""
        data = self._file.read(max(CHUNK, len(self._window) - self._at))
        if not data:
            return False
        if self._digest is not None:
            self._digest.update(data)
        self._window = self._window[self._at :] + data.decode("latin-1")
        self._offset += self._at
        self._at = 0
        return True

    def peek(self) -> str:
        """The next character that is no white space, "" at the end of the file."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self.error(
                f"malformed JSON: {character!r} expected, " + (f"not {found!r}" if found else "not the end")
            )
        self._at += 1

    def value(self) -> tuple[int, int, Any]:
        """The next value: (first byte, byte after the last, value)."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except json.JSONDecodeError as e:
                unfinished = e.msg.startswith("Unterminated") or e.pos >= len(self._window) - _MARGIN
                if unfinished and len(self._window) - self._at < MAX_ITEM and self._more():
                    continue
                raise self.error(f"malformed JSON ({e.msg})", e.pos) from e
            except RecursionError as e:
                raise self.error("JSON nested beyond all measure") from e
            except ValueError as e:  # a number of thousands of digits
                raise self.error(f"malformed JSON ({e})") from e
            if end == len(self._window) and self._more():
                continue  # a number might go on there
            start, self._at = self._at, end
            return self._offset + start, self._offset + end, value

    def value_or_none(self) -> tuple[int, int, Any]:
        """`value`, or None in its place where it is malformed but its end can be told by brackets and commas."""
        try:
            return self.value()
        except DocumentError:
            place = self._skip()
            if place is None:
                raise
            return *place, None

    def _skip(self) -> tuple[int, int] | None:
        """Passes over what stands before the next comma or closing bracket of this level; None when that is nothing
        or has no end."""
        while True:
            depth = 0
            for match in _TOKEN.finditer(self._window, self._at):
                if match[0] == '"':
                    break  # its end may not have been read yet
                if not depth and match[0] in (",", "]", "}"):
                    start, self._at = self._at, match.start()
                    return (self._offset + start, self._offset + self._at) if self._at > start else None
                depth += (match[0] in ("[", "{")) - (match[0] in ("]", "}"))
            if len(self._window) - self._at >= MAX_ITEM or not self._more():
                return None
