"""LJSpeech: DIR/metadata.csv (`name|text|text with numbers written out`) beside DIR/wavs/name.wav.

The written-out text is taken where there is one. Many voices of other makers come in this layout with two columns.
"""

from __future__ import annotations

from pathlib import Path

from ar_omni_jax.documents import DocumentError
from data_pipelines.sources.transcripts import TranscriptSource, existing_sound


class LJSpeechSource(TranscriptSource):
    """Utterances of a metadata.csv; the input is that file or its directory."""

    name = "ljspeech"

    def listings(self) -> list[Path]:
        return [self.path / "metadata.csv" if self.path.is_dir() else self.path]

    def fields(self, line: str, where: str) -> tuple[str, str]:
        values = [value.strip() for value in line.split("|")]
        if len(values) not in (2, 3):
            raise DocumentError(f"{where}: {len(values)} columns; a line is name|text or name|text|written-out text")
        return values[0], values[-1] or values[1]

    def audio(self, listing: Path, id: str) -> str:
        return existing_sound(listing.parent / "wavs" / id, ".wav")
