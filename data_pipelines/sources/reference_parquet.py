"""The reference's instruction data: parquet of `input_ids` and `labels`, tokenized in the published layout.

A label of -100 means that the token is not trained on; any other must be the token itself. Trained tokens become the
spans of role RESPONSE, whatever pattern they make, so `response_only` training has exactly the reference's targets.
The task follows from what is answered: an image chat_image, else speech chat, else chat_speech where speech is asked.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ar_omni_jax.documents import DocumentError, Role, TokenDocument
from ar_omni_jax.vocabulary import chameleon_vocabulary
from data_pipelines.sources.base import Record
from data_pipelines.sources.dialogues import dialogue_task
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions
from data_pipelines.sources.parquet_rows import ParquetRows
from data_pipelines.token_documents import token_document, token_ids

NAME = "reference_parquet"
UNTRAINED = -100


class ReferenceParquetSource:
    """Source of the token documents of one .parquet file or of all in a folder, named by file and row."""

    layout = chameleon_vocabulary()

    def __init__(self, path: str | os.PathLike, options: SourceOptions = NO_OPTIONS):
        options.refuse(NAME, "tasks", "instructions", "prompt_dropout", "columns")
        self._rows = ParquetRows(path, ("input_ids", "labels"))
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

    def _document(self, row: Mapping[str, Any], name: str, where: str) -> TokenDocument:
        ids = token_ids(_list(row["input_ids"], "input_ids", where), "input_ids", where, self.layout)
        labels = token_ids(_list(row["labels"], "labels", where), "labels", where)
        if len(ids) != len(labels):
            raise DocumentError(f"{where}: {len(ids)} input_ids, but {len(labels)} labels; there is one for each")
        trained = labels != UNTRAINED
        wrong = np.flatnonzero(trained & (labels != ids))
        if len(wrong):
            at = int(wrong[0])
            raise DocumentError(
                f"{where}: label {labels[at]} at token {at} is neither {UNTRAINED} nor the token's id {ids[at]}, and "
                f"{len(wrong) - 1} more; labels must not be shifted, nor differ from the sequence"
            )
        if not trained[1:].any():
            raise DocumentError(f"{where}: no token has a label, there is nothing to train on; drop the row")
        document = token_document(name, "chat", ids, trained, self.layout, NAME)
        asked, answered = ({s.modality for s in document.spans if s.role == role} for role in Role)
        return dataclasses.replace(document, task=dialogue_task(asked, answered))


def _list(scalar: Any, key: str, where: str) -> np.ndarray:
    """A row's list column as an array."""
    values = getattr(scalar, "values", None)
    if values is None:
        raise DocumentError(f"{where}: {key} is {scalar.as_py()!r}, not a list of whole numbers")
    return values.to_numpy(zero_copy_only=False)
