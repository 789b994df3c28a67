"""The two data types that flow from raw media to shards: `Document` (raw) and `TokenDocument` (ids + spans)."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ar_omni_jax.vocabulary import Modality

# Order is part of the data format (task index is stored in `token_class`): append, never reorder.
TASKS = (
    "text",
    "caption",
    "t2i",
    "asr",
    "tts",
    "chat_speech",
    "chat_image",
    "chat",
    "speech_to_image",
    "image_to_speech",
)
GROUPS = ("text", "image", "speech")  # mixture subsets: text-only, image-text, speech-text


class DocumentError(ValueError):
    """A document that cannot be used; the message names the document, the place and the remedy."""


class Role(enum.IntEnum):
    """PROMPT: given by the user. RESPONSE: what the model is to produce."""

    PROMPT = 0
    RESPONSE = 1


def task_index(task: str) -> int:
    """Index of `task` in TASKS; DocumentError naming the known tasks otherwise."""
    if task not in TASKS:
        raise DocumentError(f"unknown task {task!r}; known tasks: {', '.join(TASKS)}")
    return TASKS.index(task)


def token_class(task: int | np.ndarray, role: int | np.ndarray, modality: int | np.ndarray):
    """(task, role, modality) -> uint8 class: task * 8 + role * 4 + modality. At most 32 tasks."""
    value = np.asarray(task, np.uint8) * 8 + np.asarray(role, np.uint8) * 4 + np.asarray(modality, np.uint8)
    return value.astype(np.uint8)


NUM_TOKEN_CLASSES = 256


def split_token_class(classes):
    """Inverse of `token_class`, element-wise on ints, NumPy or JAX arrays: (task, role, modality)."""
    return classes // 8, (classes // 4) % 2, classes % 4


@dataclasses.dataclass(frozen=True)
class Part:
    """One piece of a turn. `value` is str for TEXT; a path, bytes or array for IMAGE and SPEECH."""

    modality: Modality
    value: Any


@dataclasses.dataclass(frozen=True)
class Turn:
    """`role` is "user" or "assistant"; parts stand in the order of the stream."""

    role: str
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """Raw: turns of text, image and speech parts, a task of TASKS, a mixture group of GROUPS, and a name.

    prompt_dropped: the prompts' text is not rendered, for classifier-free guidance.
    """

    id: str
    task: str
    group: str
    turns: tuple[Turn, ...]
    source: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt_dropped: bool = False

    def media(self) -> list[Part]:
        """Image and speech parts in stream order: the order in which `templates.render` wants their codes."""
        return [p for t in self.turns for p in t.parts if p.modality != Modality.TEXT]


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens [start, end) of one modality and role."""

    modality: Modality
    role: Role
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class TokenDocument:
    """Tokenized: `tokens` int32 [n]; `spans` cover [0, n) without gap or overlap; markers have MARKER spans."""

    id: str
    task: str
    group: str
    tokens: np.ndarray
    spans: tuple[Span, ...]
    source: str = ""

    def classes(self) -> np.ndarray:
        """uint8 [n]: token_class of each token."""
        out = np.zeros(len(self.tokens), np.uint8)
        for s in self.spans:
            out[s.start : s.end] = token_class(task_index(self.task), s.role, s.modality)
        return out


_KEYS = {"text": Modality.TEXT, "image": Modality.IMAGE, "speech": Modality.SPEECH}


def document_from_json(record: Mapping, *, source: str = "", where: str = "") -> Document:
    """A manifest line -> Document. Turns are {"role", "parts"} objects, or bare lists of parts (user first).

    Args:
      record: {"id", "task", "turns", optional "group", "meta"}; parts are {"text"|"image"|"speech": value}.
      where: file and line, for messages.
    Raises DocumentError naming `where` and the key.
    """
    where = where or f"document {record.get('id', '?')!r}"
    for key in ("id", "task", "turns"):
        if key not in record:
            raise DocumentError(f"{where}: key {key!r} is missing; a document needs id, task and turns")
    if not is_id(record["id"]):
        raise DocumentError(f"{where}: 'id' must be a text or a whole number, got {record['id']!r}")
    if record["task"] not in TASKS:
        raise DocumentError(f"{where}: unknown task {record['task']!r}; known tasks: {', '.join(TASKS)}")
    turns = []
    if not isinstance(record["turns"], Sequence) or not record["turns"]:
        raise DocumentError(f"{where}: 'turns' must be a non-empty list")
    for i, turn in enumerate(record["turns"]):
        role = ("user", "assistant")[i % 2]
        if isinstance(turn, Mapping):
            role, turn = turn.get("role", role), turn.get("parts", ())
        if role not in ("user", "assistant"):
            raise DocumentError(f"{where}: turn {i} has role {role!r}; use 'user' or 'assistant'")
        if not isinstance(turn, Sequence) or isinstance(turn, str):
            raise DocumentError(f"{where}: turn {i} must be a list of parts, got {turn!r}")
        turns.append(Turn(role, tuple(_part_from_json(p, f"{where}: turn {i}") for p in turn)))
        if not turns[-1].parts:
            raise DocumentError(f"{where}: turn {i} has no parts")
    group = record.get("group") or default_group(turns)
    if group not in GROUPS:
        raise DocumentError(f"{where}: group {group!r} is not one of {', '.join(GROUPS)}")
    meta = record.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise DocumentError(f"{where}: 'meta' must be an object, got {meta!r}")
    return Document(str(record["id"]), record["task"], group, tuple(turns), source, meta)


def is_id(value) -> bool:
    """Whether a record's "id" names it: a text that is not empty, or a whole number."""
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _part_from_json(part: Mapping, where: str) -> Part:
    keys = [k for k in _KEYS if isinstance(part, Mapping) and k in part]
    if len(keys) != 1:
        raise DocumentError(f"{where}: a part needs exactly one of text, image or speech, got {part!r}")
    modality, value = _KEYS[keys[0]], part[keys[0]]
    if modality == Modality.TEXT and not (isinstance(value, str) and value.strip()):
        raise DocumentError(f"{where}: empty or non-string text {value!r}; drop the document or supply its text")
    return Part(modality, value)


def default_group(turns: Sequence[Turn]) -> str:
    """Mixture subset by the media present: speech wins over image, image over text."""
    kinds = {p.modality for t in turns for p in t.parts}
    return "speech" if Modality.SPEECH in kinds else "image" if Modality.IMAGE in kinds else "text"
