"""One run of `evaluate`: documents, systems and measures from the command's options, and what is written of them."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flax import nnx

from ar_omni_jax.checkpoint import checksums, named_leaves
from ar_omni_jax.decoding.flags import STRATEGY_FLAGS, guidance_of, strategies_of
from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation import manifest
from ar_omni_jax.evaluation.measures.selection import select
from ar_omni_jax.evaluation.results import TaskResult, details, table
from ar_omni_jax.evaluation.scoring import Scoring
from ar_omni_jax.evaluation.systems import (
    CHANCE,
    NAMES,
    TRAINED,
    UNTRAINED,
    KnownSystem,
    MakingSystem,
    ceiling_system,
    chance_system,
    model_system,
    truth_system,
)
from ar_omni_jax.files import only_writer, replace_file
from ar_omni_jax.predictor import Predictor


class EvaluationError(ValueError):
    """The evaluation cannot start; the message says what is missing and how to make it."""


def evaluate(options: argparse.Namespace) -> str:
    """Scores, writes everything under the output folder and returns the tables. options: of the command."""
    if not options.data.is_file():
        raise EvaluationError(
            f"--data={options.data} does not exist; make a manifest (docs/data.md), or a toy world with "
            "python -m data_pipelines.toyworld --output=DIR"
        )
    tasks = manifest.TASK_GROUPS.get(options.task, (options.task,))
    documents = manifest.load_documents(options.data, options.limit, tasks)
    names = system_names(options, documents)
    root = options.data.parent
    measures = select(
        documents,
        options.metrics,
        root,
        recognizer=options.recognizer,
        normalizer=options.normalizer,
        clip=options.clip,
        fid=options.fid,
        listen=not options.no_recognizer,
    )
    fingerprints = {task: manifest.fingerprint(documents[task], root) for task in measures}
    predictor = Predictor.load(options.checkpoint)
    predictor.root = root
    output = options.output or Path(options.checkpoint) / "evaluation"
    output.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(output):
            scoring = Scoring(documents, measures, fingerprints, output, predictor.sample_rate, options.on_change)
            return _run(predictor, scoring, names, options)
    except BlockingIOError as error:
        raise EvaluationError(f"another evaluation is writing to {output}; wait for it or give --output") from error


def system_names(options: argparse.Namespace, documents: Mapping[str, Sequence[Document]]) -> list[str]:
    """Names of the systems in the order of the table."""
    wanted = options.systems
    if wanted is None:
        toy = any(manifest.is_toy(rows) for rows in documents.values())
        wanted = [name for name in NAMES if toy or name != "untrained"]
    return [TRAINED, *(NAMES[name] for name in NAMES if name in wanted)]


def systems(
    predictor: Predictor, names: Sequence[str], options: argparse.Namespace, most: int
) -> Iterator[MakingSystem | KnownSystem]:
    """The systems by name, each made when its turn comes. most: documents of the largest task."""
    speech = predictor.tokenizers.speech
    longest = round(options.max_seconds * speech.sample_rate / speech.hop_length)
    guidance, strategies = guidance_of(options), strategies_of(options)
    budgets = {"text": options.max_text, "speech": longest}
    decoding = {name: getattr(options, name) for name in STRATEGY_FLAGS}
    rows = min(options.batch, 1 << max(most - 1, 0).bit_length())

    def model(name: str, it: Predictor) -> MakingSystem:
        it.rows, it.capacity = rows, None
        identity = {
            "checkpoint": {"step": it.step, "weights": weights_fingerprint(it)},
            "tokenizers": it.tokenizers.fingerprint,
            "template": it.template,
            "decoding": decoding | budgets,
            "seed": options.seed,
            "batch": rows,
            "on_error": options.on_error,
        }
        how = {"budgets": budgets, "strategies": strategies, "guidance": guidance}
        return model_system(
            it, name=name, batch=options.batch, seed=options.seed, on_error=options.on_error, identity=identity, how=how
        )

    for name in names:
        if name in (TRAINED, UNTRAINED):
            yield model(name, predictor if name == TRAINED else predictor.untrained())
        elif name in (CHANCE, NAMES["truth"]):
            yield (chance_system if name == CHANCE else truth_system)(predictor.root)
        else:
            yield ceiling_system(predictor.tokenizers, predictor.template, predictor.root, options.batch)


def weights_fingerprint(predictor: Predictor) -> str:
    """16 hex digits that change with any weight."""
    sums = checksums(named_leaves(nnx.state(predictor.model)))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def _run(predictor: Predictor, scoring: Scoring, names: Sequence[str], options: argparse.Namespace) -> str:
    """Scores every system and writes evaluation.json and evaluation.md."""
    results: dict[str, dict[str, TaskResult]] = {}
    seconds = {}
    most = max(len(scoring.documents[task]) for task in scoring.measures)
    for system in systems(predictor, names, options, most):
        print(f"==> {system.name}", flush=True)
        started = time.perf_counter()
        results[system.name] = scoring.score(system)
        seconds[system.name] = time.perf_counter() - started
    tasks = [task for task in scoring.documents if task in scoring.measures]
    text = "\n".join(filter(None, [table(results, tasks), details(results, tasks)]))
    record = {
        "checkpoint": str(options.checkpoint),
        "step": predictor.step,
        "data": str(options.data),
        "documents": {task: len(rows) for task, rows in scoring.documents.items()},
        "seed": options.seed,
        "decoding": {name: getattr(options, name) for name in STRATEGY_FLAGS},
        "budgets": {"max_text": options.max_text, "max_seconds": options.max_seconds},
        "batch": options.batch,
        "judges": {task: [m.describe() for m in scoring.measures[task]] for task in tasks},
        "fingerprints": dict(scoring.fingerprints),
        "seconds": seconds,
        "systems": {name: {t: r.to_dict() for t, r in rows.items()} for name, rows in results.items()},
    }
    output = scoring.output
    replace_file(output / "evaluation.md", (text + "\n").encode())
    replace_file(output / "evaluation.json", (json.dumps(record, indent=1) + "\n").encode())
    return f"\n{text}\n\nWritten: {output}/evaluation.json, evaluation.md and the answers by task"
