"""95 % intervals over few seeds and the same documents.

Two things vary between runs of one variant: the seed (initialization, order of the data), and the documents that happen
to be judged, each with draws of the decoding that are the same for all runs. The seeds are few, so theirs is Student's
interval, which knows how little three values say of a spread; the documents are many, and the same for all seeds and
variants, so theirs is a bootstrap that draws the same ones for all. The two add up in squares. That counts the noise of
single answers twice: an interval may be too wide, not too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ar_omni_jax.ablation.results import Run

DRAWS = 2000


def over_seeds(values: Sequence[float], error: float = 0.0) -> dict:
    """{"mean", "low", "high", "seeds"} of one value a seed. error: standard error from what all seeds share.

    A single seed has no spread: its interval is `error`'s alone, and says nothing of other seeds.
    """
    from scipy import stats

    mean, half = float(np.mean(values)), 1.96 * error
    if len(values) > 1:
        spread = np.std(values, ddof=1) / np.sqrt(len(values))
        half = float(np.hypot(half, stats.t.ppf(0.975, len(values) - 1) * spread))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": [float(x) for x in values]}


def score(runs: list[Run], task: str, minus: list[Run] | None = None) -> dict:
    """`over_seeds` of the task's score in percent.

    Args:
      minus: runs with the same seeds on the same documents, whose score is taken away.
    """
    if minus is not None and [run.seed for run in runs] != [run.seed for run in minus]:
        raise ValueError("differences are of runs with the same seeds")
    documents = len(runs[0].top[task])
    picks = np.random.default_rng(0).integers(0, documents, (DRAWS, documents))

    def scores(rows):
        top, bottom = (np.stack([getattr(run, name)[task] for run in rows]) for name in ("top", "bottom"))
        drawn = 100 * top[:, picks].sum(2) / bottom[:, picks].sum(2)
        return 100 * top.sum(1) / bottom.sum(1), drawn.mean(0)

    values, drawn = scores(runs)
    if minus is not None:
        others, others_drawn = scores(minus)
        return over_seeds(values - others, float(np.std(drawn - others_drawn)))
    found = over_seeds(values, float(np.std(drawn)))
    most = 100.0 if task in ("caption", "t2i") else np.inf  # extra words can make more errors than there are words
    return found | {"low": max(found["low"], 0.0), "high": min(found["high"], most)}


def decided(interval: dict) -> bool:
    """Whether a difference is told from zero: by two seeds or more, with zero outside the interval."""
    return len(interval["seeds"]) > 1 and (interval["low"] > 0 or interval["high"] < 0)
