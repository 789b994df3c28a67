"""Fréchet distance between two Gaussians, which FID takes between features of true and of made pictures."""

from __future__ import annotations

import numpy as np


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean float64 [D], covariance float64 [D, D] over N - 1) of features [N, D].

    Raises ValueError for another shape, fewer than two rows, or values that are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be [N, D] with N at least 2; got shape {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values")
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """|μ_a - μ_b|² + tr Σ_a + tr Σ_b - 2 tr (Σ_a Σ_b)^½, for symmetric positive semi-definite Σ [D, D].

    The last trace is the sum of the square roots of the eigenvalues of A Σ_b A with A = Σ_a^½, which is symmetric: no
    general matrix square root, so fewer pictures than dimensions need no correction by a small diagonal.
    """
    difference = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    a, b = (np.asarray(c, np.float64) for c in (covariance_a, covariance_b))
    values, vectors = np.linalg.eigh((a + a.T) / 2)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = root @ ((b + b.T) / 2) @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0, None)).sum()
    return float(max(0.0, difference @ difference + np.trace(a) + np.trace(b) - 2 * shared))


def features_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """`frechet_distance` of the moments of features [N, D] and [M, D]."""
    return frechet_distance(*moments(features_a), *moments(features_b))
