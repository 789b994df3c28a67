"""CLIP score: the cosine of two embeddings, clipped at 0; printed raw (other tools print 100 or 250 times that)."""

from __future__ import annotations

import numpy as np


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 [N] in [-1, 1]: of embeddings [N, D] and [N, D], row by row. A row of zeros has cosine 0.

    Raises ValueError for shapes that differ, are not [N, D], or hold values that are not finite.
    """
    first, second = (np.asarray(x, np.float64) for x in (first, second))
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"embeddings must be [N, D] on both sides; got {list(first.shape)} and {list(second.shape)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("embeddings hold NaN or infinite values")
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.clip((first * second).sum(1) / np.where(norms > 0, norms, 1), -1, 1)


def clip_scores(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [N] in [0, 1]: max(0, cosine); `others` are embeddings of texts, or of other pictures."""
    return np.maximum(0, cosines(images, others))
