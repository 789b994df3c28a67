"""CIDEr-D of captions against all references of their picture, times 100 as tables print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.manifest import references
from ar_omni_jax.evaluation.metrics.bootstrap import ratio_interval
from ar_omni_jax.evaluation.metrics.caption_tokens import caption_tokens
from ar_omni_jax.evaluation.metrics.cider import cider_d
from ar_omni_jax.evaluation.record_file import TEXTS
from ar_omni_jax.evaluation.results import Score


class CaptionCider:
    """Document frequencies are those of the references of the documents at hand; the interval holds them fixed."""

    name, title, unit, higher_is_better = "cider", "CIDEr-D x 100", "x100", True

    def describe(self) -> dict:
        """See `Measure`."""
        return {"measure": self.name, "scale": 100, "frequencies": "references of these documents"}

    def entries(self, document: Document) -> dict[str, str]:
        """See `Measure`."""
        return {"caption_words": TEXTS}

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict]:
        """See `Measure`: the caption's words."""
        return [{"caption_words": caption_tokens(answer.text)} for answer in answers]

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score | None:
        """See `Measure`. A reference that answers is held against the others; None where a picture has no other."""
        if len(documents) < 2:  # every frequency is that of all pictures, every weight 0
            return None
        words = [[caption_tokens(text) for text in references(document)] for document in documents]
        compared = [rows[1:] if a.is_reference else rows for rows, a in zip(words, answers, strict=True)]
        if not all(compared):
            return None
        figures = cider_d(words, [r["caption_words"] for r in records], compared=compared)
        counts = sorted({len(rows) for rows in compared})
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes = [f"against {number} references a picture" + (", its own left out" if truth else "")]
        low_to_high = [100 * x for x in ratio_interval(figures)]
        return Score(*low_to_high, notes=notes, examples=[{"cider": float(figure)} for figure in figures])
