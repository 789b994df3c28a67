"""Laws through few points of a learning curve, and where they meet a goal.

Two laws of the share that is right, p. "logit": logit(p) = a + b log(tokens), which stays between nothing and all.
"power": the share wrong is A tokens^-b, the usual law of losses. Near the upper end they agree, between the points
hardly anything tells them apart, and farther out they say different things: what they say together is what is known.

Ranges are 95 % of draws. A score is drawn from the Beta distribution with the mean and, nearly, the width of its
bootstrap interval; an interval of no width (nothing wrong) counts its documents. To that comes the spread of seeds
where a size has several, which counts the noise of single answers twice, and both are widened by sqrt(chi2 / freedom)
where the sizes' means lie farther from the line than that. A range may be too wide, not too narrow, *if the law holds*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

DRAWS = 2000
_LAWS = {  # law: (share -> what is linear in log(tokens), the way back)
    "logit": (lambda p: np.log(p / (1 - p)), lambda y: 1 / (1 + np.exp(-y))),
    "power": (lambda p: -np.log(1 - p), lambda y: np.clip(1 - np.exp(-y), 0, 1)),
}
LAWS = tuple(_LAWS)


@dataclasses.dataclass(frozen=True)
class Share:
    """A measured share of what can be reached, in [0, 1]; error: its standard error; documents: judged."""

    tokens: float
    value: float
    error: float
    documents: int

    @property
    def trials(self) -> float:
        """Independent trials that would be known as well."""
        variance = self.value * (1 - self.value)
        return variance / self.error**2 if self.error > 0 and variance > 0 else float(self.documents)

    @property
    def smoothed(self) -> float:
        """The share with half a trial added to both sides: neither 0 nor 1."""
        return (self.value * self.trials + 0.5) / (self.trials + 1)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Shares [count] that it may be."""
        right = self.value * self.trials
        return np.clip(rng.beta(right + 0.5, self.trials - right + 0.5, count), 1e-9, 1 - 1e-9)


@dataclasses.dataclass(frozen=True)
class ScoreFit:
    """law(share) = level + slope * log(tokens / largest); draws of both [DRAWS].

    Attributes:
      law: of LAWS.
      misfit: sqrt(chi2 / freedom) of the sizes' means about the line; None for two sizes, which cannot tell.
      seed_spread: standard deviation of law(share) between runs of one size; None where no size has two.
    """

    law: str
    largest: float
    level: float
    slope: float
    levels: np.ndarray
    slopes: np.ndarray
    misfit: float | None
    seed_spread: float | None

    def share(self, tokens: np.ndarray) -> np.ndarray:
        """[..., 3]: the law's share at `tokens`, and its 95 % range."""
        x = np.log(np.asarray(tokens) / self.largest)[..., None]
        drawn = np.quantile(self.levels + x * self.slopes, (0.025, 0.975), axis=-1)
        lines = np.concatenate([self.level + x * self.slope, np.moveaxis(drawn, 0, -1)], axis=-1)
        return _LAWS[self.law][1](lines)

    def reach(self, share: float, within: float) -> tuple[float, float, float]:
        """Tokens at which the law comes to `share` and the 95 % range; inf: not within `within` times the largest."""
        target = float(_LAWS[self.law][0](share))
        point = _crossings(np.array([self.level]), np.array([self.slope]), target, within)[0]
        drawn = np.sort(_crossings(self.levels, self.slopes, target, within))
        low, high = drawn[int(0.025 * len(drawn))], drawn[int(np.ceil(0.975 * len(drawn))) - 1]
        return tuple(float(self.largest * np.exp(x)) for x in (point, low, high))


def _crossings(levels: np.ndarray, slopes: np.ndarray, target: float, within: float) -> np.ndarray:
    """log(tokens / largest) of each line's arrival; inf where it never comes or too late."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(slopes > 0, (target - levels) / slopes, np.where(levels >= target, 0.0, np.inf))
    return np.where(x > np.log(within), np.inf, np.maximum(x, -np.log(1e6)))


def fit_scores(shares: Sequence[Share], law: str = "logit", seed: int = 0) -> ScoreFit:
    """The law's line, weighted by what is known of each share. ValueError for fewer than two sizes."""
    tokens = np.array([s.tokens for s in shares], float)
    if len(set(tokens)) < 2:
        raise ValueError("a law needs two sizes")
    rng = np.random.default_rng(seed)
    straight = _LAWS[law][0]
    largest, values = tokens.max(), straight(np.array([s.smoothed for s in shares]))
    x = np.log(tokens / largest)
    spread = seed_spread(tokens, values)
    drawn = straight(np.stack([s.draw(rng, DRAWS) for s in shares], axis=1))
    drawn += (spread or 0.0) * rng.standard_normal(drawn.shape)
    errors = drawn.std(0)
    level, slope = _line(x, values[None], errors)
    misfit = _misfit(tokens, values - (level + slope * x), errors)
    drawn = values + max(misfit or 1.0, 1.0) * (drawn - values)
    levels, slopes = _line(x, drawn, errors)
    return ScoreFit(law, float(largest), float(level[0]), float(slope[0]), levels, slopes, misfit, spread)


def _line(x: np.ndarray, y: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels and slopes [draws] of weighted least squares; x, errors [points], y [draws, points]."""
    weight = errors**-2 / np.sum(errors**-2)
    middle = np.sum(weight * x)
    slope = (y * weight * (x - middle)).sum(1) / np.sum(weight * (x - middle) ** 2)
    return (y * weight).sum(1) - slope * middle, slope


def _misfit(tokens: np.ndarray, residuals: np.ndarray, errors: np.ndarray) -> float | None:
    """sqrt(chi2 / freedom) of the sizes' weighted means."""
    sizes = np.unique(tokens)
    if len(sizes) < 3:
        return None
    weights = [errors[tokens == size] ** -2 for size in sizes]
    means = [np.sum(w * residuals[tokens == size]) / np.sum(w) for w, size in zip(weights, sizes, strict=True)]
    chi2 = sum(m**2 * np.sum(w) for m, w in zip(means, weights, strict=True))
    return float(np.sqrt(chi2 / (len(sizes) - 2)))


def seed_spread(tokens: np.ndarray, values: np.ndarray) -> float | None:
    """Pooled standard deviation between runs of one size; None where no size has two runs."""
    groups = [values[tokens == size] for size in np.unique(tokens)]
    freedom = sum(len(g) - 1 for g in groups)
    return float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / freedom)) if freedom else None
