"""Word error rate over a corpus: all edits over all reference words (not the mean of the utterances' rates)."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class WordErrors:
    """Edit counts of a corpus against its references; sums over utterances.

    `edits` is the least number of substitutions, deletions and insertions that turn references into hypotheses.
    """

    edits: int
    reference_words: int
    empty_hypotheses: int
    utterances: int

    @property
    def rate(self) -> float:
        """Word error rate as a fraction; above 1 where there are many insertions."""
        return self.edits / self.reference_words


def normalize(text: str) -> str:
    """Lower case words of letters, digits and apostrophes, one space between: all that the toy world needs."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance of two word lists: substitutions, deletions and insertions cost 1 each."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    row = np.arange(len(hypothesis) + 1)
    offsets = np.arange(len(hypothesis) + 1)
    words = np.asarray(hypothesis, dtype=object)
    for position, word in enumerate(reference, start=1):
        candidates = np.empty_like(row)
        candidates[0] = position
        candidates[1:] = np.minimum(row[1:] + 1, row[:-1] + (words != word))
        # An insertion adds 1 a step to the right: a running minimum of (cost - column) finds the best start.
        row = np.minimum.accumulate(candidates - offsets) + offsets
    return int(row[-1])


def edit_counts(reference: str, hypothesis: str, normalizer=normalize) -> tuple[int, int]:
    """(edits, reference words) of one utterance. An empty hypothesis has all words deleted: 100 %.

    Raises:
        ValueError: for a reference that has no words after normalization.
    """
    if normalizer is not None:
        reference, hypothesis = normalizer(reference), normalizer(hypothesis)
    expected = reference.split()
    if not expected:
        raise ValueError("a reference has no words; drop it, for no error rate is defined on it")
    return edit_distance(expected, hypothesis.split()), len(expected)


def word_errors(references: Sequence[str], hypotheses: Sequence[str], normalizer=normalize) -> WordErrors:
    """Counts over a corpus.

    Args:
        references: true transcripts; one that has no words after normalization is an error.
        hypotheses: as many, in the same order; an empty one counts as 100 %.
        normalizer: str -> str, applied to both; None compares the texts as they are.

    Raises:
        ValueError: for lists of different length, no utterances, or an empty reference.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses; they must go in pairs")
    if not references:
        raise ValueError("word error rate needs at least one utterance; the list is empty")
    edits = words = empty = 0
    for index, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        try:
            more_edits, more_words = edit_counts(reference, hypothesis, normalizer)
        except ValueError as error:
            raise ValueError(f"utterance {index}: {error}") from error
        edits, words = edits + more_edits, words + more_words
        empty += not (hypothesis if normalizer is None else normalizer(hypothesis)).split()
    return WordErrors(edits, words, empty, len(references))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str], normalizer=normalize) -> float:
    """Corpus word error rate as a fraction; see `word_errors`."""
    return word_errors(references, hypotheses, normalizer).rate
