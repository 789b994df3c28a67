"""Pictures or utterances with their texts in tar files, as img2dataset writes them (LAION, JourneyDB and others).

    FOLDER/00000.tar    000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...
    FOLDER/00000.parquet, 00000_stats.json    not read: the tables beside the tars repeat what stands in them

--input is a tar or a folder of tars. Members that stand together and have the same name up to the first dot of
its last piece are one record (WebDataset's rule: README of webdataset/webdataset). The medium is .jpg, .jpeg, .png
or .webp (or .wav, .flac, .mp3, .ogg, .opus); the text is .txt, or "caption" of .json where there is no .txt: both
are among what img2dataset writes (README of rom1504/img2dataset, "Usage"). Ids are TAR/KEY, for keys are unique
in a tar only. Everything else is passed over: other suffixes, links that are no medium or text, and hidden files,
such as the ._NAME that macOS puts before each file.

Tars must not be compressed: their media are, and records are read from any place. Opening reads every header
once (some 20 microseconds a record) and keeps 4 bytes a record and its packed name, some 2 bytes where names count
up. A tar that is cut or corrupt has one record more than can be read, with the error; those before stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ar_omni_jax.documents import Document, DocumentError, Part
from ar_omni_jax.vocabulary import Modality
from data_pipelines.pairs import pair_document
from data_pipelines.sources.base import BOM, Record
from data_pipelines.sources.listing import Spans, list_files
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.tar_headers import BLOCK, Member, TarError, members

MEDIA = {suffix: Modality.IMAGE for suffix in ("jpg", "jpeg", "png", "webp")} | {
    suffix: Modality.SPEECH for suffix in ("wav", "flac", "mp3", "ogg", "opus")
}
TEXTS = ("txt", "json")
MAX_BYTES = 256 << 20  # of one member; more is no picture or utterance, and would be held in memory


@dataclasses.dataclass(frozen=True)
class _Tar:
    """One tar: `blocks` uint32 [n + 1], where each record begins and the last one ends, in blocks of 512 bytes;
    `names`, the records' keys, packed; `fault`, why the last record cannot be read, "" where it can."""

    name: str
    path: Path
    blocks: np.ndarray
    names: bytes
    fault: str

    def keys(self) -> list[str]:
        names = zlib.decompress(self.names).decode("utf-8", "surrogateescape")
        return names.split("\0") if len(self.blocks) > 1 else []


class WebDatasetSource:
    """Source of the records of one tar, or of all tars of a folder."""

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse("webdataset", "columns")
        self._options = options
        digest = hashlib.sha256()
        self._tars = [_index(name, file, digest) for name, file in list_files(path, ".tar")]
        self._spans = Spans(len(tar.blocks) - 1 for tar in self._tars)
        self.digest = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._spans)

    def ids(self) -> Iterator[str | None]:
        for tar in self._tars:
            for key in tar.keys():
                yield f"{tar.name}/{key}" if key else None

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for part, first, last in self._spans.ranges(start, stop):
            tar, keys = self._tars[part], self._tars[part].keys()
            offset = self._spans.start(part)
            try:
                with open(tar.path, "rb") as file:
                    for at in range(first, last):
                        yield self._record(offset + at, tar, at, keys[at], file)
                        first = at + 1
            except OSError as e:
                for at in range(first, last):
                    where = f"{tar.path}: {keys[at]}"
                    yield Record(offset + at, where, f"{tar.name}/{keys[at]}", error=f"{where}: cannot be read ({e})")

    def _record(self, index: int, tar: _Tar, at: int, key: str, file: BinaryIO) -> Record:
        where, name = f"{tar.path}: {key or 'after its last record'}", f"{tar.name}/{key}" if key else ""
        if tar.fault and at == len(tar.blocks) - 2:
            return Record(index, where, name, error=f"{where}: {tar.fault}")
        try:
            start, stop = (int(block) * BLOCK for block in tar.blocks[at : at + 2])
            found = list(_keyed(file, start, stop))
            if not found or any(its_key != key for its_key, _ in found):
                raise DocumentError(f"{where}: the tar has changed since it was listed; start again")
            return Record(index, where, name, self._document(name, [member for _, member in found], file, where))
        except DocumentError as e:
            cut = f" ({tar.fault})" if tar.fault and at == len(tar.blocks) - 3 else ""  # what it lacks may be lost
            return Record(index, where, name, error=f"{e}{cut}")
        except TarError as e:
            return Record(index, where, name, error=f"{where}: the tar {e}; did it change? copy it again")

    def _document(self, name: str, found: list[Member], file: BinaryIO, where: str) -> Document:
        by_suffix: dict[str, Member] = {}
        for suffix, member in ((_split(member.name)[1], member) for member in found):
            if by_suffix.setdefault(suffix, member) is not member and suffix in (*MEDIA, *TEXTS):
                raise DocumentError(f"{where}: {member.name} stands in it twice; which is the right one? pack it anew")
        media = [suffix for suffix in by_suffix if suffix in MEDIA]
        if len(media) != 1:
            raise DocumentError(
                f"{where}: {len(media)} media {media} in the record, must be one of {', '.join(MEDIA)}; its members "
                f"are {', '.join(sorted(by_suffix))}, and those of a record must stand next to each other"
            )
        text = _text(by_suffix, file, where)
        part = Part(MEDIA[media[0]], _data(by_suffix[media[0]], file, where))
        return pair_document(name, text, part, self._options, source="webdataset", where=where)


