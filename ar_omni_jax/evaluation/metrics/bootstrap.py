"""Percentile bootstrap: how far a corpus figure may lie from here, were the documents drawn anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 1000
_BLOCK = 4_000_000  # indices drawn at once


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """(value, low, high) of Σ numerators / Σ denominators, documents resampled with replacement.

    Args:
      numerators: one a document (edits, a score). denominators: as many, default 1 each (a plain mean); a resample
        whose denominators add up to 0 is left out. seed: equal seeds give equal intervals.
    Raises ValueError for no documents, lists of different length, or denominators that add up to 0.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones(len(top)) if denominators is None else np.asarray(denominators, np.float64)
    if top.ndim != 1 or not len(top) or top.shape != bottom.shape:
        raise ValueError(f"one figure a document is needed, on both sides; got {top.shape} and {bottom.shape}")
    if bottom.sum() == 0:
        raise ValueError("the denominators add up to 0; there is nothing to divide by")
    rng = np.random.default_rng(seed)
    tops, bottoms = [], []
    for start in range(0, draws, step := max(1, _BLOCK // len(top))):
        picks = rng.integers(0, len(top), (min(step, draws - start), len(top)))
        tops.append(top[picks].sum(1))
        bottoms.append(bottom[picks].sum(1))
    above, below = np.concatenate(tops), np.concatenate(bottoms)
    resampled = above[below > 0] / below[below > 0]
    low, high = np.percentile(resampled, [50 * (1 - level), 50 * (1 + level)])
    return float(top.sum() / bottom.sum()), float(low), float(high)
