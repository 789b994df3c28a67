"""Documents that come tokenized: spans from ids and from which of them are trained on, and what must hold of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ar_omni_jax.documents import DocumentError, Role, Span, TokenDocument
from ar_omni_jax.responses import BRACKETS
from ar_omni_jax.vocabulary import JointVocabulary, Modality, VocabularyError


def token_ids(values: Any, what: str, where: str, layout: JointVocabulary | None = None) -> np.ndarray:
    """A list or array of whole numbers -> int64 [n], n > 0; DocumentError naming `what` and `where` otherwise.

    layout: the numbers must be ids of it.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # a ragged list
        array = np.empty((0, 0))
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise DocumentError(f"{where}: {what} must be a non-empty list of whole numbers; write the record again")
    array = array.astype(np.int64)
    try:
        return array if layout is None else layout.check_ids(array, f"{where}: {what}")
    except VocabularyError as e:
        raise DocumentError(str(e)) from e


def token_document(
    id: str, task: str, ids: np.ndarray, responses: np.ndarray, layout: JointVocabulary, source: str
) -> TokenDocument:
    """Ids int64 [n] of `layout`, and bool [n] which of them the model is to produce -> the document.

    A span is a run of tokens of one modality and one role, so any such mask is kept as it is. The group is
    "speech" where there is any speech, else "image" where there is any image, else "text".
    """
    kinds = layout.modality_of(ids)
    starts = np.flatnonzero(np.diff(kinds * 2 + responses, prepend=-1))
    ends = np.append(starts[1:], len(ids))
    spans = tuple(
        Span(Modality(int(kinds[s])), Role(int(responses[s])), s, e)
        for s, e in zip(starts.tolist(), ends.tolist(), strict=True)
    )
    group = next((g for g, m in (("speech", Modality.SPEECH), ("image", Modality.IMAGE)) if (kinds == m).any()), "text")
    return TokenDocument(id, task, group, ids.astype(np.int32), spans, source)


def require_layout(source: Any, vocabulary: JointVocabulary) -> None:
    """VocabularyError when the ids that `source` holds (its `layout`, if it has one) mean others in `vocabulary`.

    Markers and where each range begins must be the same; a vocabulary may have fewer codes or another image grid,
    which `check_tokens` sees in each document.
    """
    layout = getattr(source, "layout", None)
    if layout is None:
        return
    places = [(v.markers, v.text.start, v.image.start, v.speech.start) for v in (layout, vocabulary)]
    if places[0] != places[1]:
        raise VocabularyError(
            f"the input is tokenized in the layout {layout.name!r} of {layout.size} ids, which the vocabulary "
            f"{vocabulary.name!r} of {vocabulary.size} ids is not; use --tokenizers=chameleon, the layout "
            "alone, or the folder with Chameleon's text_tokenizer.json"
        )


def check_tokens(document: TokenDocument, vocabulary: JointVocabulary) -> None:
    """VocabularyError for an id outside `vocabulary`; DocumentError for media that are not whole.

    Codes must stand between their markers, and those of an image must be as many as the grid has.
    """
    ids = vocabulary.check_ids(document.tokens, f"document {document.id!r}")
    kinds = vocabulary.modality_of(ids)
    starts = np.flatnonzero(np.diff(kinds, prepend=255))
    ends = np.append(starts[1:], len(ids))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        kind = Modality(int(kinds[start]))
        if kind not in BRACKETS:
            continue
        before, after = (vocabulary.marker(name) for name in BRACKETS[kind])
        name = kind.name.lower()
        if start == 0 or end == len(ids) or ids[start - 1] != before or ids[end] != after:
            raise DocumentError(
                f"document {document.id!r}: {name} codes at tokens [{start}, {end}) do not stand between "
                f"<{BRACKETS[kind][0]}> and <{BRACKETS[kind][1]}>; was the sequence cut?"
            )
        if kind == Modality.IMAGE and end - start != vocabulary.image_length:
            raise DocumentError(
                f"document {document.id!r}: an image of {end - start} codes at token {start}; the grid "
                f"{vocabulary.image_grid} has {vocabulary.image_length}"
            )
