"""Corpus word error rate against jiwer, and its traps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.evaluation.metrics.wer import edit_counts, edit_distance, normalize, word_error_rate, word_errors

WORDS = st.lists(st.sampled_from(["red", "blue", "circle", "a", "at"]), max_size=8)


@settings(deadline=None)  # the first call imports jiwer
@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6))
def test_equals_jiwer(pairs):
    jiwer = pytest.importorskip("jiwer")
    references, hypotheses = ([" ".join(words) for words in side] for side in zip(*pairs, strict=True))
    assert word_error_rate(references, hypotheses) == pytest.approx(jiwer.wer(references, hypotheses))


def test_it_is_over_the_corpus_and_not_the_mean_of_utterances():
    references, hypotheses = (
        ["red", "a large blue circle at the top left of"],
        ["blue", "a large blue circle at the top left of"],
    )
    assert word_error_rate(references, hypotheses) == pytest.approx(1 / 10)


def test_an_empty_hypothesis_counts_fully():
    errors = word_errors(["a red circle", "four"], ["", "four"])
    assert (errors.edits, errors.reference_words, errors.empty_hypotheses, errors.utterances) == (3, 4, 1, 2)
    assert edit_counts("a red circle", " ") == (3, 3)


def test_insertions_can_exceed_all():
    assert word_error_rate(["four"], ["four and four and four"]) == 4.0


def test_distance_by_hand():
    assert edit_distance("a b c d".split(), "a x c".split()) == 2
    assert edit_distance([], ["a"]) == 1
    assert edit_distance("s i t t i n g".split(), "k i t t e n".split()) == 3


def test_normalization_is_on_both_sides_and_can_be_left_out():
    assert normalize("  A Large,\tRED circle. it's") == "a large red circle it's"
    assert word_error_rate(["A red circle."], ["a RED circle"]) == 0
    assert word_error_rate(["A red circle."], ["a RED circle"], normalizer=None) == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        word_errors(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one utterance"):
        word_errors([], [])
    with pytest.raises(ValueError, match="utterance 1: .*no words"):
        word_errors(["a", "..."], ["a", "b"])
