"""GigaSpeech: DIR/GigaSpeech.json, whose segments lie in long recordings below DIR (audio/podcast/P0000/*.opus, ...).

    {"audios": [{"aid": "POD1", "path": "audio/podcast/P0000/POD1.opus", "segments": [
        {"sid": "POD1_S0000000", "begin_time": 159.0, "end_time": 167.7, "text_tn": "HELLO <COMMA> ALL <PERIOD>",
         "subsets": ["{XL}", "{M}"]}, ...]}, ...]}

The input is that file or its directory; `FILE#M` takes the segments of subset M only. Without a subset all but
those of DEV and TEST are taken. Tags of punctuation become signs, words stay in capitals; an utterance that is
nothing but <SIL>, <MUSIC>, <NOISE> or <OTHER> has no transcript and is a record with an error.

Each segment is a `SoundSegment`: whoever needs it seeks to it, the recording is never decoded whole. The file is
read one recording at a time, so its size does not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import DocumentError
from data_pipelines.sound import SoundSegment
from data_pipelines.sources.base import Record
from data_pipelines.sources.json_stream import ArrayIndex
from data_pipelines.sources.listing import Spans
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.transcripts import UNUSED, utterance

FILE = "GigaSpeech.json"
_HELD_OUT = {"{DEV}", "{TEST}"}
_SIGNS = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_SIGN = re.compile(rf"\s*<({'|'.join(_SIGNS)})>")
_UNSPOKEN = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")
_NEEDED = {"sid": str, "begin_time": (int, float), "end_time": (int, float), "text_tn": str}


class GigaSpeechSource:
    """Segments in the order of the file. In memory: where each recording's entry stands, 28 bytes a recording."""

    name = "gigaspeech"

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse(self.name, *UNUSED)
        self.options = options
        self.path, self._subset = _split(str(path))
        seen: set[str] = set()
        sizes = array("I")
        self._audios = ArrayIndex(self.path, "audios", lambda audio: sizes.append(len(self._entries(audio, seen))))
        self._spans = Spans(sizes)
        if self._subset and not len(self):
            known = ", ".join(sorted(name.strip("{}") for name in seen)) or "none at all"
            raise DocumentError(f"{self.path}: no segment is in subset {self._subset!r}; its subsets are {known}")
        self.digest = hashlib.sha256(f"{self._subset}\0{self._audios.digest}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._spans)

    def ids(self) -> Iterator[str | None]:
        for _, _, (_, entry) in self._walk(0, len(self)):
            sid = entry.get("sid") if isinstance(entry, dict) else None
            yield sid if isinstance(sid, str) else None

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for index, audio, (number, entry) in self._walk(start, stop):
            where = self._where(audio, number, entry)
            sid = str(entry.get("sid", "")) if isinstance(entry, dict) else ""
            try:
                _check(entry, audio, where)
                begin, end = float(entry["begin_time"]), float(entry["end_time"])
                sound = SoundSegment(str(self.path.parent / audio["path"]), begin, end)
                text = spoken(entry["text_tn"])
                if not text and entry["text_tn"].strip():
                    raise DocumentError(f"{where}: nothing is spoken in it, only {entry['text_tn'].strip()}")
                yield utterance(index, where, sid, text, sound, self.options, self.name)
            except DocumentError as e:
                yield Record(index, where, sid, error=str(e))
            except OverflowError as e:
                yield Record(index, where, sid, error=f"{where}: a time beyond all measure ({e})")

    def _entries(self, audio: Any, seen: set[str] | None = None) -> list[tuple[int, Any]]:
        """What of one recording are records: (its place from 1, chosen segment), or why there are none: (0, str)."""
        segments = audio.get("segments") if isinstance(audio, dict) else None
        if not isinstance(segments, list):
            return [(0, "it has no list 'segments'")]
        chosen = []
        for number, segment in enumerate(segments, 1):
            subsets = segment.get("subsets") if isinstance(segment, dict) else None
            if subsets is None:
                subsets = audio.get("subsets")
            names = {name for name in subsets if isinstance(name, str)} if isinstance(subsets, list) else set()
            if seen is not None:
                seen |= names
            if f"{{{self._subset}}}" in names if self._subset else not names & _HELD_OUT:
                chosen.append((number, segment))
        return chosen

    def _walk(self, start: int, stop: int) -> Iterator[tuple[int, Any, tuple[int, Any]]]:
        """(index, recording, entry of `_entries`) of the records [start, stop)."""
        for number, first, last in self._spans.ranges(start, stop):
            begin, end = self._spans.start(number), self._spans.start(number + 1)
            for _, _, data in self._audios.items(number, number + 1):
                audio, entries = self._parsed(data, end - begin)
                for at, entry in enumerate(entries[first:last], begin + first):
                    yield at, audio, entry

    def _parsed(self, data: bytes, count: int) -> tuple[Any, list[tuple[int, Any]]]:
        try:
            audio = json.loads(data.decode("utf-8"))
        except ValueError as e:
            return None, [(0, f"its entry is not UTF-8 or has changed since the file was opened ({e})")] * count
        return audio, self._entries(audio)

    def _where(self, audio: Any, number: int, entry: Any) -> str:
        aid = audio.get("aid", audio.get("path")) if isinstance(audio, dict) else None
        sid = entry.get("sid") if isinstance(entry, dict) else None
        return f"{self.path}: recording {aid or '?'}" + (f": segment {sid or f'number {number}'}" if number else "")


def _split(path: str) -> tuple[Path, str]:
    """`FILE#SUBSET`, FILE or its directory -> (FILE, subset or ""); DocumentError when there is no such file."""
    subset = ""
    if not os.path.exists(path) and "#" in path:
        path, _, subset = path.rpartition("#")
        subset = subset.strip("{}")
    file = Path(path, FILE) if os.path.isdir(path) else Path(path)
    if not file.is_file():
        raise DocumentError(f"{file}: no such file; --input must name {FILE} or its directory")
    return file, subset


def _check(entry: Any, audio: Any, where: str) -> None:
    """DocumentError naming every key of the segment that is missing or of the wrong type."""
    if not isinstance(entry, dict):
        reason = entry if isinstance(entry, str) else f"a segment must be an object, not {entry!r}"
        raise DocumentError(f"{where}: {reason}")
    wrong = [
        f"{key!r} is {entry[key]!r}" if key in entry else f"{key!r} is missing"
        for key, kind in _NEEDED.items()
        if not isinstance(entry.get(key), kind) or isinstance(entry.get(key), bool)
    ]
    if not isinstance(audio.get("path"), str) or not audio["path"]:
        wrong.append("the recording has no 'path'")
    if wrong:
        raise DocumentError(f"{where}: {', '.join(wrong)}; is it the manifest of GigaSpeech?")


def spoken(text: str) -> str:
    """The words of a transcript with signs for its tags of punctuation; "" where nothing is said."""
    words = _UNSPOKEN.sub(" ", text)
    words = _SIGN.sub(lambda match: _SIGNS[match[1]], words)
    words = " ".join(words.split())
    return words if any(character.isalnum() for character in words) else ""
