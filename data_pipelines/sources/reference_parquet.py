"""The reference's instruction data: parquet of `input_ids` and `labels`, tokenized in the published layout.

A label of -100 means that the token is not trained on; any other must be the token itself. Trained tokens become the
spans of role RESPONSE, whatever pattern they make, so `response_only` training has exactly the reference's targets.
The task follows from what is answered: an image chat_image, else speech chat, else chat_speech where speech is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.documents import DocumentError, Role, TokenDocument
from ar_omni_jax.vocabulary import chameleon_vocabulary
from data_pipelines.sources.dialogues import dialogue_task
from data_pipelines.sources.parquet_documents import ParquetDocuments
from data_pipelines.token_documents import token_document, token_ids

UNTRAINED = -100


class ReferenceParquetSource(ParquetDocuments):
    """Source of the token documents of one .parquet file or of all in a folder, named by file and row."""

    name, required = "reference_parquet", ("input_ids", "labels")
    layout, template = chameleon_vocabulary(), "released"

    def _document(self, values: Mapping[str, Any], name: str, where: str, folder: Path) -> TokenDocument:
        ids = token_ids(values["input_ids"], "input_ids", where, self.layout)
        labels = token_ids(values["labels"], "labels", where)
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
        document = token_document(name, "chat", ids, trained, self.layout, self.name)
        asked, answered = ({s.modality for s in document.spans if s.role == role} for role in Role)
        return dataclasses.replace(document, task=dialogue_task(asked, answered))
