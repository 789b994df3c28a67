"""Rows of text corpora to documents: a running text, or a dialogue whose user and assistant alternate.

Layouts, by the first of these keys that a row has (or by the one that the user named):
  content, text   a string: Ultra-FineWeb's `content`, FineWeb's and most others' `text`.
  messages        [{"role": "user", "content": "..."}, ...]: ultrachat_200k (its dataset card on the hub).
  data            ["question", "answer", ...]: UltraChat (README of thunlp/UltraChat, "Data Format").

Documents are kept whole, however long: what does not fit a row is split by pack_shards. A system message stands
before the first question, in the user's turn. A last question without an answer is left out: there is nothing to
learn from it; a dialogue of nothing else is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, Part, Turn
from ar_omni_jax.vocabulary import Modality

KEYS = ("messages", "data", "content", "text")  # dialogues first: a row may also hold its first question as text


def text_document(id: str, row: Mapping[str, Any], key: str | None, *, source: str, where: str) -> Document:
    """The document of one row.

    Args:
      key: the key that holds the text or dialogue, None to look for one of KEYS.
    Raises DocumentError naming `where`.
    """
    key = find_key(row, key, where)
    value = row[key]
    if isinstance(value, list):
        return Document(id, "chat", "text", _turns(value, f"{where}: {key}"), source)
    if not isinstance(value, str) or not value.strip():
        raise DocumentError(f"{where}: {key}: empty or missing text {value!r}; supply it or drop the record")
    return Document(id, "text", "text", (Turn("assistant", (Part(Modality.TEXT, value),)),), source)


def find_key(row: Mapping[str, Any], key: str | None, where: str) -> str:
    """The key that holds a row's text or dialogue; DocumentError with those that there are."""
    wanted = KEYS if key is None else (key,)
    found = next((name for name in wanted if name in row), None)
    if found is None:
        raise DocumentError(
            f"{where}: none of {', '.join(wanted)} is there, only {', '.join(map(str, row)) or 'nothing'}; name the "
            "right one with --columns=text:NAME"
        )
    return found


def _turns(items: list, where: str) -> tuple[Turn, ...]:
    """Alternating turns of [{"role", "content"}] or of ["question", "answer", ...]."""
    turns: list[Turn] = []
    system: tuple[Part, ...] = ()
    for number, item in enumerate(items):
        expected = ("user", "assistant")[len(turns) % 2]
        role, text = (item.get("role"), item.get("content")) if isinstance(item, Mapping) else (expected, item)
        if not isinstance(text, str) or not text.strip():
            raise DocumentError(f"{where}: turn {number}: empty or missing text {text!r}; mend or drop the dialogue")
        if role == "system" and not turns and not system:
            system = (Part(Modality.TEXT, text),)
            continue
        if role != expected:
            raise DocumentError(
                f"{where}: turn {number} is {role!r}, must be {expected!r}: user and assistant alternate"
            )
        turns.append(Turn(role, (*system, Part(Modality.TEXT, text))))
        system = ()
    answered = len(turns) // 2 * 2
    if not answered:
        raise DocumentError(f"{where}: a dialogue without an answer; there is nothing to learn from it")
    return tuple(turns[:answered])
