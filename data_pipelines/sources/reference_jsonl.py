"""The reference's pretraining shards: JSON lines of sequences that are tokenized already, in the published layout.

    {"id": "a1", "task": "speech_to_text", "discrete_code": [0, 12840, ...], "response": [31245, 16553, ...]}

Of `response` the length counts: in captions and transcripts the last that many tokens of the sequence, `<eos>`
apart, are the response, whose text the loss weighs more. In the other tasks the response begins with what is
answered: the first image or utterance after `<eoh>`, or the text that the length tells.

Tasks. The reference weighs `image_caption` and `speech_to_text` alone, so `image_to_text` becomes "chat", which
has plain weights. `text_to_text` is "chat" where an `<eoh>` ends a user's turn, else "text".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.documents import DocumentError, TokenDocument
from ar_omni_jax.vocabulary import Modality, chameleon_vocabulary
from data_pipelines.sources.json_records import JsonDocuments, own_id
from data_pipelines.token_documents import token_document, token_ids

NAME = "reference_jsonl"
TASKS = {
    "image_caption": "caption",
    "speech_to_text": "asr",
    "text_to_image": "t2i",
    "text_to_speech": "tts",
    "image_to_text": "chat",
    "speech_to_image": "speech_to_image",
    "text_to_text": "text",
}
_WEIGHED = ("caption", "asr")  # their response must be text alone
_OPENERS = {"t2i": "boi", "speech_to_image": "boi", "tts": "boa"}


class ReferenceJsonlSource(JsonDocuments):
    """Source of the token documents of one .jsonl file or of all in a folder."""

    name, suffixes = NAME, (".jsonl",)
    layout, template = chameleon_vocabulary(), "released"

    def _id(self, record: dict[str, Any], place: str, where: str) -> str:
        """FILE/TASK:ID, since one pair may serve two tasks; without an id FILE/LINE."""
        own = record.get("id")
        return own_id(place, None if own is None or own == "" else f"{record.get('task')}:{own}")

    def _document(self, record: dict[str, Any], name: str, where: str, folder: Path) -> TokenDocument:
        for key in ("discrete_code", "task"):
            if key not in record:
                raise DocumentError(f"{where}: key {key!r} is missing; is this a shard of the reference's pretraining?")
        if not isinstance(record["task"], str) or record["task"] not in TASKS:
            raise DocumentError(f"{where}: unknown task {record['task']!r}; known tasks: {', '.join(TASKS)}")
        ids = token_ids(record["discrete_code"], "discrete_code", where, self.layout)
        response = record.get("response") or ()
        if not isinstance(response, list | tuple | str):
            raise DocumentError(f"{where}: response must be a list, got {type(response).__name__}")
        task = TASKS[record["task"]]
        if task == "text" and (ids == self.layout.marker("eoh")).any():
            task = "chat"
        responses = np.arange(len(ids)) >= self._response_start(ids, task, len(response), where)
        return token_document(name, task, ids, responses, self.layout, NAME)

    def _response_start(self, ids: np.ndarray, task: str, length: int, where: str) -> int:
        """Index of the first token that the model is to produce."""
        marker = self.layout.marker
        if task == "text":
            return int(ids[0] == marker("bos"))
        asked = np.flatnonzero(ids == marker("eoh"))
        prompt = int(asked[-1]) + 1 if len(asked) else 0
        if task in _OPENERS:
            opener = _OPENERS[task]
            found = np.flatnonzero(ids[prompt:] == marker(opener))
            if not len(found):
                raise DocumentError(f"{where}: no <{opener}> after the prompt, which the answer of {task} begins with")
            return prompt + int(found[0])
        if not length:
            raise DocumentError(f"{where}: response is empty; its length says where the answer begins")
        places = np.flatnonzero(ids != marker("eos"))[-length:]
        if len(places) < length or places[0] < max(prompt, 1):
            raise DocumentError(
                f"{where}: a response of {length} tokens is longer than what follows the prompt; was the sequence cut?"
            )
        if task in _WEIGHED and not self._is_text(ids[places]):
            raise DocumentError(f"{where}: the last {length} tokens, the response of {task}, are not all text")
        return int(places[0])

    def _is_text(self, ids: np.ndarray) -> bool:
        text = self.layout.range_of(Modality.TEXT)
        return bool(((ids >= text.start) & (ids < text.stop)).all())
