"""Fréchet distance against scipy's general matrix square root, by hand, and its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from ar_omni_jax.evaluation.metrics.frechet import features_distance, frechet_distance, moments


def features(seed, rows, width, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((rows, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(width)


def reference(a, b):
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.atleast_2d(np.cov(x.T))) for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b).real
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.1, 10))
def test_equals_scipy(seed, width, scale):
    a, b = features(seed, 40, width), features(seed + 1, 55, width, scale)
    assert features_distance(a, b) == pytest.approx(reference(a, b), rel=1e-6, abs=1e-6)


def test_by_hand_for_diagonal_covariances():
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 16.0])
    assert frechet_distance([0, 0], a, [3, 4], b) == pytest.approx(25 + (3 - 1) ** 2 + (4 - 2) ** 2)


def test_fewer_pictures_than_dimensions_need_no_correction():
    """Low rank: the spectrum of the small Gram matrices gives the same trace."""
    a, b = features(0, 6, 30), features(1, 8, 30)
    halves = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    shared = np.linalg.svd(halves[0] @ halves[1].T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((h**2).sum() for h in halves) - 2 * shared
    assert features_distance(a, b) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_it_is_symmetric_and_0_to_itself(seed):
    a, b = features(seed, 20, 5), features(seed + 1, 20, 5)
    assert features_distance(a, b) == pytest.approx(features_distance(b, a), rel=1e-8)
    assert features_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="N at least 2"):
        moments(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="NaN"):
        moments(np.array([[1.0], [np.nan]]))
