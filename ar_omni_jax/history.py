"""Dialogue history: read from a file, cut to the context by whole rounds, written back."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ar_omni_jax.documents import Document, DocumentError, Turn, document_from_json
from ar_omni_jax.files import replace_file
from ar_omni_jax.vocabulary import MODALITY_NAMES, Modality


@dataclasses.dataclass(frozen=True)
class FittedHistory:
    """A document that fits, and what was taken off its front.

    document: what is left. dropped: turns, oldest first, always whole rounds (user and assistant). tokens: of the
    prompt that is left. tokens_before: of the whole one.
    """

    document: Document
    dropped: tuple[Turn, ...]
    tokens: int
    tokens_before: int

    def note(self) -> str:
        """What was dropped, for people; empty when nothing was."""
        if not self.dropped:
            return ""
        turns = len(self.dropped) + len(self.document.turns)
        first, last = describe_turn(self.dropped[0]), describe_turn(self.dropped[-1])
        return (
            f"history: turns 1 to {len(self.dropped)} of {turns} were dropped ({self.tokens_before - self.tokens} of "
            f"{self.tokens_before} tokens), from {first} to {last}"
        )


def describe_turn(turn: Turn) -> str:
    """A turn in a few words: its role, its first words or its media."""
    parts = []
    for part in turn.parts:
        if part.modality == Modality.TEXT:
            text = " ".join(str(part.value).split())
            parts.append(f'"{text}"' if len(text) <= 40 else f'"{text[:37]}..."')
        else:
            parts.append(MODALITY_NAMES[part.modality])
    return f"{turn.role}: {' + '.join(parts)}"


def fit_history(document: Document, count: Callable[[Document], int], room: int, largest: int) -> FittedHistory:
    """Drops the oldest rounds of a dialogue until its prompt fits.

    Args:
      document: ends with the user's turn that is to be answered.
      count: the prompt's length in tokens, of a document with any number of rounds taken off its front.
      room: tokens that the prompt may have while there is history to drop (the answer keeps the rest).
      largest: tokens that the last user turn may have when it stands alone.
    Raises DocumentError when the last user turn alone is longer than `largest`.
    """
    before = count(document)

    def without(rounds: int) -> Document:
        return dataclasses.replace(document, turns=document.turns[2 * rounds :])

    most = (len(document.turns) - 1) // 2  # rounds that come before the last user turn
    low, high = 0, most  # prompts only get shorter: the least number of rounds that makes it fit
    while low < high:
        middle = (low + high) // 2
        if count(without(middle)) <= room:
            high = middle
        else:
            low = middle + 1
    left = without(low)
    tokens = count(left)
    if tokens > max(room, largest):
        raise DocumentError(
            f"document {document.id!r}: the last turn alone ({describe_turn(document.turns[-1])}) makes a prompt of "
            f"{tokens} tokens, and there is room for {max(room, largest)}; shorten it, or ask a model with a longer "
            "context"
        )
    return FittedHistory(left, document.turns[: 2 * low], tokens, before)


# -- files -----------------------------------------------------------------------------------------------------
def read_history(path: str | os.PathLike) -> tuple[Turn, ...]:
    """Turns of a JSON file (a list of turns, or an object with "turns") or of a JSONL file (one turn a line).

    A turn is {"role": "user" | "assistant", "parts": [{"text" | "image" | "speech": value}, ...]}; media are paths
    relative to the file. An empty file is an empty history. Raises DocumentError naming file and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark at the start
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"history {path}: cannot be read ({error})") from error
    turns = _parse(text, path)
    if not turns:
        return ()
    record = {"id": path.name, "task": "chat", "turns": turns}
    return tuple(_with_media_beside(turn, path.parent) for turn in document_from_json(record, where=str(path)).turns)


def _parse(text: str, path: Path) -> list:
    try:
        data = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError):  # malformed, or too deeply nested
        data = []
        for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other separators
            try:
                data += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise DocumentError(f"history {path}:{number}: malformed JSON ({error})") from error
    if isinstance(data, Mapping):
        data = data["turns"] if "turns" in data else [data]
    if not isinstance(data, list):
        raise DocumentError(f'history {path}: expected a list of turns, an object with "turns", or a turn a line')
    return data


def _with_media_beside(turn: Turn, folder: Path) -> Turn:
    def place(part):
        media = part.modality != Modality.TEXT and isinstance(part.value, str)
        return dataclasses.replace(part, value=str(folder / part.value)) if media else part

    return dataclasses.replace(turn, parts=tuple(place(part) for part in turn.parts))


def turn_to_json(turn: Turn, folder: Path | None = None) -> dict:
    """The inverse of reading, paths relative to `folder`. Bytes and arrays become a description of themselves."""
    parts = []
    for part in turn.parts:
        value = part.value
        if part.modality != Modality.TEXT:
            if isinstance(value, (str, os.PathLike)):
                value = os.path.relpath(value, folder) if folder is not None else os.fspath(value)
            elif isinstance(value, (bytes, bytearray, memoryview)):
                value = f"<{len(value)} bytes>"
            else:
                array = value[0] if isinstance(value, tuple) else value
                value = f"<array {getattr(array, 'dtype', type(array).__name__)}{list(getattr(array, 'shape', ()))}>"
        parts.append({MODALITY_NAMES[part.modality]: value})
    return {"role": turn.role, "parts": parts}


def write_history(path: str | os.PathLike, turns: Sequence[Turn]) -> None:
    """Replaces `path` (atomically) by one turn a line, media relative to it."""
    path = Path(path)
    lines = [json.dumps(turn_to_json(turn, path.parent), ensure_ascii=False) for turn in turns]
    replace_file(path, "".join(line + "\n" for line in lines).encode())
