"""The stability probe's numbers: every arm, and its differences from the plain arm at the same rates and seeds."""

from __future__ import annotations

import numpy as np

from ar_omni_jax.ablation.arms import ARMS
from ar_omni_jax.ablation.intervals import decided, over_seeds
from ar_omni_jax.ablation.results import Run
from ar_omni_jax.ablation.spikes import LOSS, events, last_held_out
from ar_omni_jax.ablation.summary import MODALITIES, same_seeds

BETTER, WORSE, UNDECIDED = "better", "worse", "not decided"
# What is compared, less being better: (words for people, what they are counted in).
COMPARED = {
    "held_out": ("held-out loss at the end", ", nats a token"),
    "largest": ("largest gradient norm", ", times that of plain"),
    "spikes": ("gradient spikes", " a run"),
    "jumps": ("loss jumps", " a run"),
    "skipped": ("skipped steps", " a run"),
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
    """Measure -> `over_seeds` of the difference (of the factor for "largest"), and what it says."""
    found = {}
    for name in COMPARED:
        pairs = [(a[name], b[name]) for a, b in zip(ours, plain, strict=True)]
        factor = name == "largest"
        pairs = [(a, b) for a, b in pairs if a is not None and b is not None and (a > 0 < b or not factor)]
        if not pairs:
            continue
        one = over_seeds([float(np.log(a / b)) if factor else float(a - b) for a, b in pairs])
        says = UNDECIDED if not decided(one) else BETTER if one["mean"] < 0 else WORSE
        if factor:
            one = {key: np.exp(value).tolist() for key, value in one.items()}
        found[name] = one | {"says": says}
    return found