def _split(name: str) -> tuple[str, str]:
    """(key, suffix): "folder/0001.seg.PNG" -> ("folder/0001", "seg.png")."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, suffix = file.partition(".")
    return f"{folder}{slash}{key}", suffix.lower()


def _index(name: str, path: Path, digest) -> _Tar:
    """Walks over the headers of one tar; `digest` takes in their names and places."""
    keys: list[str] = []
    blocks: list[int] = []
    fault, end = "", 0
    digest.update(name.encode("utf-8", "surrogatepass"))
    try:
        with open(path, "rb") as file:
            for key, member in _keyed(file):
                if not keys or key != keys[-1]:
                    keys.append(key)
                    blocks.append(member.offset // BLOCK)
                end = -(-(member.data + member.size) // BLOCK)
                digest.update(f"{member.name}\0{member.data}\0{member.size}\n".encode("utf-8", "surrogateescape"))
    except TarError as e:
        fault = f"the tar {e}; what stood behind is lost: copy or make it again (and decompress it if it is compressed)"
        key = _split(e.member)[0]
        if not keys or key != keys[-1]:  # otherwise the record before is the one that is cut
            keys.append(key)
            blocks.append(end)
    except OSError as e:
        raise DocumentError(f"{path}: cannot be read ({e})") from e
    digest.update(fault.encode("utf-8", "surrogateescape"))
    packed = zlib.compress("\0".join(keys).encode("utf-8", "surrogateescape"))
    return _Tar(name, path, np.array([*blocks, end], np.uint32), packed, fault)


def _keyed(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, Member]]:
    """(key, member) of what may belong to a record, with headers in [start, stop)."""
    for member in members(file, start, stop):
        key, suffix = _split(member.name)
        hidden = not key or key.endswith("/")
        if not hidden and not (member.link and suffix not in (*MEDIA, *TEXTS)):
            yield key, member


def _data(member: Member, file: BinaryIO, where: str) -> bytes:
    if member.link:
        raise DocumentError(f"{where}: {member.name} is but a link to {member.link}; pack the file itself")
    if member.size > MAX_BYTES:
        raise DocumentError(
            f"{where}: {member.name} has {member.size} bytes, at most {MAX_BYTES} are read; leave it out"
        )
    return os.pread(file.fileno(), member.size, member.data)


def _text(by_suffix: dict[str, Member], file: BinaryIO, where: str) -> str:
    """The record's text; DocumentError where there is none."""
    for suffix in TEXTS:
        if suffix not in by_suffix:
            continue
        try:
            text = _data(by_suffix[suffix], file, where).removeprefix(BOM).decode("utf-8")
            if suffix == "txt":
                return text
            facts = json.loads(text)
        except UnicodeDecodeError as e:
            raise DocumentError(f"{where}: its .{suffix} is not UTF-8 (byte {e.start})") from e
        except (ValueError, RecursionError) as e:
            raise DocumentError(f"{where}: its .json is malformed ({e})") from e
        if isinstance(facts, dict) and "caption" in facts:
            return facts["caption"]
    raise DocumentError(
        f"{where}: no text: neither a .txt nor a .json with 'caption' stands beside the medium, only "
        f"{', '.join(sorted(by_suffix))}; were captions saved?"
    )
