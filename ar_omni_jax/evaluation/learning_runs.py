"""Finished runs as points of a learning curve: tokens trained on, held-out loss and scores, each at the run's end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.config import base_config, flatten
from ar_omni_jax.evaluation.report import COLORS, ReportError, read_json, read_metrics
from ar_omni_jax.evaluation.results import TaskResult
from ar_omni_jax.evaluation.systems import NAMES, TRAINED

METRICS = {"caption": "attributes", "t2i": "attributes", "asr": "wer", "tts": "wer"}  # a task's figure on the curve
# How `differences` begins where runs were judged otherwise and make no curve, and the attribute that it is about.
JUDGED = {"decoding": "decoding", "budget": "budgets", "judge of": "judges", "documents of": "documents"}
# Settings that two points of one curve may differ in: how long, which seed, on which devices, in which order of work.
_FREE = ("train.", "mesh.", "seed", "data.prepare", "model.attention", "model.remat", "model.scan_layers")


class LearningCurveError(ValueError):
    """The runs make no learning curve; the message says which, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class CurveRun:
    """One run that came to the end of its learning rate schedule.

    Attributes:
      name: the end of `folder` that tells it from the other runs.
      tokens: places of all rows of all steps, padding included: steps x batch_size x length.
      tokens_per_second: median over the log lines, padding not counted; None where none tells.
      nll: held-out nats a token by modality, at the last step.
      scores: of the trained model by task. ceiling: of the tokenizers by task, where it was judged.
      settings: flat config. decoding: how answers were made. documents: by task, what changes with any of them.
      budgets: how long answers may be; empty for an evaluation of before they were written down.
      judges: by task, what made the figure of METRICS: measure, normalizer, recognizer.
    """

    name: str
    folder: Path
    steps: int
    tokens: int
    tokens_per_second: float | None
    nll: dict[str, float]
    scores: dict[str, TaskResult]
    ceiling: dict[str, TaskResult]
    settings: dict[str, object]
    decoding: dict[str, object]
    documents: dict[str, str]
    budgets: dict[str, object]
    judges: dict[str, dict]


def read_runs(folders: Sequence[Path], evaluation: str = "evaluation") -> list[CurveRun]:
    """Runs by size, then name. evaluation: the folder in each run that holds evaluation.json.

    Raises LearningCurveError with everything that is wrong, and for fewer than two sizes.
    """
    folders = [Path(folder) for folder in folders]
    names = short_names(folders)
    runs, wrong = [], []
    for folder, name in zip(folders, names, strict=True):
        try:
            runs.append(read_run(folder, name, evaluation))
        except (ReportError, LearningCurveError) as error:
            wrong.append(str(error))
    places = [folder.resolve() for folder in folders]
    wrong += [f"{folder} was given twice" for i, folder in enumerate(folders) if places[i] in places[:i]]
    if wrong:
        raise LearningCurveError("\n".join(wrong))
    sizes = sorted({run.tokens for run in runs})
    if len(sizes) < 2:
        told = f"all of {sizes[0]:,} tokens" if sizes else "none"
        raise LearningCurveError(
            f"a curve needs runs of two sizes or more, and there are {len(runs)}, {told}: "
            "train one with other --config.train.steps"
        )
    return sorted(runs, key=lambda run: (run.tokens, run.name))


