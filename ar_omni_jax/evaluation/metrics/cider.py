"""CIDEr-D of captions (Vedantam et al. 2015), equal to pycocoevalcap's figures on the same tokens; no Java.

For n = 1 … 4, an n-gram's weight in a sentence is its count there times log(N / d), N the images and d how many of them
have it in a reference. A candidate is compared with a reference by the cosine of their weights, each of the candidate's
cut to the reference's in the product; a factor exp(-δ² / 2σ²), σ = 6, makes length count. The mean over n and over the
references, times 10, is an image's score; the mean over images is the corpus's. Published tables print 100 times that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4
SIGMA = 6.0
Words = Sequence[str]
_Weights = list[dict[tuple[str, ...], float]]  # of n-grams, by n - 1


def ngrams(words: Words) -> Counter:
    """Counts of all n-grams of 1 to 4 words."""
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


def document_frequency(references: Sequence[Sequence[Words]]) -> Counter:
    """In how many images' references each n-gram stands."""
    return Counter(gram for rows in references for gram in set().union(*map(ngrams, rows)))


def cider_d(
    references: Sequence[Sequence[Words]],
    hypotheses: Sequence[Words],
    *,
    compared: Sequence[Sequence[Words]] | None = None,
) -> np.ndarray:
    """float64 [N]: each image's CIDEr-D, 0 to 10.

    Args:
      references: of each image, lists of words, at least one each; they give the document frequencies.
      hypotheses: of each image, words; an empty one scores 0.
      compared: what each hypothesis is held against, default `references` (others when one of the references is
        itself the hypothesis).
    Raises ValueError for lists of different length, none, or an image without references.
    """
    compared = references if compared is None else compared
    if not references or not len(references) == len(hypotheses) == len(compared):
        raise ValueError(f"{len(references)} images' references, {len(hypotheses)} hypotheses: give one each")
    for index, rows in enumerate(compared):
        if not rows or not references[index]:
            raise ValueError(f"image {index} has no reference to compare with")
    frequency, images = document_frequency(references), math.log(len(references))
    out = [_image(hypothesis, rows, frequency, images) for hypothesis, rows in zip(hypotheses, compared, strict=True)]
    return np.array(out, np.float64)


def _image(hypothesis: Words, references: Sequence[Words], frequency: Counter, images: float) -> float:
    weights, length = _weigh(hypothesis, frequency, images)
    sums = [_similarity(weights, length, *_weigh(words, frequency, images)) for words in references]
    return 10 * float(np.mean(sums))


def _weigh(words: Words, frequency: Counter, images: float) -> tuple[_Weights, int]:
    """(weights by n - 1, length). An n-gram that no reference has counts as one that a single image has."""
    weights: _Weights = [{} for _ in range(LONGEST)]
    for gram, count in ngrams(words).items():
        weights[len(gram) - 1][gram] = count * (images - math.log(max(1, frequency[gram])))
    # The reference implementation counts pairs of words, so no word and one word are equally long.
    return weights, max(0, len(words) - 1)


def _similarity(candidate: _Weights, length: int, reference: _Weights, reference_length: int) -> float:
    """Mean over n of the clipped cosines, with the penalty for another length."""
    total = 0.0
    for mine, theirs in zip(candidate, reference, strict=True):
        norm = _norm(mine) * _norm(theirs)
        if norm:
            shared = mine.keys() & theirs.keys()
            total += sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in shared) / norm
    return total / LONGEST * math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))


def _norm(weights: dict) -> float:
    return math.sqrt(sum(value * value for value in weights.values()))
