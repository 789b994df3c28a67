"""The items of one array in a JSON file of any size, one at a time, with the bytes where each stands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ar_omni_jax.documents import DocumentError

CHUNK = 1 << 20
MAX_ITEM = 256 << 20  # bytes of one value: beyond that something is damaged
_MARGIN = 16  # an error this near to the end of what was read may be the end's fault
_DECODER = json.JSONDecoder()
_BOM = "\xef\xbb\xbf"


def array_items(path: str | os.PathLike, key: str, digest: Any = None) -> Iterator[tuple[int, int, Any]]:
    """Items of the array `key` of the object that the file is: (first byte, byte after the last, item).

    The items' strings are decoded as Latin-1, in which one character is one byte: good for looking at the shape of
    an item; read the bytes again for its text. `digest`: a hash that is given every byte of the file.
    Raises DocumentError, naming the byte, for anything that is not such a file or is cut short.
    """
    with Path(path).open("rb") as file:
        text = _Text(file, str(path), digest)
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
        if text.peek():
            raise text.error("something follows the end of the JSON object")
        if not found:
            raise DocumentError(f"{path}: there is no list {key!r} in it; is it the right file?")


def _items(text: _Text) -> Iterator[tuple[int, int, Any]]:
    text.take("[")
    while text.peek() != "]":
        yield text.value()
        if text.peek() != "]":
            text.take(",")
    text.take("]")


class _Text:
    """A window on the file's characters (its bytes as Latin-1), moved on as they are used."""

    def __init__(self, file: BinaryIO, path: str, digest: Any):
        self._file, self._path, self._digest = file, path, digest
        self._window, self._at, self._offset = "", 0, 0  # _offset: byte of the window's first character
        while len(self._window) < len(_BOM) and self._more():
            pass
        if self._window.startswith(_BOM):
            self._at = len(_BOM)

    def error(self, reason: str, at: int | None = None) -> DocumentError:
        place = self._offset + (self._at if at is None else at)
        return DocumentError(f"{self._path}: byte {place}: {reason}; was it copied or downloaded whole?")

    def _more(self) -> bool:
        """Reads on, twice as far each time that one value needs it."""
        data = self._file.read(max(CHUNK, len(self._window) - self._at))
        if self._digest is not None:
            self._digest.update(data)
        self._window = self._window[self._at :] + data.decode("latin-1")
        self._offset += self._at
        self._at = 0
        return bool(data)

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
            if end == len(self._window) and self._more():
                continue  # a number might go on there
            start, self._at = self._at, end
            return self._offset + start, self._offset + end, value
