"""Bootstrap intervals: against scipy's, by theory, and their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ar_omni_jax.evaluation.metrics.bootstrap import ratio_interval

COUNTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=30)


def test_equals_scipys_interval_of_a_ratio_of_sums():
    rng = np.random.default_rng(0)
    words = rng.integers(3, 20, 200)
    edits = rng.binomial(words, 0.2)
    value, low, high = ratio_interval(edits, words, draws=8000)
    theirs = stats.bootstrap(
        (edits, words),
        lambda e, w, axis: e.sum(axis) / w.sum(axis),
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert value == pytest.approx(edits.sum() / words.sum())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * (theirs.high - theirs.low))


def test_its_width_is_that_of_the_normal_law():
    scores = np.random.default_rng(2).normal(0.3, 0.1, 2000)
    _, low, high = ratio_interval(scores)
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / np.sqrt(2000), rel=0.1)


def test_it_covers_the_truth_in_about_95_of_100_samples():
    rng = np.random.default_rng(3)
    inside = 0
    for k in range(200):
        _, low, high = ratio_interval(rng.binomial(1, 0.3, 100), draws=300, seed=k)
        inside += low <= 0.3 <= high
    assert 180 <= inside <= 198


@settings(deadline=None, max_examples=50)
@given(COUNTS, st.integers(0, 99))
def test_one_seed_one_interval_around_the_value(counts, seed):
    edits, words = zip(*counts, strict=True)
    value, low, high = ratio_interval(edits, words, draws=200, seed=seed)
    assert (value, low, high) == ratio_interval(edits, words, draws=200, seed=seed)
    rates = np.divide(edits, words)
    assert rates.min() - 1e-12 <= low <= high <= rates.max() + 1e-12


def test_a_document_without_reference_words_counts_its_insertions():
    value, low, high = ratio_interval([2, 0], [0, 4])
    assert value == 0.5 and np.isfinite([low, high]).all()


def test_bad_input_is_named():
    for arguments in ([], ([1], [1, 2])):
        with pytest.raises(ValueError, match="one figure a document"):
            ratio_interval(*(arguments if isinstance(arguments, tuple) else (arguments,)))
    with pytest.raises(ValueError, match="add up to 0"):
        ratio_interval([1], [0])
