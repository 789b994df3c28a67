"""LibriSpeech and Multilingual LibriSpeech (MLS).

    LibriSpeech  .../SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, the sounds beside it as SPEAKER-CHAPTER-NUMBER.flac
    MLS          DIR/transcripts.txt and DIR/audio/SPEAKER/BOOK/SPEAKER_BOOK_NUMBER.flac (or .opus)

A line of either listing is a name, white space and the transcript, which is kept as it is written there. The input
is one part of the corpus, such as LibriSpeech/train-clean-100 or mls_english/train. A directory that holds a dev or
test part beside others is refused, so that nobody trains on what is tested.
"""

from __future__ import annotations

import re
from pathlib import Path

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.listing import walk
from data_pipelines.sources.transcripts import TranscriptSource, existing_sound

MLS_LISTING = "transcripts.txt"
_PART = re.compile(r"(train|dev|test)([-_].*)?$")


class LibriSpeechSource(TranscriptSource):
    """Utterances of all listings below a directory, or of one listing."""

    name = "librispeech"

    def listings(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        found: list[Path] = []
        for folder, subfolders, files in walk(self.path) if self.path.is_dir() else ():
            if MLS_LISTING in files:
                found.append(folder / MLS_LISTING)
                subfolders.clear()  # nothing but sounds: millions of them
            found += [folder / name for name in files if name.endswith(".trans.txt")]
        if not found:
            raise DocumentError(
                f"{self.path}: neither *.trans.txt (LibriSpeech) nor {MLS_LISTING} (MLS) in it or below; --input must "
                "name the directory of a part of the corpus, such as train-clean-100"
            )
        self._check_parts(found)
        return found

    def _check_parts(self, found: list[Path]) -> None:
        names = {name for path in found for name in path.relative_to(self.path).parts[:-1] if _PART.match(name)}
        if len(names) > 1 and any(not name.startswith("train") for name in names):
            raise DocumentError(
                f"{self.path} has the parts {', '.join(sorted(names))}; --input must name one of them, so that what is "
                "tested is not trained on"
            )

    def fields(self, line: str, where: str) -> tuple[str, str]:
        id, _, text = line.strip().replace("\t", " ", 1).partition(" ")
        return id, text.strip()

    def audio(self, listing: Path, id: str) -> str:
        if listing.name != MLS_LISTING:
            return existing_sound(listing.parent / id, ".flac")
        speaker, _, rest = id.partition("_")
        book, _, number = rest.partition("_")
        if not (speaker and book and number):
            raise DocumentError(f"{listing}: {id!r} is not SPEAKER_BOOK_NUMBER, so its sound cannot be found")
        return existing_sound(listing.parent / "audio" / speaker / book / id, ".flac")
