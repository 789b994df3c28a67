"""VCTK: DIR/txt/SPEAKER/SPEAKER_NUMBER.txt and DIR/wav48_silence_trimmed/SPEAKER/SPEAKER_NUMBER_mic1.flac.

The older release with wav48/SPEAKER/SPEAKER_NUMBER.wav is read too. A record is an utterance that has a text, a
sound of the first microphone, or both: one that lacks either is a record with an error (the released corpus has
such: speaker p315 has no texts), so that nothing is left out unseen.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.base import BOM, Record
from data_pipelines.sources.listing import Spans
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.transcripts import UNUSED, decoded, utterance

_READERS = 8  # speakers whose texts are read at a time when the corpus is opened
_LAYOUTS = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))  # directory of sounds, end of their names


class VCTKSource:
    """Utterances by speaker and number. In memory are the names of the speaker that is being read; while texts are
    read for the digest, those of a few."""

    name = "vctk"

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse(self.name, *UNUSED)
        self.path, self.options, self._texts = Path(path), options, Path(path, "txt")
        layouts = [(self.path / folder, end) for folder, end in _LAYOUTS if (self.path / folder).is_dir()]
        if not layouts or not self._texts.is_dir():
            raise DocumentError(
                f"{path}: no {' or '.join(name for name, _ in _LAYOUTS)} with txt beside it; --input must name the "
                "directory of the unpacked corpus"
            )
        self._sounds, self._sound_end = layouts[0]
        folders = [name for root in (self._sounds, self._texts) for name in _shown(root) if (root / name).is_dir()]
        self._speakers = sorted(set(folders))
        digest, sizes = hashlib.sha256(), []
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:  # small files: a far disk's answers take the time
            for start in range(0, len(self._speakers), _READERS):
                for size, listed in pool.map(self._listed, self._speakers[start : start + _READERS]):
                    digest.update(listed)
                    sizes.append(size)
        self._spans = Spans(sizes)
        self.digest = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._spans)

    def ids(self) -> Iterator[str | None]:
        for speaker in self._speakers:
            yield from self._names(speaker)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for part, first, last in self._spans.ranges(start, stop):
            speaker, index = self._speakers[part], self._spans.start(part) + first
            names = list(self._names(speaker).items())[first:last]
            for at, (name, found) in enumerate(names, index):
                yield self._record(at, speaker, name, *found)

    def _listed(self, speaker: str) -> tuple[int, bytes]:
        """Number of a speaker's utterances, and a digest of their names and texts, which are read one by one."""
        names, digest = self._names(speaker), hashlib.sha256()
        for name, (has_text, has_sound) in names.items():
            text = self._text_path(speaker, name).read_bytes() if has_text else b""
            digest.update(f"{name}\0{has_text}{has_sound}{len(text)}\0".encode(errors="surrogateescape") + text)
        return len(names), digest.digest()

    def _names(self, speaker: str) -> dict[str, tuple[bool, bool]]:
        """{utterance: (has a text, has a sound)} of one speaker, in order."""
        texts, sounds = (
            {name.removesuffix(end) for name in _shown(root / speaker) if name.endswith(end)}
            for root, end in ((self._texts, ".txt"), (self._sounds, self._sound_end))
        )
        return {name: (name in texts, name in sounds) for name in sorted(texts | sounds)}

    def _text_path(self, speaker: str, name: str) -> Path:
        return self._texts / speaker / f"{name}.txt"

    def _record(self, index: int, speaker: str, name: str, has_text: bool, has_sound: bool) -> Record:
        sound, text = self._sounds / speaker / f"{name}{self._sound_end}", self._text_path(speaker, name)
        where = str(text if has_text else sound)
        if not has_text:
            return Record(index, where, name, error=f"{where}: there is no {text}, so nobody knows what is said")
        if not has_sound:
            return Record(index, where, name, error=f"{where}: there is no {sound} to hear it")
        try:
            words = decoded(text.read_bytes().removeprefix(BOM), where)
        except (DocumentError, OSError) as e:
            return Record(index, where, name, error=str(e) if isinstance(e, DocumentError) else f"{where}: {e}")
        return utterance(index, where, name, " ".join(words.split()), str(sound), self.options, self.name)


def _shown(folder: Path) -> list[str]:
    """What is in a folder, if there is one, but for hidden files, such as the ._NAME that macOS puts beside each."""
    return [name for name in os.listdir(folder) if not name.startswith(".")] if folder.is_dir() else []
