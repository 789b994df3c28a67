"""The stability probe's numbers: every arm, and its differences from the plain arm at the same rates and seeds."""

from __future__ import annotations

import numpy as np

from ar_omni_jax.ablation.arms import ARMS
from ar_omni_jax.ablation.intervals import decided, over_seeds
from ar_omni_jax.ablation.results import Run
from ar_omni_jax.ablation.spikes import LOSS, events, last_held_out
from ar_omni_jax.ablation.summary import MODALITIES, same_seeds

BETTER, WORSE, UNDECIDED = "better", "worse", "not decided"
COUNTED = " a run"
# What is compared, less being better: (words for people, what they are counted in).
COMPARED = {
    "held_out": ("held-out loss at the end", ", nats a token"),
    "largest": ("largest gradient norm", ", times that of plain"),
    "spikes": ("gradient spikes", COUNTED),
    "jumps": ("loss jumps", COUNTED),
    "skipped": ("skipped steps", COUNTED),
}


def summarize(runs: dict[str, list[Run]]) -> dict[str, dict]:
    """Arm at a rate -> everything that the page says of it, as plain JSON."""
    return {name: _summary(name, rows, runs) for name, rows in runs.items()}


def _summary(name: str, runs: list[Run], every: dict[str, list[Run]]) -> dict:
    arm = ARMS[name]
    numbers = [_numbers(run) for run in runs]
    ended = [one["held_out"] for one in numbers if one["held_out"] is not None]
    found = {
        "group": arm.group,
        "rate": arm.rate,
        "words": arm.words,
        "runs": numbers,
        "held_out": over_seeds(ended) if ended else None,
        "without_number": len(numbers) - len(ended),
        "against_plain": {},
    }
    ours, plain = same_seeds(runs, every.get(f"plain_x{arm.rate}", []))
    if arm.group != "plain" and ours:
        found["against_plain"] = _compare([_numbers(run) for run in ours], [_numbers(run) for run in plain])
    return found


def said(against_plain: dict[str, dict]) -> dict[str, list[str]]:
    """What is better, worse and not decided, in words."""
    return {
        says: [words for name, (words, _) in COMPARED.items() if against_plain.get(name, {}).get("says") == says]
        for says in (BETTER, WORSE, UNDECIDED)
    }


def _numbers(run: Run) -> dict:
    """Of one run: its events, and the last held-out losses in nats a token, None where they are no numbers."""
    losses = {name: last_held_out(run, f"nll/{name}") for name in MODALITIES}
    return {"seed": run.seed} | events(run) | {"held_out": last_held_out(run, LOSS), "by_modality": losses}


def _compare(ours: list[dict], plain: list[dict]) -> dict[str, dict]:
    """Measure -> `over_seeds` of the difference (of the factor for "largest"), and what it says.

    Where a run ended without a number there is no difference to average: {"lost": [ours, plain], "says"} counts such
    runs, and is decided when all of one arm, two or more, and none of the other are lost.
    """
    found = {}
    for name in COMPARED:
        pairs = [(a[name], b[name]) for a, b in zip(ours, plain, strict=True)]
        lost = [sum(x is None for x in side) for side in zip(*pairs, strict=True)]
        if any(lost):
            clear = len(pairs) > 1 and sorted(lost) == [0, len(pairs)]
            found[name] = {"lost": lost, "says": UNDECIDED if not clear else BETTER if lost[1] else WORSE}
        elif name != "largest":
            found[name] = _difference(pairs, COMPARED[name][1] == COUNTED)
        elif all(a > 0 < b for a, b in pairs):  # a run shorter than the window has none
            one = _difference([(float(np.log(a)), float(np.log(b))) for a, b in pairs])
            found[name] = one | {key: np.exp(one[key]).tolist() for key in ("mean", "low", "high", "seeds")}
    return found


def _difference(pairs: list[tuple[float, float]], counts: bool = False) -> dict:
    """counts: of rare events, which vary by chance (Poisson) also where every seed happens to have as many."""
    chance = np.sqrt(sum(a + b for a, b in pairs)) / len(pairs) if counts else 0.0
    one = over_seeds([float(a - b) for a, b in pairs], float(chance))
    return one | {"says": UNDECIDED if not decided(one) else BETTER if one["mean"] < 0 else WORSE}
