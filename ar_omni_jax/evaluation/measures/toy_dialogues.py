"""How often the last answer of a toy world's dialogue is right: read, heard by a recognizer, or seen in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation import toy_judges
from ar_omni_jax.evaluation.dialogue_kinds import accepted
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.judges.recognizers import SpeechRecognizer
from ar_omni_jax.evaluation.metrics.bootstrap import ratio_interval
from ar_omni_jax.evaluation.record_file import NUMBER, TEXT
from ar_omni_jax.evaluation.results import Score

ANSWER_TITLES = {
    "chat_text": "written questions: answers right",
    "chat_speech": "spoken questions: answers right",
    "chat_spoken": "spoken answers right",
}
PICTURE_TITLE = "pictures of dialogues: attributes right"
PARTS = ("shapes", "colors", "sizes", "positions")


class ToyAnswers:
    """Percent of answers that say what is right in one of the accepted wordings; details: by kind of question.

    Args:
      kind: of ANSWER_TITLES. recognizer: who listens to spoken answers; None reads the text.
    """

    name, unit, higher_is_better = "correct", "%", True  # not "answers": that file holds the answers themselves

    def __init__(self, kind: str, recognizer: SpeechRecognizer | None = None):
        self.title, self._recognizer = ANSWER_TITLES[kind], recognizer

    def describe(self) -> dict:
        """See `Measure`."""
        heard = {"recognizer": self._recognizer.name} if self._recognizer else {}
        return {"measure": self.name, "judge": "toy world", **heard}

    def entries(self, document: Document) -> dict[str, str]:
        """See `Measure`."""
        asked = {"question": TEXT} if isinstance(document.meta.get("question", ""), str) else {}
        return {"answer": TEXT, "right": NUMBER, **asked}

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict]:
        """See `Measure`: what was read or heard, and whether it is right."""
        return [
            {
                "answer": text,
                "right": toy_judges.answer_right(text, accepted(document)),
                "question": document.meta.get("question", ""),
            }
            for document, text in zip(documents, self._texts(answers), strict=True)
        ]

    def _texts(self, answers: Sequence[FileAnswer]) -> list[str]:
        if self._recognizer is None:
            return [answer.text for answer in answers]
        waves = [answer.waves(self._recognizer.sample_rate)[:1] for answer in answers]
        heard = iter(self._recognizer.transcribe_all([wave[0] for wave in waves if wave]))
        return [next(heard) if wave else "" for wave in waves]

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score:
        """See `Measure`."""
        kinds = dict.fromkeys(sorted(record["question"] for record in records))
        details = {kind: _percent([r["right"] for r in records if r["question"] == kind]) for kind in kinds}
        empty = sum(not record["answer"].strip() for record in records)
        notes = [f"{empty} of {len(records)} answers are empty or not heard"] if empty else []
        low_to_high = [100 * x for x in ratio_interval([float(r["right"]) for r in records])]
        return Score(*low_to_high, details=details, notes=notes)


class ToyDialoguePictures:
    """Mean share of right attributes of the last picture, in percent.

    Details: of pictures drawn and of pictures changed apart; how many changes were made as asked; and what leaving the
    picture before as it was would score, for a change touches one attribute only.
    """

    name, unit, higher_is_better, title = "attributes", "%", True, PICTURE_TITLE

    def describe(self) -> dict:
        """See `Measure`."""
        return {"measure": self.name, "judge": "toy world", "of": "pictures of dialogues"}

    def entries(self, document: Document) -> dict[str, str]:
        """See `Measure`."""
        of_changes = ("changed", "unchanged_score") if document.meta.get("before") is not None else ()
        return dict.fromkeys(("attributes", *PARTS, *of_changes), NUMBER)

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict]:
        """See `Measure`: shares in [0, 1]; of a change also whether it was made, and the score of no change."""
        return [self._record(d.meta, a) for d, a in zip(documents, answers, strict=True)]

    @staticmethod
    def _record(meta: Mapping, answer: FileAnswer) -> dict:
        images = answer.images
        truth, before = meta["scene"], meta.get("before")
        score = toy_judges.score_image(images[-1], truth) if images else toy_judges.nothing(truth)
        record = {**score, "question": meta.get("question", "")}
        if before is not None:
            found = toy_judges.read_scene(images[-1]) if images else None
            record["changed"] = float(found is not None and toy_judges.change_made(found, truth, before))
            record["unchanged_score"] = toy_judges.compare(before, truth)["attributes"]
        return record

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score:
        """See `Measure`."""
        edits = [r for r in records if "changed" in r]
        groups = {
            "drawn": [r["attributes"] for r in records if "changed" not in r],
            "changed": [r["attributes"] for r in edits],
            "changes made": [r["changed"] for r in edits],
            "left as it was": [r["unchanged_score"] for r in edits],
        }
        details = {name: _percent(values) for name, values in groups.items() if values}
        details |= {name: _percent([r[name] for r in records]) for name in PARTS}
        empty = sum(not answer.image_paths for answer in answers)
        notes = [f"{empty} of {len(answers)} answers have no picture"] if empty else []
        return Score(*[100 * x for x in ratio_interval([r["attributes"] for r in records])], details, notes)


def _percent(values: Sequence[float]) -> float:
    return 100 * float(np.mean(values))
