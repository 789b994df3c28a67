"""Fréchet distance between features of the true and of the made pictures: FID with clean-fid's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ar_omni_jax.documents import Document, DocumentError
from ar_omni_jax.evaluation.file_answer import FileAnswer, true_answer
from ar_omni_jax.evaluation.judges.picture_features import FeatureExtractor
from ar_omni_jax.evaluation.metrics.frechet import features_distance
from ar_omni_jax.evaluation.results import Score

GROUP = 32  # pictures in memory at once


class PictureDistance:
    """The true pictures are the documents' own. No interval: pictures drawn twice make a resample's covariance that of
    fewer pictures, which raises the distance. Answers without a picture cannot count and are counted in a note.

    Args: extractor: who makes features. root: of the documents' relative paths.
    """

    name, unit, higher_is_better = "fid", "distance", False

    def __init__(self, extractor: FeatureExtractor, root):
        self._extractor, self._root = extractor, root
        kind = "FID" if extractor.name.startswith("cleanfid") else "Fréchet distance"
        self.title = f"{kind} by {extractor.name}"
        self._known: tuple[Sequence[Document], np.ndarray] | None = None  # documents, features of their pictures

    def describe(self) -> dict:
        """See `Measure`."""
        return {"measure": self.name, "features": self._extractor.name}

    def entries(self, document: Document) -> dict[str, str]:
        """See `Measure`: none, `total` looks at the pictures."""
        return {}

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict]:
        """See `Measure`: nothing but whether there is a picture; features are made in `total`."""
        return [{"picture": bool(answer.image_paths)} for answer in answers]

    def _features(self, answers: Sequence[FileAnswer]) -> np.ndarray:
        rows = []
        for start in range(0, len(answers), GROUP):
            images = [answer.images[0] for answer in answers[start : start + GROUP]]
            rows.append(np.asarray(self._extractor.features(images), np.float64))
        return np.concatenate(rows)

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score | None:
        """See `Measure`. Of the truth: every other true picture against the rest, what chance alone makes."""
        truths = [true_answer(document, self._root) for document in documents]
        if not all(t.image_paths for t in truths):
            raise DocumentError("FID needs a true picture in every document of task t2i; leave fid out of --metrics")
        if self._known is None or self._known[0] is not documents:
            self._known = documents, self._features(truths)
        true = self._known[1]
        made = true[1::2] if truth else self._made(answers)
        true = true[::2] if truth else true
        if len(true) < 2 or len(made) < 2:
            return None
        notes = [f"{len(made)} pictures against {len(true)}" + (", two halves of the true ones" if truth else "")]
        if min(len(made), len(true)) <= true.shape[1]:
            notes.append(f"{true.shape[1]} features want more pictures than that: it lies above that of a larger set")
        empty = sum(not answer.image_paths for answer in answers)
        notes += [f"{empty} answers have no picture and are left out"] if empty else []
        return Score(features_distance(made, true), None, None, notes=notes)

    def _made(self, answers: Sequence[FileAnswer]) -> np.ndarray:
        drawn = [answer for answer in answers if answer.image_paths]
        return self._features(drawn) if drawn else np.zeros((0, 1))