def short_names(folders: Sequence[Path]) -> list[str]:
    """As many of each path's last parts as tell all paths apart."""
    parts = [folder.resolve().parts for folder in folders]
    most = max(map(len, parts), default=1)
    for count in range(1, most + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def read_run(folder: Path, name: str, evaluation: str) -> CurveRun:
    """One run: the training in `folder` or `folder`/train. LearningCurveError, ReportError when it cannot be used."""
    training = next((p for p in (folder, folder / "train") if (p / "metrics.jsonl").is_file()), None)
    if training is None:
        raise LearningCurveError(f"{folder} is no run: neither it nor {folder / 'train'} has a metrics.jsonl")
    settings = flatten(base_config().to_dict()) | flatten(read_json(training / "config.json", "the training again"))
    train, validation = read_metrics(training / "metrics.jsonl")
    steps = settings["train.steps"]
    nll = _held_out(training, train, validation, steps)
    if settings["train.init_from"]:
        raise LearningCurveError(f"{folder} began with the weights of another run: its tokens are not all it has seen")
    record, path = _evaluation(folder, training, evaluation)
    if record.get("step") != steps:
        raise LearningCurveError(f"{path} is of step {record.get('step')} and the run ended at {steps}: evaluate again")
    try:
        systems = {n: {t: TaskResult(**r) for t, r in rows.items()} for n, rows in record["systems"].items()}
        scores, budgets, judges = systems[TRAINED], dict(record.get("budgets", {})), _judges(record.get("judges", {}))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LearningCurveError(f"{path} is damaged ({error!r}): evaluate again") from error
    rates = [r["tokens_per_second/all"] for r in train if r.get("tokens_per_second/all")]
    return CurveRun(
        name=name,
        folder=folder,
        steps=steps,
        tokens=steps * settings["data.batch_size"] * settings["data.length"],
        tokens_per_second=statistics.median(rates) if rates else None,
        nll=nll,
        scores=_of_the_curve(scores),
        ceiling=_of_the_curve(systems.get(NAMES["ceiling"], {})),
        settings=settings,
        decoding=record.get("decoding", {}) | {"seed": record.get("seed")},
        documents={task: _digest(result) for task, result in scores.items()},
        budgets=budgets,
        judges={task: judge for task, judge in judges.items() if task in scores},
    )


def _held_out(training: Path, train: list[dict], validation: list[dict], steps: int) -> dict[str, float]:
    """Nats a token by modality at the last step, which must be the schedule's last."""
    last = max((record["step"] for record in train + validation), default=0)
    if last < steps:
        raise LearningCurveError(
            f"{training} stands at step {last} of {steps}, and the middle of a learning rate schedule is no point of "
            "the curve: give the training's command again, it goes on"
        )
    ends = [record for record in validation if record["step"] == steps]
    if not ends:
        raise LearningCurveError(f"{training}: no held-out loss at step {steps}; train with --config.train.eval_every")
    return {m: ends[-1][f"nll/{m}"] for m in COLORS if ends[-1].get(f"nll/{m}") is not None}


def _evaluation(folder: Path, training: Path, evaluation: str) -> tuple[dict, Path]:
    places = dict.fromkeys([folder / evaluation, training / evaluation])
    path = next((p / "evaluation.json" for p in places if (p / "evaluation.json").is_file()), None)
    command = f"python -m ar_omni_jax.evaluate --checkpoint={training} --data=… --output={folder / evaluation}"
    return read_json(path or folder / evaluation / "evaluation.json", command), path


def _of_the_curve(results: dict[str, TaskResult]) -> dict[str, TaskResult]:
    """Without tasks that were judged by another metric than the toy world's. Old files do not name it."""
    return {t: r for t, r in results.items() if r.metric in ("", METRICS.get(t)) and r.unit == "%" and r.examples}


def _judges(told: dict[str, list[dict]]) -> dict[str, dict]:
    """Of each task that one of METRICS: what else was measured (CIDEr, say) changes no point of the curve."""
    return {t: m for t, measures in told.items() for m in measures if m["measure"] == METRICS.get(t)}


def _digest(result: TaskResult) -> str:
    told = json.dumps([[e.get("id"), e.get("truth")] for e in result.examples])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def differences(runs: Sequence[CurveRun]) -> list[str]:
    """What the runs do not have in common besides their length and seed, a sentence each: it bends the curve too.

    Those that begin with one of JUDGED make the runs no curve. What a run was not judged on is no difference, nor is a
    budget that an older evaluation does not tell; where only some tell theirs, a sentence names the others.
    """
    out = []
    for title, of in {"setting": "settings", **JUDGED}.items():
        for key in sorted({key for run in runs for key in getattr(run, of)}):
            if of == "settings" and key.startswith(_FREE):
                continue
            groups: dict[str, list[str]] = {}
            for run in runs:
                if key in getattr(run, of) or of == "decoding":
                    groups.setdefault(json.dumps(getattr(run, of).get(key)), []).append(run.name)
            if len(groups) > 1:
                values = [f"{value} ({', '.join(names)})" for value, names in groups.items()]
                out.append(f"{title} {key} differs: " + "; ".join(values))
    silent = [run.name for run in runs if not run.budgets]
    if 0 < len(silent) < len(runs):
        out.append(f"--max_text and --max_seconds are not told by the older evaluation of {', '.join(silent)}")
    return out
