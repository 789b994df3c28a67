"""A study's results without its checkpoints: small enough for a repository, and enough to write the page again from
or to go on with elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ar_omni_jax.ablation.examples import ANSWERS, PICTURES
from ar_omni_jax.ablation.runner import JUDGED, PLAN_FILE, TRAINED, AblationError, finished_runs, read_plan, workdir
from ar_omni_jax.ablation.study import Study
from ar_omni_jax.evaluation.report import ReportError, made_files, read_metrics
from ar_omni_jax.files import replace_file

METRICS = "metrics.jsonl"
HERE_ONLY = ("checkpoint", "data")  # paths in evaluation.json, which say nothing elsewhere
SAMPLES = {"t2i": PICTURES, "tts": ANSWERS}
# Of the records of a study that judges nothing, which has one of every step: all but the speeds and the tasks.
THINNED = re.compile("step|kind|loss|weighted_nll|z_loss|grad_norm|skipped|learning_rate|nll/.*")


def keep(output: Path, study: Study, target: Path) -> int:
    """Copies what the page stands on from OUTPUT to `target`; returns the number of runs.

    Of every finished run: metrics.jsonl, evaluation.json without its paths, and the answers that the page shows; where
    nothing is judged, the losses and gradient norms of metrics.jsonl.
    `target` is then an OUTPUT itself: `--page_only` writes its page, and without it the study goes on there.
    Raises AblationError when nothing is finished, or runs of another plan stand in `target`: their pages would mix.
    """
    runs = finished_runs(output, study)
    if not runs:
        raise AblationError(f"{output}: no finished run to keep; python -m {study.module} makes them")
    plan = read_plan(output)
    if (target / PLAN_FILE).is_file() and read_plan(target) != plan:
        raise AblationError(f"{target / PLAN_FILE}: runs of another kind stand there; give another --keep")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(output / PLAN_FILE, target / PLAN_FILE)
    record = f"{study.name}.json"
    if (output / record).is_file():  # it tells on which machines the runs were made
        shutil.copyfile(output / record, target / record)
    for run in runs:
        (_keep_judged if study.judged else _keep_trained)(workdir(output, *run), workdir(target, *run))
    return len(runs)


def _keep_trained(folder: Path, target: Path) -> None:
    """The mark of a finished run comes last."""
    try:
        records = [record for part in read_metrics(folder / METRICS) for record in part]
        thinned = [{key: value for key, value in one.items() if THINNED.fullmatch(key)} for one in records]
    except (ReportError, AttributeError) as error:
        raise AblationError(
            f"{folder / METRICS} is damaged ({error}); remove {folder}, and the study makes it again"
        ) from error
    target.mkdir(parents=True, exist_ok=True)
    replace_file(target / METRICS, "".join(json.dumps(one) + "\n" for one in thinned).encode())
    shutil.copyfile(folder / TRAINED, target / TRAINED)


def _keep_judged(folder: Path, target: Path) -> None:
    """The mark of a finished run comes last."""
    (target / "evaluation").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / METRICS, target / METRICS)
    for task, count in SAMPLES.items():
        for number in range(count):
            record = folder / "evaluation" / task / f"{number:03d}.json"
            for file in (record, *made_files(record.parent, record.stem)):
                if file.is_file():
                    (target / "evaluation" / task).mkdir(exist_ok=True)
                    shutil.copyfile(file, target / "evaluation" / task / file.name)
    judged = folder / JUDGED
    try:
        results = {key: value for key, value in json.loads(judged.read_text()).items() if key not in HERE_ONLY}
    except (ValueError, AttributeError) as error:
        raise AblationError(f"{judged} is damaged ({error}); remove it, and the study makes it again") from error
    replace_file(target / JUDGED, (json.dumps(results) + "\n").encode())
