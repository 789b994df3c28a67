"""Word error rate of transcripts (ASR), and of what a recognizer hears in made speech (TTS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.judges.recognizers import SpeechRecognizer
from ar_omni_jax.evaluation.manifest import truth_text
from ar_omni_jax.evaluation.metrics.bootstrap import ratio_interval
from ar_omni_jax.evaluation.metrics.normalizers import text_normalizer
from ar_omni_jax.evaluation.metrics.wer import edit_distance
from ar_omni_jax.evaluation.record_file import NUMBER, TEXT
from ar_omni_jax.evaluation.results import Score


class WordErrorRate:
    """All edits over all reference words, in percent; no answer counts as 100 %.

    A reference without words after normalization ("Hmm.") adds its insertions to the edits and nothing to the words.

    Args:
      normalizer: of `metrics.normalizers`, for both sides. recognizer: who listens (TTS); None reads the text (ASR).
    """

    name, unit, higher_is_better = "wer", "%", False

    def __init__(self, normalizer: str, recognizer: SpeechRecognizer | None = None):
        self.title = f"{'TTS' if recognizer else 'ASR'} word error rate"
        self._name, self._normalize, self._recognizer = normalizer, text_normalizer(normalizer), recognizer

    def describe(self) -> dict:
        """See `Measure`."""
        heard = {"recognizer": self._recognizer.name} if self._recognizer else {}
        return {"measure": self.name, "normalizer": self._name, **heard}

    def entries(self, document: Document) -> dict[str, str]:
        """See `Measure`."""
        return {"answer": TEXT} | dict.fromkeys(("edits", "words", "edits_unnormalized", "words_unnormalized"), NUMBER)

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict]:
        """See `Measure`: what was heard, edits and reference words, normalized and not."""
        return [self._record(*row) for row in zip(documents, answers, self._texts(answers), strict=True)]

    def _texts(self, answers: Sequence[FileAnswer]) -> list[tuple[str, int | None]]:
        """(text, samples of speech) of each answer."""
        if self._recognizer is None:
            return [(answer.text, None) for answer in answers]
        waves = [answer.waves(self._recognizer.sample_rate)[:1] for answer in answers]
        texts = iter(self._recognizer.transcribe_all([wave[0] for wave in waves if wave]))
        return [(next(texts), len(wave[0])) if wave else ("", 0) for wave in waves]

    def _record(self, document: Document, answer: FileAnswer, heard: tuple[str, int | None]) -> dict:
        truth, (text, samples) = truth_text(document), heard
        record = {"answer": text} if samples is None else {"answer": text, "samples": samples}
        for suffix, normalize in (("", self._normalize), ("_unnormalized", str)):
            expected, found = normalize(truth).split(), normalize(text).split()
            record |= {f"edits{suffix}": edit_distance(expected, found), f"words{suffix}": len(expected)}
        return record

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score | None:
        """See `Measure`; details: the rate without normalization."""
        edits, words = ([r[key] for r in records] for key in ("edits", "words"))
        if not sum(words):
            return None
        low_to_high = [100 * x for x in ratio_interval(edits, words)]
        raw = 100 * sum(r["edits_unnormalized"] for r in records) / sum(r["words_unnormalized"] for r in records)
        empty = sum(not r["answer"].strip() for r in records)
        notes = [f"{empty} of {len(records)} answers are empty or not heard and count as 100 %"] if empty else []
        lost = sum(not r["words"] for r in records)
        notes += [f"{lost} references have no words once normalized"] if lost else []
        return Score(*low_to_high, details={"unnormalized": raw}, notes=notes)
