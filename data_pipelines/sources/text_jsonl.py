"""Text corpora in JSON lines: one text or dialogue a line, laid out as `text_documents` says.

    FOLDER/train_0.jsonl    {"id": "0", "data": ["How can ...?", "Cross training can ...", ...]}     (UltraChat)

--input is a file or a folder of *.jsonl. --columns=text:KEY,id:KEY names other keys. Ids are FILE/LINE, lines
counted from 1, or FILE/ID when a key is named for them; then equal ids are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document, DocumentError
from data_pipelines.sources.json_records import JsonDocuments
from data_pipelines.sources.text_documents import text_document


class TextJsonlSource(JsonDocuments):
    """Source of the texts and dialogues of one file, or of all *.jsonl of a folder."""

    name, suffixes, unused = "text_jsonl", (".jsonl",), ("tasks", "instructions", "prompt_dropout")

    def ids(self) -> Iterator[str | None]:
        if self.options.column("id") is not None:
            return super().ids()
        return (place for _, _, place, _, _ in self._records.read(0, len(self)))  # no line needs to be parsed

    def _id(self, record: dict[str, Any], place: str, where: str) -> str:
        key = self.options.column("id")
        if key is None:
            return place
        value = record.get(key)
        if not isinstance(value, str | int) or value == "":
            raise DocumentError(f"{where}: no id under {key!r}; supply it, or let lines be counted")
        return f"{place.rpartition('/')[0]}/{value}"

    def _document(self, record: dict[str, Any], name: str, where: str, folder: Path) -> Document:
        return text_document(name, record, self.options.column("text"), source=self.name, where=where)
