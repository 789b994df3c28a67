"""Common Voice: DIR/validated.tsv (columns path, sentence and others) beside DIR/clips/*.mp3.

The input is the directory of a language, for its validated.tsv, or any of its .tsv files. validated.tsv has the
clips of dev.tsv and test.tsv too: whoever tests on those trains on train.tsv.

The tables are tab-separated without quoting that one could rely on: some sentences stand in quotation marks with
inner ones doubled, others have a single one. So lines are never joined, and a sentence that begins and ends with a
quotation mark loses the pair.
"""

from __future__ import annotations

import os
from pathlib import Path

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.transcripts import SOUND_SUFFIXES, TranscriptSource


class CommonVoiceSource(TranscriptSource):
    """Utterances of one .tsv file; a record's id is its `path`."""

    name = "common_voice"
    header = 1

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        super().__init__(path, options)
        listing = self._listings[0].path
        with listing.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
        columns = first.decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
        missing = [name for name in ("path", "sentence") if name not in columns]
        if missing:
            raise DocumentError(
                f"{listing}: column {' and '.join(missing)} is missing; the first line must name the columns, "
                f"separated by tabs, and it has {', '.join(columns)[:300]}"
            )
        self._columns, self._path, self._sentence = columns, columns.index("path"), columns.index("sentence")
        if not (listing.parent / "clips").is_dir():
            raise DocumentError(f"{listing.parent / 'clips'}: no such directory; unpack the clips beside the .tsv file")

    def listings(self) -> list[Path]:
        return [self.path / "validated.tsv" if self.path.is_dir() else self.path]

    def fields(self, line: str, where: str) -> tuple[str, str]:
        values = line.split("\t")
        if len(values) != len(self._columns):
            raise DocumentError(
                f"{where}: {len(values)} columns, but the first line names {len(self._columns)}; is the line cut short "
                "or a tab in the sentence?"
            )
        return values[self._path].strip(), unquoted(values[self._sentence].strip())

    def audio(self, listing: Path, id: str) -> str:
        name = id if Path(id).suffix.lower() in SOUND_SUFFIXES else f"{id}.mp3"
        return str(listing.parent / "clips" / name)


def unquoted(sentence: str) -> str:
    """Without a pair of quotation marks around the whole, and inner ones single where they were doubled."""
    if len(sentence) >= 2 and sentence[0] == sentence[-1] == '"':
        return sentence[1:-1].replace('""', '"').strip()
    return sentence
