"""Documents to score, from a manifest: their references and true files, and what makes one set another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.documents import Document, DocumentError, Part, document_from_json
from ar_omni_jax.evaluation.dialogue_kinds import DIALOGUE_TASKS, accepted, judged_as, require_judgeable
from ar_omni_jax.templates import CHAT_TASKS, without_answer
from ar_omni_jax.vocabulary import Modality

JUDGED_TASKS = ("caption", "t2i", "asr", "tts")
TASK_GROUPS = {"all": JUDGED_TASKS, "dialogues": DIALOGUE_TASKS}  # by the command's words
_ANSWER = {"caption": Modality.TEXT, "t2i": Modality.IMAGE, "asr": Modality.TEXT, "tts": Modality.SPEECH}


def load_documents(manifest: Path, limit: int, tasks: Sequence[str] = JUDGED_TASKS) -> dict[str, list[Document]]:
    """The first `limit` documents of each task (0: all), in file order; fewer when the file has fewer.

    Dialogues are found by their kind (`dialogue_kinds.judged_as`), whatever task they are written as. Captions of one
    picture that stand in several documents become one document: the first, with all texts as its `references`. The toy
    world's (those with `meta.scene`) and those with `meta.references` stay apart.

    Raises DocumentError, with file and line, for a line that cannot be read or scored, and when no line is of `tasks`.
    """
    found: dict[str, list[Document]] = {task: [] for task in tasks}
    pictures: dict[str, int] = {}
    dialogues = any(task in DIALOGUE_TASKS for task in tasks)
    with open(manifest, "rb") as lines:  # a line that is no UTF-8 is told as one
        for number, line in enumerate(lines, 1):
            where = f"{manifest}: line {number}"
            try:
                record = json.loads(line) if line.strip() else {}
                task = record.get("task")
            except (ValueError, AttributeError, RecursionError) as e:
                raise DocumentError(f"{where}: must be one JSON object ({e})") from e
            if task is not None and not isinstance(task, str):
                raise DocumentError(f"{where}: 'task' must be a word, got {task!r}")
            rows = found.get(_task_of(record, where) if dialogues else task)
            full = rows is not None and limit and len(rows) >= limit
            if rows is None or (full and record["task"] != "caption"):
                continue
            document = document_from_json(record, where=where)
            _require_scorable(document, where)
            if document.task == "caption" and not {"scene", "references"} & set(document.meta):
                asked = repr(without_answer(document).turns)
                known = pictures.setdefault(asked, len(rows))
                if known < len(rows):
                    rows[known] = _with_reference(rows[known], truth_text(document))
                    continue
            if not full:
                rows.append(document)
    if not any(found.values()):
        raise DocumentError(f"{manifest}: no document of task {', '.join(tasks)}; give a manifest that has some")
    return found


def _task_of(record: dict, where: str) -> str | None:
    """The task that a manifest's line is scored as."""
    if record.get("task") not in CHAT_TASKS:
        return record.get("task")
    return judged_as(document_from_json(record, where=where))


def _require_scorable(document: Document, where: str) -> None:
    for key in ("references", "accepted"):
        _require_texts(document, key, where)
    if document.task in CHAT_TASKS:
        require_judgeable(document, where)
    if document.task in ("asr", "tts") and not any(c.isalnum() for c in truth_text(document)):
        raise DocumentError(f"{where}: the text has no words, and no word error rate is defined on it")
    if document.task == "caption" and not any(text.strip() for text in references(document)):
        raise DocumentError(f"{where}: no caption to compare with; give an answer or meta.references")
    if document.task == "t2i" and not truth_text(document):
        raise DocumentError(f"{where}: no text to draw from")


def _require_texts(document: Document, key: str, where: str) -> None:
    """A single text would be taken for a list of letters, and an empty one for a caption that nothing is like."""
    texts = document.meta.get(key)
    if texts and not (isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)):
        raise DocumentError(f"{where}: meta.{key} must be a list of texts, none of them empty; got {texts!r}")


def _with_reference(document: Document, text: str) -> Document:
    return dataclasses.replace(document, meta={**document.meta, "more_references": [*_more(document), text]})


def _more(document: Document) -> list[str]:
    return list(document.meta.get("more_references", ()))


def truth_text(document: Document) -> str:
    """The text that the document's task is about: the transcript or caption, or the text to be spoken or drawn.

    Of a dialogue its last answer, of a spoken one in words."""
    parts = answer_parts(document)
    if document.task in CHAT_TASKS and not any(p.modality == Modality.TEXT for p in parts):
        return (accepted(document) or [""])[0]
    if document.task in ("t2i", "tts"):  # a text before the last one is an instruction
        parts = [p for t in document.turns if t.role == "user" for p in t.parts if p.modality == Modality.TEXT][-1:]
    return " ".join(p.value for p in parts if p.modality == Modality.TEXT)


def references(document: Document) -> list[str]:
    """All true captions: `meta.references`, or the answer and those of other documents of the same picture."""
    given = document.meta.get("references")
    return list(given) if given else [truth_text(document), *_more(document)]


def answer_parts(document: Document) -> list[Part]:
    """Parts of the document's last turn if the assistant speaks there; [] for a mere prompt."""
    last = document.turns[-1]
    return list(last.parts) if last.role == "assistant" else []


def has_truth(document: Document) -> bool:
    """Whether the document brings a true answer of its task's kind (or captions)."""
    if document.task == "caption":
        return True
    if document.task in CHAT_TASKS:
        return bool(answer_parts(document))
    return any(p.modality == _ANSWER[document.task] for p in answer_parts(document))


def is_toy(documents: Sequence[Document]) -> bool:
    """Whether all are of the toy world, whose scenes its own judges need."""
    return bool(documents) and all("scene" in document.meta for document in documents)


def fingerprint(documents: Sequence[Document], root: Path) -> str:
    """16 hex digits over the documents and the content of their files; DocumentError for a file that is not there."""
    digest = hashlib.sha256()
    for document in documents:
        turns = [[turn.role, [[p.modality.name, str(p.value)] for p in turn.parts]] for turn in document.turns]
        digest.update(json.dumps([document.id, document.task, turns, dict(document.meta)], default=str).encode())
        for part in document.media():
            if not isinstance(part.value, str):
                raise DocumentError(f"document {document.id!r}: {part.modality.name.lower()} must be a path")
            path = root / part.value
            try:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
                why = getattr(error, "strerror", None) or error
                raise DocumentError(f"document {document.id!r}: {path} cannot be read ({why})") from error
    return digest.hexdigest()[:16]
