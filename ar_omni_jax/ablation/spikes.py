"""Events of an unstable training, counted in the records of its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ar_omni_jax.ablation.results import Run

WINDOW = 25  # records before one that it is measured against; the first WINDOW are not judged
SPIKE = 3.0  # gradient norms: times the median of the window
JUMP = 6.0  # losses: robust standard deviations above the median of the window
NORMAL = 1.4826  # median distance to the median, times this, is a normal distribution's standard deviation
LOSS = "weighted_nll"  # what all arms and variants have, without z-loss and perceptual loss


def events(run: Run) -> dict:
    """Of one run.

    "spikes": gradient norms of more than SPIKE times the median before them; "jumps": losses more than JUMP robust
    deviations above theirs, consecutive ones of either counted as one, and those that are no numbers among them;
    "largest": largest gradient norm after the first WINDOW records, None where one is no number; "skipped": steps whose
    loss or gradient was no number; "records": how many were judged; "rebound": how far the last held-out loss lies
    above the lowest, in percent, None where it is no number or there is none.
    """
    norms, losses = (_without_gaps(run.train, key) for key in ("grad_norm", LOSS))
    held_out, last = values(run.validation, LOSS), last_held_out(run, LOSS)
    return {
        "spikes": _episodes(bool(x > SPIKE * np.median(before)) for x, before in _judged(norms)),
        "jumps": _episodes(_jumps(x, before) for x, before in _judged(losses)),
        "largest": largest if np.isfinite(largest := float(norms[WINDOW:].max(initial=0.0))) else None,
        "skipped": int(sum(record.get("skipped") or 0 for record in run.train)),
        "records": max(len(run.train) - WINDOW, 0),
        "rebound": None if last is None else float(100 * (last / held_out.min() - 1)),
    }


def stability(runs: list[Run]) -> dict:
    """`events` of all seeds: counts added up, the largest norm and rebound of all."""
    found = [events(run) for run in runs]
    sums = {name: sum(one[name] for one in found) for name in ("spikes", "jumps", "skipped", "records")}
    rebounds = [one["rebound"] for one in found if one["rebound"] is not None]
    norms = [one["largest"] for one in found]
    return sums | {"largest": None if None in norms else max(norms), "rebound": max(rebounds, default=None)}


def values(records: list[dict], key: str) -> np.ndarray:
    """Of the records that have the key with a number."""
    return np.array([r[key] for r in records if r.get(key) is not None], float)


def _without_gaps(records: list[dict], key: str) -> np.ndarray:
    """`values`, with infinity where steps were skipped and none is left to tell a number of."""
    told = ((r.get(key), r.get("skipped")) for r in records)
    return np.array(
        [np.inf if value is None else value for value, skipped in told if skipped or value is not None], float
    )


def last_held_out(run: Run, key: str) -> float | None:
    """The last validation's value; None when it is no number, or there was no validation."""
    return run.validation[-1].get(key) if run.validation else None


def _judged(series: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    return ((series[place], series[place - WINDOW : place]) for place in range(WINDOW, len(series)))


def _episodes(marks: Iterable[bool]) -> int:
    """Unbroken rows of marked records: a loss that jumps to another level and stays there has jumped once."""
    marks = [False, *marks]
    return sum(now and not before for before, now in zip(marks, marks[1:], strict=False))


def _jumps(value: float, before: np.ndarray) -> bool:
    median = np.median(before)
    with np.errstate(invalid="ignore"):  # infinity less infinity, after which nothing is above it
        deviation = NORMAL * np.median(np.abs(before - median))
    return bool(value > median + JUMP * max(deviation, 0.01 * abs(median)))  # a plateau's own spread may be rounding
