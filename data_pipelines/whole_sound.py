"""Is a sound file as long as its own headers say? Decoders read cut WAV, MP3 and OGG files without a word.

A transcript over half of its sound is worse than no record. FLAC files that are cut cannot be decoded, so they need
not be looked at.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from ar_omni_jax.tokenizers.speech.audio import AudioError

_STREAMED = (0, 0xFFFFFFFF)  # sizes that writers leave who cannot go back to fill them in
_SEARCHED = 4096  # bytes behind the tags in which the first MP3 frame begins
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the largest
_TOLERANCE = 0.99  # encoders count their own header, and tags behind the sound, in different ways


def check_whole(source: str | os.PathLike | bytes) -> None:
    """AudioError when a header of a WAV, MP3 or OGG file (a path or its bytes) tells of more sound than there is.

    Files that say nothing of their size, and those that do not exist, pass: others will speak of them.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        _check(io.BytesIO(source), len(source), f"audio bytes ({len(source)})")
    elif os.path.isfile(source):
        with open(source, "rb") as file:
            _check(file, os.path.getsize(source), f"audio file {os.fspath(source)}")


def _check(file: BinaryIO, size: int, where: str) -> None:
    head = file.read(12)
    if head[:4] == b"fLaC":
        return
    if head[:4] == b"OggS":
        promised = _ogg_end(file, size)
    elif head[:4] == b"RIFF" and head[8:] == b"WAVE":
        promised = _wav_end(file)
    else:
        promised = _mp3_end(file, head)
    if promised is not None and size < promised:
        raise AudioError(
            f"{where}: has {size} bytes of {promised} that its header tells of; it is cut short, copy it again"
        )


def _wav_end(file: BinaryIO) -> int | None:
    """Where the samples end by the header."""
    while len(chunk := file.read(8)) == 8:
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return None if size in _STREAMED else file.tell() + size
        file.seek(size + size % 2, os.SEEK_CUR)  # chunks begin at even places
    return None


def _ogg_end(file: BinaryIO, size: int) -> int | None:
    """Where the last page ends by its header: "OggS", 22 bytes, the number of lengths, that many lengths."""
    start = max(0, size - _OGG_PAGE)
    file.seek(start)
    data = file.read(_OGG_PAGE)
    at = data.rfind(b"OggS")
    if at < 0:
        return None
    lengths = data[at + 27 : at + 27 + data[at + 26]] if len(data) > at + 26 else b""
    return start + at + 27 + (data[at + 26] if lengths else 1) + sum(lengths)


def _mp3_end(file: BinaryIO, head: bytes) -> int | None:
    """About where the frames end by the Xing or Info header, which most encoders write."""
    start = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    file.seek(start)
    data = file.read(_SEARCHED)
    at = max(data.find(b"Xing"), data.find(b"Info"))
    if at < 4 or len(data) < at + 16:
        return None
    frame = _frame_before(data, at)
    flags = int.from_bytes(data[at + 4 : at + 8], "big")
    if frame is None or not flags & 2:  # bit 0: the number of frames is given, bit 1: the bytes
        return None
    place = at + 8 + 4 * (flags & 1)
    return start + frame + int(int.from_bytes(data[place : place + 4], "big") * _TOLERANCE)


def _frame_before(data: bytes, at: int) -> int | None:
    """Where the frame begins whose side information the header stands behind: 9, 17 or 32 bytes and 4 before it."""
    for side in (32, 17, 9):
        frame = at - side - 4
        if frame >= 0 and data[frame] == 0xFF and data[frame + 1] & 0xE0 == 0xE0:
            return frame
    return None
