"""AnyInstruct conversations: JSON (an array or lines), messages with media as paths relative to the file's folder.

    {"id": 7, "conversation": [[{"role": "user", "message": "Draw a cat.", "speech": "chunk_00000/0001.mp3"},
                                {"role": "assistant", "message": "Here it is.", "image": "images/7.png"}]]}

The dialogue is a list of messages, or a list of such lists, which stand one after another; its key is one of KEYS.
Beside its words a message may have `speech` (or `audio`) and `image` (or `images`): one path or several. What a user
speaks is heard, not read: the words of a spoken question are its transcript and go to the document's meta. An answer
is its words, then its images, then its speech. Music has no tokens here, and messages that hold AnyGPT's own codes
in place of media cannot be read: both are errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document, DocumentError, Part, Turn, default_group
from ar_omni_jax.vocabulary import Modality
from data_pipelines.sources.dialogues import task_of_turns
from data_pipelines.sources.json_records import JsonDocuments

NAME = "any_instruct"
KEYS = ("conversation", "conversations", "chat")
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "anygpt": "assistant", "gpt": "assistant"}
_MEDIA = {"image": Modality.IMAGE, "images": Modality.IMAGE, "speech": Modality.SPEECH, "audio": Modality.SPEECH}
_CODES = re.compile("<(?:eo|so)(?:sp|im|mu)>|<\N{SPEAKING HEAD IN SILHOUETTE}")


class AnyInstructSource(JsonDocuments):
    """Source of the dialogues of one JSON file or of all in a folder."""

    name = NAME

    def _document(self, record: Mapping[str, Any], name: str, where: str, folder: Path) -> Document:
        keys = [key for key in KEYS if record.get(key)]
        if len(keys) != 1:
            raise DocumentError(f"{where}: exactly one of {', '.join(KEYS)} must hold the dialogue, found {keys}")
        messages = record[keys[0]]
        if isinstance(messages, list) and all(isinstance(item, list) for item in messages):
            messages = [message for item in messages for message in item]
        if not isinstance(messages, list) or not messages:
            raise DocumentError(f"{where}: {keys[0]} must be a list of messages")
        turns, spoken = [], []
        for number, message in enumerate(messages):
            turn, transcript = _turn(message, f"{where}: message {number + 1}", folder)
            turns.append(turn)
            spoken += transcript
        meta = {"transcripts": spoken} if spoken else {}
        return Document(name, task_of_turns(turns, where), default_group(turns), tuple(turns), NAME, meta)


def _turn(message: Any, where: str, folder: Path) -> tuple[Turn, list[str]]:
    """A message -> its turn, and what was said in it where the user speaks."""
    if not isinstance(message, Mapping) or "role" not in message:
        raise DocumentError(f"{where}: must be an object with role and message, got {str(message)[:80]!r}")
    role = ROLES.get(str(message["role"]).strip("[]").lower())
    if role is None:
        raise DocumentError(f"{where}: unknown role {message['role']!r}; known roles: {', '.join(ROLES)}")
    text = message.get("message") or ""
    if not isinstance(text, str) or _CODES.search(text):
        raise DocumentError(
            f"{where}: text that is no string, or holds codes of AnyGPT's tokenizers; use the form with media files"
        )
    if message.get("music"):
        raise DocumentError(f"{where}: has music, which there are no tokens for; leave the dialogue out")
    media = {m: _media(message, m, where, folder) for m in (Modality.IMAGE, Modality.SPEECH)}
    words = [Part(Modality.TEXT, text)] if text.strip() else []
    if role == "assistant":
        parts = words + media[Modality.IMAGE] + media[Modality.SPEECH]
    else:
        parts = media[Modality.IMAGE] + (media[Modality.SPEECH] or words)
    if not parts:
        raise DocumentError(f"{where}: is empty: no words and no media; supply them or drop the dialogue")
    heard = role == "user" and bool(media[Modality.SPEECH]) and bool(words)
    return Turn(role, tuple(parts)), [text] if heard else []


def _media(message: Mapping[str, Any], modality: Modality, where: str, folder: Path) -> list[Part]:
    parts = []
    for key in (key for key, kind in _MEDIA.items() if kind == modality and message.get(key)):
        paths = message[key] if isinstance(message[key], list) else [message[key]]
        if not all(isinstance(path, str) and path for path in paths):
            raise DocumentError(f"{where}: {key} must be a path or a list of paths, got {message[key]!r}")
        parts += [Part(modality, str(folder / path)) for path in paths]
    return parts
