"""VoiceAssistant-400K: parquet of spoken questions and written answers, one exchange a row.

Columns: `question_audio` (struct of bytes and path) and `answer`; `question` (what is said), `split_name`, `index` and
`round` go to the document's meta. `answer_snac` holds codes of a codec that is not this project's and is not read.
Where a set has `answer_audio` (a struct like the question's), the answer is its words and then its speech. Paths
without bytes are relative to the file's folder. Rows are named by file and place, since `index` repeats.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.vocabulary import Modality
from data_pipelines.sources.base import Record
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.parquet_rows import ParquetRows

NAME = "voice_assistant"
_META = ("question", "split_name", "index", "round")


class VoiceAssistantSource:
    """Source of the exchanges of one .parquet file or of all in a folder (or its `data` folder)."""

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse(NAME, "tasks", "instructions", "prompt_dropout", "columns")
        self._rows = ParquetRows(path, ("question_audio", "answer"), (*_META, "answer_audio"))
        self._folder = self._rows.files[0].parent
        self.digest = self._rows.digest

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> Iterator[str | None]:
        return (name for _, name in self._rows.places())

    def read(self, start: int, stop: int) -> Iterator[Record]:
        for index, where, name, row in self._rows.read(start, stop):
            try:
                if isinstance(row, DocumentError):
                    raise row
                yield Record(index, where, name, self._document(row, name, where))
            except DocumentError as e:
                yield Record(index, where, name, error=str(e))

    def _document(self, row: Mapping[str, Any], name: str, where: str) -> Document:
        values = {key: scalar.as_py() for key, scalar in row.items()}
        answer = values["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise DocumentError(f"{where}: empty or missing answer {answer!r}; supply it or drop the row")
        asked = self._speech(values, "question_audio", where)
        answered = [Part(Modality.TEXT, answer)]
        if values.get("answer_audio") is not None:
            answered.append(self._speech(values, "answer_audio", where))
        task = "chat" if len(answered) > 1 else "chat_speech"
        meta = {key: values[key] for key in _META if values.get(key) is not None}
        turns = (Turn("user", (asked,)), Turn("assistant", tuple(answered)))
        return Document(name, task, "speech", turns, NAME, meta)

    def _speech(self, values: Mapping[str, Any], key: str, where: str) -> Part:
        audio = values[key]
        if isinstance(audio, Mapping):
            if audio.get("bytes"):
                return Part(Modality.SPEECH, audio["bytes"])
            if audio.get("path"):
                return Part(Modality.SPEECH, str(Path(self._folder) / audio["path"]))
        raise DocumentError(f"{where}: {key} has neither bytes nor a path; supply the recording or drop the row")
