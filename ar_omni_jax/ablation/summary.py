"""The ablation's numbers: scores with intervals, differences from the full method, held-out losses, stability.

Two things vary between runs of one variant: the seed (initialization and order of the data), and the documents that
happen to be judged. Intervals are bootstraps of both: seeds are drawn first, then documents within each.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from ar_omni_jax.ablation.runner import AblationError, finished, workdir
from ar_omni_jax.ablation.variants import VARIANTS

TASKS = ("caption", "t2i", "asr", "tts")
MODALITIES = ("text", "image", "speech")
LOSSES = {name: f"nll/{name}" for name in MODALITIES} | {"perceptual": "perceptual"}  # name -> key in metrics.jsonl
DRAWS = 2000
SPIKE = 3.0  # times the median of the WINDOW records before
WINDOW = 25


@dataclasses.dataclass(frozen=True)
class Run:
    """One run that was trained and judged.

    Attributes:
      top, bottom: by task, float [documents]: a score is sum(top) / sum(bottom); attributes right of 1, or word
        edits of words.
      train, validation: records of metrics.jsonl.
    """

    seed: int
    top: dict[str, np.ndarray]
    bottom: dict[str, np.ndarray]
    train: list[dict]
    validation: list[dict]


def read_runs(output: Path) -> dict[str, list[Run]]:
    """Finished runs by variant, in the order of VARIANTS, seeds ascending."""
    found: dict[str, list[Run]] = {}
    for variant in VARIANTS:
        folders = (output / "runs" / variant).glob("seed-*")
        for seed in sorted(int(folder.name.removeprefix("seed-")) for folder in folders):
            if finished(output, variant, seed):
                found.setdefault(variant, []).append(_read(workdir(output, variant, seed), seed))
    if not found:
        raise AblationError(f"{output}: no finished run; python -m ar_omni_jax.ablation makes them")
    return found


def _read(folder: Path, seed: int) -> Run:
    try:
        evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise AblationError(f"{folder} is damaged ({error}); remove it and run the ablation again") from error
    results, top, bottom = evaluation["systems"]["trained model"], {}, {}
    for task in results:
        examples = results[task]["examples"]
        names = ("edits", "words") if task in ("asr", "tts") else ("attributes", None)
        top[task], bottom[task] = (np.array([e[n] if n else 1.0 for e in examples], float) for n in names)
    kinds = ([r for r in metrics if r.get("kind") == kind] for kind in ("train", "validation"))
    return Run(seed, top, bottom, *kinds)


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
        "scores": {task: interval(runs, task) for task in tasks},
        "differences": {},
        "losses": {name: _losses(runs, key) for name, key in LOSSES.items()},
        "stability": stability(runs),
    }
    common = {run.seed for run in runs} & {run.seed for run in base}
    if name != "full" and common:
        ours, theirs = ([run for run in rows if run.seed in common] for rows in (runs, base))
        shared = [task for task in tasks if all(task in run.top for run in theirs)]
        out["differences"] = {task: interval(ours, task, theirs) for task in shared}
    return out


def interval(runs: list[Run], task: str, minus: list[Run] | None = None) -> dict:
    """Mean over seeds of the score in percent, with a 95 % bootstrap interval over seeds and documents.

    Args:
      minus: runs with the same seeds on the same documents, whose score is taken away; both draw the same ones.
    """
    rng, count, documents = np.random.default_rng(0), len(runs), len(runs[0].top[task])
    seeds = rng.integers(0, count, (DRAWS, count))
    picks = rng.integers(0, documents, (DRAWS, count, documents))

    def drawn(rows):
        top, bottom = (np.stack([getattr(run, name)[task] for run in rows]) for name in ("top", "bottom"))
        whole = 100 * top.sum(1) / bottom.sum(1)
        chosen = seeds[:, :, None]
        return whole, (100 * top[chosen, picks].sum(2) / bottom[chosen, picks].sum(2)).mean(1)

    whole, means = drawn(runs)
    if minus is not None:
        if [run.seed for run in runs] != [run.seed for run in minus]:
            raise ValueError("differences are of runs with the same seeds")
        other, other_means = drawn(minus)
        whole, means = whole - other, means - other_means
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(whole.mean()), "low": float(low), "high": float(high), "seeds": [float(x) for x in whole]}


def _losses(runs: list[Run], key: str) -> list[float]:
    """The last held-out value of every seed that has one."""
    series = ([r[key] for r in run.validation if r.get(key) is not None] for run in runs)
    return [values[-1] for values in series if values]


def stability(runs: list[Run]) -> dict:
    """Over all seeds: steps skipped for values that are no numbers, spikes of the gradient norm (SPIKE times the
    median of the WINDOW records before), and its largest value after the first WINDOW records."""
    spikes, largest, skipped = 0, 0.0, 0
    for run in runs:
        norms = np.array([r["grad_norm"] for r in run.train if r.get("grad_norm") is not None])
        for place in range(WINDOW, len(norms)):
            spikes += bool(norms[place] > SPIKE * np.median(norms[place - WINDOW : place]))
        largest = max(largest, float(norms[WINDOW:].max(initial=0.0)))
        skipped += int(sum(r.get("skipped", 0) for r in run.train))
    return {"spikes": spikes, "largest": largest, "skipped": skipped}
