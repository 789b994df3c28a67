"""What finished runs left behind: metrics of the training and, where they were judged, counts for every document."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ar_omni_jax.ablation.runner import JUDGED, AblationError, finished_runs, workdir
from ar_omni_jax.ablation.study import Study
from ar_omni_jax.evaluation.report import ReportError, read_json, read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      top, bottom: by task, float [documents]: a score is sum(top) / sum(bottom); attributes right of 1, or word
        edits of words. Empty where nothing was judged.
      train, validation: records of metrics.jsonl.
    """

    seed: int
    top: dict[str, np.ndarray]
    bottom: dict[str, np.ndarray]
    train: list[dict]
    validation: list[dict]


def read_runs(output: Path, study: Study) -> dict[str, list[Run]]:
    """Finished runs by variant, in the study's order, seeds ascending. AblationError for none or a damaged one."""
    found: dict[str, list[Run]] = {}
    for variant, seed in finished_runs(output, study):
        found.setdefault(variant, []).append(_read(workdir(output, variant, seed), seed, study))
    if not found:
        raise AblationError(f"{output}: no finished run; python -m {study.module} makes them")
    return found


def _read(folder: Path, seed: int, study: Study) -> Run:
    try:
        results = {}
        if study.judged:
            results = read_json(folder / JUDGED, f"python -m {study.module}")["systems"]["trained model"]
        train, validation = read_metrics(folder / "metrics.jsonl")
        top, bottom = _counts(results)
    except (ReportError, KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{folder} is damaged ({error}); remove it and run python -m {study.module} again"
        raise AblationError(message) from error
    return Run(seed, top, bottom, train, validation)


def _counts(results: dict) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`top` and `bottom` of a `Run`."""
    top, bottom = {}, {}
    for task in results:
        examples = results[task]["examples"]
        names = ("edits", "words") if task in ("asr", "tts") else ("attributes", None)
        top[task], bottom[task] = (np.array([e[n] if n else 1.0 for e in examples], float) for n in names)
    return top, bottom
