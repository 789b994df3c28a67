"""What a source of documents is: records in a fixed order, countable, readable from any place."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from ar_omni_jax.documents import Document, DocumentError, TokenDocument


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a source: its document, or in `error` why there is none.

    where: file and place inside it, for people. id: the document's, or "" where it cannot be told.
    """

    index: int
    where: str
    id: str
    document: Document | TokenDocument | None = None
    error: str = ""


class Source(Protocol):
    """Records 0 .. len - 1 in an order that never changes. A record that cannot be read is a Record with an error.

    digest: changes when the listing changes (media files are not part of it). A source of documents that are
    tokenized already has `layout`, the JointVocabulary of their ids, and `template`, the set they are written in.
    """

    digest: str

    def __len__(self) -> int: ...

    def ids(self) -> Iterator[str | None]:
        """The id of each record in order, None where it cannot be read; a cheap pass for finding duplicates."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Record]:
        """Records [start, stop), one after another; nothing else is held in memory."""
        ...


BOM = b"\xef\xbb\xbf"  # some editors begin a file of UTF-8 with it


class LineIndex:
    """Random access to the non-blank lines of a file: byte offsets of every STRIDE-th one, their number, a digest.

    A byte order mark is no part of the first line.
    """

    STRIDE = 512

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise DocumentError(f"{path}: no such file; --input must name one")
        digest, offset, count = hashlib.sha256(), 0, 0
        self._offsets: list[tuple[int, int]] = []  # (byte offset, line number from 1)
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    if count % self.STRIDE == 0:
                        self._offsets.append((offset, number))
                    count += 1
                offset += len(line)
        self.count, self.digest = count, digest.hexdigest()[:16]

    def lines(self, start: int, stop: int) -> Iterator[tuple[int, int, bytes]]:
        """(index, line number from 1, line) of the non-blank lines [start, stop); DocumentError when it is gone."""
        stop = min(stop, self.count)
        if start >= stop:
            return
        block = start // self.STRIDE
        offset, number = self._offsets[block]
        index = block * self.STRIDE
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                for at, line in enumerate(file, number):
                    if index >= stop:
                        return
                    if line.strip():
                        if index >= start:
                            yield index, at, line.removeprefix(BOM) if at == 1 else line
                        index += 1
        except OSError as e:
            raise vanished(self.path, e) from e


def vanished(path: str | os.PathLike, error: OSError) -> DocumentError:
    """The error of an input that could be read when it was listed."""
    return DocumentError(f"{path}: cannot be read any more ({error}); start again when it is there")


def duplicates(source: Source) -> dict[int, int]:
    """{index: index of the first record with the same id} for all but the first record of each id.

    Two passes over the ids; memory is 8 bytes a record and the ids that repeat. Raises DocumentError when there are
    more or fewer ids than records.
    """
    hashes = np.fromiter((_hash(i) for i in source.ids()), np.uint64)
    if len(hashes) != len(source):
        raise DocumentError(f"{len(hashes)} of {len(source)} records were found again; the input changed, start again")
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return {}
    first: dict[str, int] = {}
    out: dict[int, int] = {}
    for index, name in enumerate(source.ids()):
        if name is not None and int(hashes[index]) in suspects:
            original = first.setdefault(name, index)
            if original != index:
                out[index] = original
    return out


def _hash(name: str | None) -> int:
    data = b"" if name is None else name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
