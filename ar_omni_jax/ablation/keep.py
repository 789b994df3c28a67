"""A study's results without its checkpoints: small enough for a repository, and enough to write the page again from
or to go on with elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ar_omni_jax.ablation.examples import ANSWERS, PICTURES
from ar_omni_jax.ablation.page import joined
from ar_omni_jax.ablation.runner import (
    CONFIG_FILE,
    JUDGED,
    PLAN_FILE,
    TRAINED,
    AblationError,
    finished_runs,
    read_plan,
    workdir,
)
from ar_omni_jax.ablation.study import Study
from ar_omni_jax.evaluation.report import ReportError, made_files, read_metrics
from ar_omni_jax.files import only_writer, replace_file

METRICS = "metrics.jsonl"
PATHS = (("data", "path"), ("data", "prepare"))  # in config.json
HERE_ONLY = ("checkpoint", "data")  # paths in evaluation.json, which say nothing elsewhere
SAMPLES = {"t2i": PICTURES, "tts": ANSWERS}
# Of the records of a study that judges nothing, which has one of every step: all but the speeds and the tasks.
THINNED = re.compile("step|kind|loss|weighted_nll|z_loss|grad_norm|skipped|learning_rate|nll/.*")


def keep(output: Path, study: Study, target: Path) -> int:
    """Copies what the page stands on from OUTPUT to `target`; returns the number of runs.

    Of every finished run: config.json without its paths, metrics.jsonl, evaluation.json without its paths, and the
    answers that the page shows; where nothing is judged, the losses and gradient norms of metrics.jsonl.
    `target` is then an OUTPUT itself: `--page_only` writes its page, and without it the study goes on there.
    Runs that `target` has besides stay, and so do the machines that they were made on. Raises AblationError when
    nothing is finished, or runs of another plan stand in `target` (their pages would mix), or another run of the same
    name does.
    """
    runs = finished_runs(output, study)
    if not runs:
        raise AblationError(f"{output}: no finished run to keep; python -m {study.module} makes them")
    plan = read_plan(output)
    if (target / PLAN_FILE).is_file() and read_plan(target) != plan:
        raise AblationError(f"{target / PLAN_FILE}: runs of another kind stand there; give another --keep")
    target.mkdir(parents=True, exist_ok=True)
    with only_writer(target):
        for run in set(finished_runs(target, study)) & set(runs):
            if not _same_training(workdir(output, *run), workdir(target, *run)):
                raise AblationError(
                    f"{workdir(target, *run)}: another run of this name stands there; give another --keep"
                )
        shutil.copyfile(output / PLAN_FILE, target / PLAN_FILE)
        _keep_record(output / f"{study.name}.json", target / f"{study.name}.json")
        for run in runs:
            folders = workdir(output, *run), workdir(target, *run)
            folders[1].mkdir(parents=True, exist_ok=True)
            _keep_config(*folders)
            (_keep_judged if study.judged else _keep_trained)(*folders)
    return len(runs)


def _keep_config(folder: Path, target: Path) -> None:
    """Older runs may have none."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text())
        for section, key in PATHS:
            config.get(section, {}).pop(key, None)
    except (ValueError, AttributeError) as error:
        raise AblationError(f"{file} is damaged ({error}); remove {folder}, and the study makes it again") from error
    replace_file(target / CONFIG_FILE, (json.dumps(config, indent=1) + "\n").encode())


def _same_training(folder: Path, target: Path) -> bool:
    ours, theirs = ([rows[-1] for rows in _read(one) if rows] for one in (folder, target))
    return [_thinned(one) for one in ours] == [_thinned(one) for one in theirs]


def _keep_record(ours: Path, theirs: Path) -> None:
    """The page's record, which tells on which machines the runs were made, with those that `theirs` has besides."""
    if not ours.is_file():
        return
    try:
        record, known = (json.loads(file.read_text()) if file.is_file() else {} for file in (ours, theirs))
        if "machines" not in record:  # as the first pages had it
            shutil.copyfile(ours, theirs)
            return
        record["machines"] = joined(known.get("machines", []), record["machines"])
        record["runs"] = {  # those besides are no new ones to the next page
            name: sorted({*record.get("runs", {}).get(name, []), *known.get("runs", {}).get(name, [])})
            for name in record.get("runs", {}) | known.get("runs", {})
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise AblationError(f"{ours} or {theirs} is damaged ({error}); --page_only writes it again") from error
    replace_file(theirs, (json.dumps(record, indent=1) + "\n").encode())


def _read(folder: Path) -> tuple[list[dict], list[dict]]:
    try:
        return read_metrics(folder / METRICS)
    except (ReportError, AttributeError) as error:
        file = folder / METRICS
        raise AblationError(f"{file} is damaged ({error}); remove {folder}, and the study makes it again") from error


def _thinned(record: dict) -> dict:
    return {key: value for key, value in record.items() if THINNED.fullmatch(key)}


def _keep_trained(folder: Path, target: Path) -> None:
    """The mark of a finished run comes last."""
    records = [_thinned(record) for part in _read(folder) for record in part]
    replace_file(target / METRICS, "".join(json.dumps(one) + "\n" for one in records).encode())
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
