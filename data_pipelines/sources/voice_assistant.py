"""VoiceAssistant-400K: parquet of spoken questions and written answers, one exchange a row.

Columns: `question_audio` (struct of bytes and path) and `answer`; `question` (what is said), `split_name`, `index` and
`round` go to the document's meta. `answer_snac` holds codes of a codec that is not this project's and is not read.
Where a set has `answer_audio` (a struct like the question's), the answer is its words and then its speech. Paths
without bytes are relative to the file's folder. Rows are named by file and place, since `index` repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.vocabulary import Modality
from data_pipelines.sources.parquet_documents import ParquetDocuments

_META = ("question", "split_name", "index", "round")


class VoiceAssistantSource(ParquetDocuments):
    """Source of the exchanges of one .parquet file or of all in a folder."""

    name = "voice_assistant"
    required, optional = ("question_audio", "answer"), (*_META, "answer_audio")

    def _document(self, values: Mapping[str, Any], name: str, where: str, folder: Path) -> Document:
        answer = values["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise DocumentError(f"{where}: empty or missing answer {answer!r}; supply it or drop the row")
        asked = _speech(values, "question_audio", where, folder)
        answered = [Part(Modality.TEXT, answer)]
        if values.get("answer_audio") is not None:
            answered.append(_speech(values, "answer_audio", where, folder))
        task = "chat" if len(answered) > 1 else "chat_speech"
        meta = {key: values[key] for key in _META if values.get(key) is not None}
        turns = (Turn("user", (asked,)), Turn("assistant", tuple(answered)))
        return Document(name, task, "speech", turns, self.name, meta)


def _speech(values: Mapping[str, Any], key: str, where: str, folder: Path) -> Part:
    audio = values[key]
    if isinstance(audio, Mapping):
        if audio.get("bytes") and isinstance(audio["bytes"], bytes):
            return Part(Modality.SPEECH, audio["bytes"])
        if audio.get("path") and isinstance(audio["path"], str):
            return Part(Modality.SPEECH, str(folder / audio["path"]))
    raise DocumentError(f"{where}: {key} has neither bytes nor a path; supply the recording or drop the row")
