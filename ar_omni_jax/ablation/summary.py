"""The ablation's numbers: scores with intervals, differences from the full method, held-out losses, stability."""

from __future__ import annotations

from ar_omni_jax.ablation.intervals import over_seeds, score
from ar_omni_jax.ablation.results import Run
from ar_omni_jax.ablation.spikes import last_held_out, stability
from ar_omni_jax.ablation.variants import VARIANTS

TASKS = ("caption", "t2i", "asr", "tts")
MODALITIES = ("text", "image", "speech")
LOSSES = {name: f"nll/{name}" for name in MODALITIES} | {"perceptual": "perceptual"}  # name -> key in metrics.jsonl


def summarize(runs: dict[str, list[Run]]) -> dict[str, dict]:
    """Variant -> everything that the page says of it, as plain JSON. Scores and differences in percent."""
    base = runs.get("full", [])
    return {name: _summary(name, rows, base) for name, rows in runs.items()}


def _summary(name: str, runs: list[Run], base: list[Run]) -> dict:
    tasks = [task for task in TASKS if all(task in run.top for run in runs)]
    out = {
        "words": VARIANTS[name].words,
        "paper": VARIANTS[name].paper,
        "seeds": [run.seed for run in runs],
        "scores": {task: score(runs, task) for task in tasks},
        "differences": {},
        "loss_differences": {},
        "losses": {name: last_losses(runs, key) for name, key in LOSSES.items()},
        "stability": stability(runs),
    }
    ours, theirs = same_seeds(runs, base)
    if name != "full" and ours:
        shared = [task for task in tasks if all(task in run.top for run in theirs)]
        out["differences"] = {task: score(ours, task, theirs) for task in shared}
        out["loss_differences"] = _loss_differences(ours, theirs)
    return out


def _loss_differences(ours: list[Run], theirs: list[Run]) -> dict[str, dict]:
    """Modality -> `over_seeds` of how far the last held-out losses of one list lie above the other's, in nats a token.
    The perceptual loss is left out: at another depth it is another quantity."""
    pairs = {name: (last_losses(ours, LOSSES[name]), last_losses(theirs, LOSSES[name])) for name in MODALITIES}
    return {
        name: over_seeds([a - b for a, b in zip(*pair, strict=True)])
        for name, pair in pairs.items()
        if all(len(losses) == len(ours) for losses in pair)
    }


def same_seeds(runs: list[Run], others: list[Run]) -> tuple[list[Run], list[Run]]:
    """Both lists, of the seeds that both have."""
    common = {run.seed for run in runs} & {run.seed for run in others}
    return tuple([run for run in rows if run.seed in common] for rows in (runs, others))


def last_losses(runs: list[Run], key: str) -> list[float]:
    """The last held-out value of every seed that has one."""
    found = (last_held_out(run, key) for run in runs)
    return [value for value in found if value is not None]
