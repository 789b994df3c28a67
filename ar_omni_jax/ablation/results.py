"""What finished runs left behind: metrics of the training and, where they were judged, counts for every document."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from ar_omni_jax.ablation.runner import JUDGED, AblationError, finished_runs, has_yardsticks, workdir
from ar_omni_jax.ablation.study import Study
from ar_omni_jax.evaluation.report import ReportError, read_json, read_metrics
from ar_omni_jax.evaluation.systems import TRAINED


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
    last = max(_end(run) for runs in found.values() for run in runs)
    for variant, run in ((variant, run) for variant, runs in found.items() for run in runs):
        if _end(run) < last:
            folder = workdir(output, variant, run.seed)
            raise AblationError(
                f"{folder / 'metrics.jsonl'} ends at step {_end(run)}, others of these runs at {last}: its last lines "
                f"are lost. Remove {folder} and run python -m {study.module} again"
            )
    return found


def read_yardsticks(output: Path, study: Study) -> dict[str, dict[str, dict[str, float]]]:
    """What the scores are measured by, from the first finished run that has it: system -> task -> score, low, high.
    Empty where no run does. AblationError for a damaged one."""
    for run in finished_runs(output, study):
        file = workdir(output, *run) / JUDGED
        if not has_yardsticks(file):
            continue
        try:
            return {
                system: {
                    task: {key: float(row[key]) for key in ("score", "low", "high")} for task, row in tasks.items()
                }
                for system, tasks in json.loads(file.read_text())["systems"].items()
                if system != TRAINED
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AblationError(f"{file} is damaged ({error}); remove it and run python -m {study.module}") from error
    return {}


def _read(folder: Path, seed: int, study: Study) -> Run:
    try:
        results = {}
        if study.judged:
            results = read_json(folder / JUDGED, f"python -m {study.module}")["systems"][TRAINED]
        train, validation = read_metrics(folder / "metrics.jsonl")
        if not train or (validation and validation[-1]["step"] != train[-1]["step"]):
            ends = " and ".join(f"{rows[-1]['step'] if rows else 'none'}" for rows in (train, validation))
            raise ValueError(f"metrics.jsonl: the last steps trained and validated are {ends}, some lines are lost")
        top, bottom = _counts(results)
    except (ReportError, KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{folder} is damaged ({error}); remove it and run python -m {study.module} again"
        raise AblationError(message) from error
    return Run(seed, top, bottom, train, validation)


def _end(run: Run) -> int:
    """The last step that was logged."""
    return run.train[-1]["step"]


def _counts(results: dict) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`top` and `bottom` of a `Run`."""
    top, bottom = {}, {}
    for task in results:
        examples = results[task]["examples"]
        names = ("edits", "words") if task in ("asr", "tts") else ("attributes", None)
        top[task], bottom[task] = (np.array([e[n] if n else 1.0 for e in examples], float) for n in names)
    return top, bottom
