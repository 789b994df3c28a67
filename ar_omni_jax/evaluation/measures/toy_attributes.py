"""How many attributes of a toy scene a caption or a picture got right, by the toy world's own judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation import toy_judges
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.metrics.bootstrap import ratio_interval
from ar_omni_jax.evaluation.record_file import NUMBER
from ar_omni_jax.evaluation.results import Score

DETAILS = ("shapes", "colors", "sizes", "positions", "background")
TITLES = {"caption": "caption attributes right", "t2i": "image attributes read back"}


class ToyAttributes:
    """Mean share of right attributes in percent; no answer has none right. Args: task: "caption" or "t2i"."""

    name, unit, higher_is_better = "attributes", "%", True

    def __init__(self, task: str):
        self.title, self._pictures = TITLES[task], task == "t2i"

    def describe(self) -> dict:
        """See `Measure`."""
        return {"measure": self.name, "judge": "toy world", "of": "pictures" if self._pictures else "captions"}

    def entries(self, document: Document) -> dict[str, str]:
        """See `Measure`."""
        return dict.fromkeys(("attributes", *DETAILS), NUMBER)

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict]:
        """See `Measure`: shares in [0, 1]."""
        return [self._score(d.meta["scene"], a) for d, a in zip(documents, answers, strict=True)]

    def _score(self, scene: Mapping, answer: FileAnswer) -> dict:
        if not self._pictures:
            return toy_judges.score_caption(answer.text, scene)
        images = answer.images
        return toy_judges.score_image(images[0], scene) if images else toy_judges.nothing(scene)

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score:
        """See `Measure`; details: percent of shapes, colours, sizes, positions and backgrounds right."""
        low_to_high = [100 * x for x in ratio_interval([r["attributes"] for r in records])]
        return Score(*low_to_high, details={name: 100 * float(np.mean([r[name] for r in records])) for name in DETAILS})
