"""Answers made once: files and a line each in answers.jsonl as they come; a run that was killed goes on from there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation.file_answer import FileAnswer, answer_from_record
from ar_omni_jax.evaluation.record_file import TEXT, TEXTS, RecordFile
from ar_omni_jax.evaluation.systems import KnownSystem, MakingSystem
from ar_omni_jax.inference import Answer

ENTRIES = {"text": TEXT, "files": TEXTS, "problems": TEXTS}  # of a record that can be read back


def answers_of(
    system: MakingSystem | KnownSystem,
    task: str,
    documents: Sequence[Document],
    *,
    folder: Path,
    data: str,
    sample_rate: int | None = None,
    on_change: str = "anew",
) -> list[FileAnswer]:
    """One answer a document, read from `folder` as far as they are there.

    Args:
      data: fingerprint of the documents. sample_rate: of speech, Hz. on_change: as in `RecordFile`.

    Raises RecordError for a record that is damaged.
    """
    if isinstance(system, KnownSystem):
        return system.known(task, documents)
    log = RecordFile(folder / "answers.jsonl", header_of(system, task, data), on_change)
    for k in log.records:
        log.require(k, ENTRIES)
    lost = [k for k, record in log.records.items() if not _is_there(folder, k, record)]
    for k in lost:  # made again like answers that never came
        del log.records[k]
    if not log.records:
        remove_answers(folder)
    elif len(log.records) < len(documents):
        print(f"  {task}: {len(log.records)} of {len(documents)} answers are there", flush=True)
    for index, answer, more in system.make(task, documents, log.records):
        if isinstance(answer, Exception):
            answer, more = _nothing(answer), {**more, "error": str(answer)}
        extra = {"id": documents[index].id, **more}
        record = answer.save(folder, _name(index), sample_rate, extra=extra)
        log.append(index, {key: value for key, value in record.items() if key != "tokens"})  # those stand in its file
    return [answer_from_record(log.records[k], folder) for k in range(len(documents))]


def _name(index: int) -> str:
    """Of an answer's files."""
    return f"{index:03d}"


def _is_there(folder: Path, index: int, record: dict) -> bool:
    """Whether all files of an answer are in the folder, its own record among them."""
    return all((folder / name).is_file() for name in (f"{_name(index)}.json", *record["files"]))


def header_of(system: MakingSystem | KnownSystem, task: str, data: str) -> dict:
    """All that a system's answers depend on."""
    return {"system": system.name, "task": task, "documents": data, **getattr(system, "identity", {})}


def _nothing(error: Exception) -> Answer:
    return Answer("", [], [], np.zeros(0, np.int32), problems=[f"no answer: {error}"])


def remove_answers(folder: Path) -> None:
    """Removes an earlier evaluation's answers: no picture of theirs may stand where this one made none."""
    for path in folder.glob("*"):
        if re.fullmatch(r"\d{3,}(-\d+)?\.(json|txt|png|wav)", path.name):
            path.unlink()
