"""The members of an uncompressed tar file, from any place, and an error where the file is cut or corrupt.

Python's `tarfile` ends quietly at a header that it cannot read, and so loses what stands behind it; therefore the
walk from header to header is done here, and `tarfile` only reads the rarer ones (long names, pax). Layout: the
`ustar` and `pax` interchange formats of POSIX.1-2001 (manual page of `pax`): blocks of 512 bytes, a header before
each member, two blocks of zeros at the end.
"""

from __future__ import annotations

import dataclasses
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(BLOCK)
_FILES = b"0\0"


class TarError(ValueError):
    """A tar file that is cut or corrupt. `member`: name of the member that is cut, "" where it cannot be told."""

    def __init__(self, reason: str, member: str = ""):
        super().__init__(reason)
        self.member = member


@dataclasses.dataclass(frozen=True)
class Member:
    """One file of the archive. Bytes: its header(s) begin at `offset`, its data is [data, data + size).

    link: what it is a link to, "" for a regular file; a link has no data.
    """

    name: str
    offset: int
    data: int
    size: int
    link: str = ""


def members(file: BinaryIO, offset: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Files and links of the archive with headers in [offset, stop), in order; nothing is kept and no data is read.

    Folders and the like are passed over. Raises TarError where the file ends without the mark of its end, within a
    member, or at a header that cannot be read.
    """
    descriptor = file.fileno()
    total = os.fstat(descriptor).st_size
    while stop is None or offset < stop:
        block = os.pread(descriptor, BLOCK, offset)
        if block == _ZEROS:
            _check_end(descriptor, offset, total)
            return
        if len(block) < BLOCK:
            raise TarError(f"ends at byte {total} without the mark of an archive's end")
        member, following = _plain_member(block, offset) or _other_member(file, offset)
        if following <= offset or (member is not None and member.size < 0):  # else the walk would never end
            raise TarError(f"is cut or corrupt at byte {offset}: a member of less than no bytes stands there")
        if following > total + BLOCK or (member is not None and member.data + member.size > total):
            name = member.name if member is not None else ""
            raise TarError(f"ends at byte {total} within the member {name!r}", name)
        if member is not None:
            yield member
        offset = following


def _check_end(descriptor: int, offset: int, total: int) -> None:
    """TarError when something stands behind the mark of the end: joined archives, or a header that was wiped out."""
    for at in range(offset, total, 1 << 20):
        if os.pread(descriptor, min(1 << 20, total - at), at).strip(b"\0"):
            raise TarError(f"has more behind the mark of its end at byte {offset}, which no reader will see")


def _plain_member(block: bytes, offset: int) -> tuple[Member, int] | None:
    """(regular file, next header) by the fields of a header block; None where it is not as plain as that.

    Fields: name [0, 100), size in octal [124, 136), checksum [148, 156), type [156], "ustar" [257, 262) and, with
    it, what stands before the name [345, 500).
    """
    try:
        checksum, size = int(block[148:156].rstrip(b"\0 "), 8), int(block[124:136].rstrip(b"\0 "), 8)
        name = block[:100].split(b"\0", 1)[0].decode()
        before = block[345:500].split(b"\0", 1)[0].decode() if block[257:263] == b"ustar\0" else ""
    except ValueError:
        return None
    if block[156] not in _FILES or sum(block) - sum(block[148:156]) + 8 * ord(" ") != checksum or name.endswith("/"):
        return None
    data = offset + BLOCK
    return Member(f"{before}/{name}" if before else name, offset, data, size), data + -(-size // BLOCK) * BLOCK


def _other_member(file: BinaryIO, offset: int) -> tuple[Member | None, int]:
    """(file, link or None, next header), read by `tarfile`: long names, huge sizes, folders, links."""
    file.seek(offset)
    try:
        archive = tarfile.TarFile(fileobj=file, encoding="utf-8")
        info = archive.firstmember
    except (tarfile.TarError, ValueError, OverflowError) as e:
        raise TarError(f"is cut or corrupt at byte {offset}: {e}") from e
    if info is None:
        raise TarError(f"is cut or corrupt at byte {offset}: no header of a member stands there")
    if info.issym() or info.islnk() or info.issparse():
        link = info.linkname if not info.issparse() else "parts of a sparse file"
        return Member(info.name, offset, info.offset_data, 0, link), archive.offset
    return Member(info.name, offset, info.offset_data, info.size) if info.isreg() else None, archive.offset
