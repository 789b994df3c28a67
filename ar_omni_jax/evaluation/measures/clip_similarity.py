"""CLIP score of pictures: mean cosine with the text that they were drawn from, and with the true picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation.file_answer import FileAnswer, true_answer
from ar_omni_jax.evaluation.judges.embedders import PictureTextEmbedder
from ar_omni_jax.evaluation.manifest import has_truth, truth_text
from ar_omni_jax.evaluation.metrics.bootstrap import ratio_interval
from ar_omni_jax.evaluation.metrics.clip_score import clip_scores
from ar_omni_jax.evaluation.record_file import NUMBER
from ar_omni_jax.evaluation.results import Score


class ClipSimilarity:
    """Raw cosines in [0, 1], clipped at 0; no picture scores 0.

    Args: embedder: who embeds. root: of the documents' relative paths.
    """

    name, title, unit, higher_is_better = "clip", "CLIP score, cosine with the text", "", True

    def __init__(self, embedder: PictureTextEmbedder, root):
        self._embedder, self._root = embedder, root

    def describe(self) -> dict:
        """See `Measure`."""
        return {"measure": self.name, "embedder": self._embedder.name, "scale": 1}

    def entries(self, document: Document) -> dict[str, str]:
        """See `Measure`."""
        return {"clip": NUMBER, "clip_image": NUMBER} if has_truth(document) else {"clip": NUMBER}

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict]:
        """See `Measure`: "clip", cosine with the text, and "clip_image", with the true picture where there is one."""
        records = [{"clip": 0.0} for _ in documents]
        pictures = [answer.images[:1] for answer in answers]
        drawn = [k for k, images in enumerate(pictures) if images]
        if not drawn:
            return self._without_picture(records, documents)
        images = self._embedder.embed_images([pictures[k][0] for k in drawn])
        texts = self._embedder.embed_texts([truth_text(documents[k]) for k in drawn])
        for k, score in zip(drawn, clip_scores(images, texts), strict=True):
            records[k]["clip"] = float(score)
        known = [(row, k) for row, k in enumerate(drawn) if has_truth(documents[k])]
        if known:
            truths = self._embedder.embed_images([true_answer(documents[k], self._root).images[0] for _, k in known])
            scores = clip_scores(images[[row for row, _ in known]], truths)
            for (_, k), score in zip(known, scores, strict=True):
                records[k]["clip_image"] = float(score)
        return self._without_picture(records, documents)

    @staticmethod
    def _without_picture(records: list[dict], documents: Sequence[Document]) -> list[dict]:
        return [
            r if "clip_image" in r or not has_truth(d) else {**r, "clip_image": 0.0}
            for r, d in zip(records, documents, strict=True)
        ]

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score:
        """See `Measure`."""
        pictures = [r["clip_image"] for r in records if "clip_image" in r]
        empty = sum(not answer.image_paths for answer in answers)
        notes = [f"{empty} of {len(answers)} answers have no picture and score 0"] if empty else []
        more = {"cosine with the true picture": float(np.mean(pictures))} if pictures and not truth else {}
        return Score(*ratio_interval([r["clip"] for r in records]), details=more, notes=notes)
