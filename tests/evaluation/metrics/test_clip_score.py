"""Cosines against torch's, and their bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.evaluation.metrics.clip_score import clip_scores, cosines


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_equals_torch_whatever_the_scale(seed, scale):
    torch = pytest.importorskip("torch")
    a, b = np.random.default_rng(seed).standard_normal((2, 7, 5))
    theirs = torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b)).numpy()
    np.testing.assert_allclose(cosines(a * scale, b), theirs, atol=1e-9)
    np.testing.assert_allclose(clip_scores(a * scale, b), theirs.clip(0), atol=1e-9)


def test_by_hand():
    np.testing.assert_allclose(cosines([[3, 4], [1, 0], [0, 0]], [[3, 4], [-1, 0], [1, 1]]), [1, -1, 0])
    np.testing.assert_allclose(clip_scores([[3, 4], [1, 0]], [[4, 3], [-1, 0]]), [0.96, 0])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[N, D\] on both sides"):
        cosines(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        cosines([[np.nan, 0]], [[1, 0]])
