"""Dialogues to score: their kinds, by what the last question and answer are made of, and what is known of the truth."""

from __future__ import annotations

from ar_omni_jax.documents import Document, DocumentError, Part
from ar_omni_jax.templates import CHAT_TASKS
from ar_omni_jax.vocabulary import Modality

# written question and answer; spoken question, written answer; spoken answer; picture (and its transcript)
DIALOGUE_TASKS = ("chat_text", "chat_speech", "chat_spoken", "chat_image")


def judged_as(document: Document) -> str:
    """The task that a document is scored as: one of DIALOGUE_TASKS for a dialogue with an answer, else its own."""
    if document.task not in CHAT_TASKS or document.turns[-1].role != "assistant":
        return document.task
    answered = {part.modality for part in document.turns[-1].parts}
    if Modality.IMAGE in answered:
        return "chat_image"
    if Modality.SPEECH in answered:
        return "chat_spoken"
    asked: tuple[Part, ...] = document.turns[-2].parts if len(document.turns) > 1 else ()
    return "chat_speech" if any(part.modality == Modality.SPEECH for part in asked) else "chat_text"


def require_judgeable(document: Document, where: str) -> None:
    """DocumentError unless a dialogue says what is right: only the toy world's judges can tell."""
    kind = judged_as(document)
    needed = "scene" if kind == "chat_image" else "accepted"
    if not document.meta.get(needed):
        raise DocumentError(
            f"{where}: a dialogue of kind {kind} is scored by its meta.{needed}, which is missing; make dialogues "
            "with python -m data_pipelines.toyworld --dialogues --output=DIR --size=N"
        )


def accepted(document: Document) -> list[str]:
    """Every wording of the last answer that is right; the first is the one to show."""
    return list(document.meta.get("accepted") or ())
