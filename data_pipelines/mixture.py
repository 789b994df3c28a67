"""The order of examples: which row of which group stands at each place of the global stream.

The stream is a pure function of (seed, place), whatever the number of hosts and workers. Groups are interleaved
by integer arithmetic on their weights, and each is shuffled anew every epoch. Nothing here reads a record.

Grain's MapDataset.mix and .shuffle have the same property, one index at a time; for small groups they reach
2,000 rows/s (see `permutation`), and their stop rule is only the first of the three below.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np

from ar_omni_jax.documents import GROUPS
from data_pipelines.permutation import Permutation

STOPS = ("first_exhausted", "all_exhausted", "repeat")
DEFAULT_MIXTURE = {"text": 0.5, "image": 1.0, "speech": 2.0}  # paper: sampled until any one subset is exhausted
ENDLESS = 1 << 42  # places of a stream that repeats; times MAX_WEIGHT it stays within int64
MAX_WEIGHT = 1 << 20


class MixtureError(ValueError):
    """Weights or groups that cannot be mixed; the message says which and what to do."""


def active_groups(sizes: Mapping[str, int], mixture: Mapping[str, float], where: str = "") -> tuple[str, ...]:
    """Groups of non-zero weight in fixed order; MixtureError when one has no rows or no weight is above zero.

    Args:
      sizes: rows by group.
      mixture: weight by group; a group that is left out has weight 0.
    """
    unknown = sorted(set(mixture) - set(GROUPS))
    if unknown:
        raise MixtureError(f"mixture names unknown groups {unknown}; known groups: {', '.join(GROUPS)}")
    bad = {g: w for g, w in mixture.items() if not (math.isfinite(w) and w >= 0)}
    if bad:
        raise MixtureError(f"mixture weights must be finite and not negative, got {bad}")
    active = tuple(g for g in GROUPS if mixture.get(g, 0) > 0)
    if not active:
        raise MixtureError(f"mixture {dict(mixture)} has no weight above zero")
    missing = [g for g in active if not sizes.get(g, 0)]
    if missing:
        present = {g: n for g, n in sizes.items() if n}
        raise MixtureError(
            f"{where + ': ' if where else ''}no rows of group {', '.join(missing)} although the mixture "
            "gives it "
            f"weight {', '.join(str(mixture[g]) for g in missing)}; rows by group: {present}; add such "
            "data, or set "
            f"its weight to 0 (--config.data.mixture.{missing[0]}=0)"
        )
    return active


def integer_weights(weights: list[float]) -> list[int]:
    """Integers in the ratio of `weights`, exact when their sum fits MAX_WEIGHT (0.5, 1, 2 -> 1, 2, 4)."""
    fractions = [Fraction(str(w)) for w in weights]
    scale = math.lcm(*(f.denominator for f in fractions))
    integers = [int(f * scale) for f in fractions]
    integers = [i // math.gcd(*integers) for i in integers]
    if sum(integers) > MAX_WEIGHT:
        integers = [max(1, int(f / sum(fractions) * (MAX_WEIGHT - len(weights)))) for f in fractions]
    return integers


@dataclasses.dataclass(frozen=True)
class MixedOrder:
    """The stream of training: `sizes` rows and integer `weights` of `groups` (indices of GROUPS), shuffled by `seed`.

    `length` places; `__call__(places)` -> (group int64, row int64), both of the shape of `places`.
    """

    groups: tuple[int, ...]
    sizes: tuple[int, ...]
    weights: tuple[int, ...]
    seed: int
    length: int

    def drawn(self, places) -> np.ndarray:
        """int64 [groups, ...]: rows of each group among the first `places` places.

        The first group takes ceil(places * w / W) of them, the next its part of the rest, and so on: every
        count is within one a group of its exact share, and no count ever goes down.
        """
        rest, weight = np.asarray(places, np.int64), sum(self.weights)
        counts = []
        for w in self.weights:
            left = rest * (weight - w) // weight
            counts.append(rest - left)
            rest, weight = left, weight - w
        return np.stack(counts)

    def __call__(self, places) -> tuple[np.ndarray, np.ndarray]:
        places = np.asarray(places, np.int64)
        before = self.drawn(places)
        which = np.argmax(self.drawn(places + 1) - before, axis=0)
        draws = np.take_along_axis(before, which[None], 0)[0]
        rows = np.empty_like(draws)
        for i, (group, size) in enumerate(zip(self.groups, self.sizes, strict=True)):
            epochs, within = np.divmod(draws, size)
            for epoch in np.unique(epochs[which == i]).tolist():
                here = (which == i) & (epochs == epoch)
                rows[here] = Permutation(size, self.seed, group, epoch)(within[here])
        return np.asarray(self.groups)[which], rows


def training_order(
    sizes: Mapping[str, int], mixture: Mapping[str, float], seed: int, stop: str, where: str = ""
) -> MixedOrder:
    """The stream that ends by the rule `stop`.

    "first_exhausted": before any row would come a second time, so that one group has been drawn once through.
    "all_exhausted": when every row of every group has come; the others begin anew meanwhile. "repeat": never.
    """
    if stop not in STOPS:
        raise MixtureError(f"stop {stop!r} is not one of {', '.join(STOPS)}")
    names = active_groups(sizes, mixture, where)
    rows = np.array([sizes[g] for g in names])
    weights = integer_weights([float(mixture[g]) for g in names])
    order = MixedOrder(tuple(map(GROUPS.index, names)), tuple(rows.tolist()), tuple(weights), seed, ENDLESS)
    if stop == "first_exhausted":
        length = _first(lambda k: bool((order.drawn(k) > rows).any())) - 1
    elif stop == "all_exhausted":
        length = _first(lambda k: bool((order.drawn(k) >= rows).all()))
    else:
        length = ENDLESS
    return dataclasses.replace(order, length=length)


def _first(condition: Callable[[int], bool]) -> int:
    """The least number of places for which a monotone condition holds."""
    low, high = 0, ENDLESS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(middle) else (middle + 1, high)
    return low


class OnePassOrder:
    """Every row of every group once, groups evenly interleaved: a part of the pass has the mixture of the whole."""

    def __init__(self, sizes: Mapping[str, int]):
        rows = [np.arange(sizes.get(g, 0)) for g in GROUPS]
        groups = np.repeat(np.arange(len(GROUPS)), [len(r) for r in rows])
        share = np.concatenate([(r + 0.5) / max(len(r), 1) for r in rows])
        order = np.argsort(share, kind="stable")
        self._groups, self._rows = groups[order], np.concatenate(rows)[order]
        self.length = len(order)

    def __call__(self, places) -> tuple[np.ndarray, np.ndarray]:
        return self._groups[places], self._rows[places]
