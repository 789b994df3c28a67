"""CIDEr-D against pycocoevalcap's own figures (golden file) and a plain second implementation; its properties."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.evaluation.metrics.caption_tokens import caption_tokens
from ar_omni_jax.evaluation.metrics.cider import cider_d

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "cider.json").read_text(encoding="utf-8"))
SENTENCE = st.lists(st.sampled_from("a the red dog cat runs".split()), max_size=7)
IMAGES = st.lists(st.tuples(st.lists(SENTENCE.filter(bool), min_size=1, max_size=3), SENTENCE), min_size=1, max_size=5)


def split(rows):
    return [[sentence.split() for sentence in row] for row in rows]


def plain(references, hypotheses):
    """The formula on dense vectors over all n-grams seen, one array a sentence."""

    def grams(words, n):
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    scores = np.zeros(len(hypotheses))
    for n in (1, 2, 3, 4):
        seen = sorted({g for row in [*references, hypotheses] for words in row for g in grams(words, n)})
        had = [sum(any(g in grams(words, n) for words in row) for row in references) for g in seen]
        idf = np.array([math.log(len(references) / max(1, h)) for h in had])
        for k, (row, words) in enumerate(zip(references, hypotheses, strict=True)):
            mine = np.array([grams(words, n).count(g) for g in seen], float) * idf
            for reference in row:
                theirs = np.array([grams(reference, n).count(g) for g in seen], float) * idf
                norm = np.linalg.norm(mine) * np.linalg.norm(theirs)
                penalty = math.exp(-((max(len(words), 1) - max(len(reference), 1)) ** 2) / 72)
                scores[k] += (np.minimum(mine, theirs) @ theirs / norm if norm else 0) * penalty / len(row)
    return 10 * scores / 4


def test_equals_pycocoevalcap_on_captions_with_its_tokens_and_with_ours():
    theirs = [[GOLDEN["tokenized"][c].split() for c in row] for row in GOLDEN["references"]]
    hypotheses = [GOLDEN["tokenized"][c].split() for c in GOLDEN["hypotheses"]]
    np.testing.assert_allclose(cider_d(theirs, hypotheses), GOLDEN["scores"], rtol=1e-12)
    ours = [[caption_tokens(c) for c in row] for row in GOLDEN["references"]]
    figures = cider_d(ours, [caption_tokens(c) for c in GOLDEN["hypotheses"]])
    assert figures.mean() == pytest.approx(GOLDEN["cider"], rel=1e-12)


@pytest.mark.parametrize("case", GOLDEN["random"], ids=lambda c: f"{len(c['references'])} images")
def test_equals_pycocoevalcap_on_random_words(case):
    figures = cider_d(split(case["references"]), [h.split() for h in case["hypotheses"]])
    np.testing.assert_allclose(figures, case["scores"], rtol=1e-12, atol=1e-14)
    assert figures.max() > 1  # not all of them nothing


@settings(deadline=None)
@given(IMAGES)
def test_equals_a_plain_second_implementation(images):
    references, hypotheses = (list(side) for side in zip(*images, strict=True))
    np.testing.assert_allclose(cider_d(references, hypotheses), plain(references, hypotheses), atol=1e-9)


@settings(deadline=None)
@given(IMAGES)
def test_it_lies_between_0_and_10_and_does_not_heed_the_order(images):
    references, hypotheses = (list(side) for side in zip(*images, strict=True))
    figures = cider_d(references, hypotheses)
    assert (figures >= 0).all() and (figures <= 10 + 1e-9).all()
    turned = cider_d([row[::-1] for row in references[::-1]], hypotheses[::-1])
    np.testing.assert_allclose(turned[::-1], figures, atol=1e-9)


def test_copies_of_the_only_reference_have_10_and_no_answer_0():
    references = [[["a", "red", "dog", "runs"]], [["the", "blue", "cat", "sat"]]]
    np.testing.assert_allclose(cider_d(references, [references[0][0], []]), [10, 0])


def test_a_reference_may_stand_in_for_the_hypothesis_and_be_left_out():
    references = split([["a red dog", "a big dog"], ["the blue cat", "a cat"]])
    figures = cider_d(references, [row[0] for row in references], compared=[row[1:] for row in references])
    assert (figures < cider_d(references, [row[0] for row in references])).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 images' references, 2 hypotheses"):
        cider_d([[["a"]]], [["a"], ["b"]])
    with pytest.raises(ValueError, match="image 1 has no reference"):
        cider_d([[["a"]], []], [["a"], ["b"]])
