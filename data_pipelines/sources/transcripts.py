"""What speech corpora have in common whose transcripts stand in text files, one utterance a line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import DocumentError, Part
from ar_omni_jax.vocabulary import Modality
from data_pipelines.pairs import pair_document
from data_pipelines.sources.base import LineIndex, Record
from data_pipelines.sources.listing import Spans
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions

SOUND_SUFFIXES = (".flac", ".wav", ".mp3", ".opus", ".ogg")
# Options that mean nothing for speech in files: there are no columns to choose, and only pictures are guided.
UNUSED = ("columns", "prompt_dropout")


class TranscriptSource:
    """Utterances in the order of the listings and of their lines.

    A format is a subclass: `name`; `header`, the lines to pass over in each listing; `listings`, `fields`, `audio`.
    """

    name = ""
    header = 0

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse(self.name, *UNUSED)
        self.path, self.options = Path(path), options
        digest = hashlib.sha256()
        self._listings: list[LineIndex] = []
        for listing in self.listings():
            index = LineIndex(listing)
            digest.update(f"{os.path.relpath(listing, self.path)}\0{index.digest}\0".encode(errors="surrogateescape"))
            self._listings.append(index)
        self._spans = Spans(max(0, index.count - self.header) for index in self._listings)
        self.digest = digest.hexdigest()[:16]

    def listings(self) -> list[Path]:
        """The text files in a fixed order; DocumentError saying what was looked for when there are none."""
        raise NotImplementedError

    def fields(self, line: str, where: str) -> tuple[str, str]:
        """A line without its end -> (id, transcript, "" where there is none); DocumentError naming `where`."""
        raise NotImplementedError

    def audio(self, listing: Path, id: str) -> str:
        """Path of the sound; it need not exist."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._spans)

    def ids(self) -> Iterator[str | None]:
        for _, where, _, line in self._lines(0, len(self)):
            try:
                yield self.fields(decoded(line, where), where)[0]
            except DocumentError:
                yield None

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for index, where, listing, line in self._lines(start, stop):
            id = ""
            try:
                id, text = self.fields(decoded(line, where), where)
                check_name(id, where)
                yield utterance(index, where, id, text, self.audio(listing, id), self.options, self.name)
            except DocumentError as e:
                yield Record(index, where, id, error=str(e))

    def _lines(self, start: int, stop: int) -> Iterator[tuple[int, str, Path, bytes]]:
        """(index, where, listing, line) of the records [start, stop)."""
        for part, first, last in self._spans.ranges(start, stop):
            listing, shift = self._listings[part], self._spans.start(part) - self.header
            for at, number, line in listing.lines(first + self.header, last + self.header):
                yield at + shift, f"{listing.path}: line {number}", listing.path, line


def decoded(line: bytes, where: str) -> str:
    """The line as text, without its end; DocumentError when it is not UTF-8."""
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as e:
        raise DocumentError(f"{where}: not UTF-8 (byte {e.start}); save the listing as UTF-8") from e


def check_name(id: str, where: str) -> None:
    """DocumentError unless `id` is the plain name of a file."""
    if not id or id in (".", "..") or "/" in id or "\\" in id or "\0" in id:
        raise DocumentError(f"{where}: {id!r} is no name of a sound file; is the line damaged?")


def existing_sound(stem: Path, usual: str) -> str:
    """`stem` with the suffix of the file that is there; with the `usual` one where none is."""
    for suffix in (usual, *SOUND_SUFFIXES):
        path = f"{stem}{suffix}"
        if os.path.isfile(path):
            return path
    return f"{stem}{usual}"


def utterance(index: int, where: str, id: str, text: str, sound: Any, options: SourceOptions, source: str) -> Record:
    """The record of one utterance. `sound`: what stands in a Part: a path, or a SoundSegment."""
    try:
        part = Part(Modality.SPEECH, sound)
        document = pair_document(id, text.strip(), part, options, source=source, where=where)
    except DocumentError as e:
        return Record(index, where, id, error=str(e))
    return Record(index, where, id, document)
