"""Scores systems on documents: answers made and kept, examined and kept, and added up to figures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation.answer_store import answers_of, header_of
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.manifest import has_truth, truth_text
from ar_omni_jax.evaluation.measures import Measure
from ar_omni_jax.evaluation.record_file import RecordFile
from ar_omni_jax.evaluation.results import Score, TaskResult, task_result
from ar_omni_jax.evaluation.systems import CHANCE, TRAINED, TRUTH, KnownSystem, MakingSystem

GROUP = 16  # documents examined between two writes


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Documents and measures by task, the documents' fingerprints, and the folder that everything is written to.

    sample_rate: of answers' speech, Hz. on_change: as in `RecordFile`.
    """

    documents: Mapping[str, Sequence[Document]]
    measures: Mapping[str, Sequence[Measure]]
    fingerprints: Mapping[str, str]
    output: Path
    sample_rate: int
    on_change: str = "anew"

    def score(self, system: MakingSystem | KnownSystem) -> dict[str, TaskResult]:
        """{task: result}. Systems other than the model are left out where a document has no true answer, and chance
        where there is no other document."""
        out = {}
        for task, measures in self.measures.items():
            documents = self.documents[task]
            needs_truth = isinstance(system, KnownSystem) or "checkpoint" not in system.identity
            if needs_truth and not all(map(has_truth, documents)):
                print(f"  {task}: not all documents have a true answer; left out", flush=True)
                continue
            if system.name == CHANCE and len(documents) < 2:
                print(f"  {task}: one document, and chance is the answer of another; left out", flush=True)
                continue
            result = self._task(system, task, documents, measures)
            if result is not None:
                out[task] = result
        return out

    def _task(self, system, task: str, documents: Sequence[Document], measures: Sequence[Measure]) -> TaskResult | None:
        folder = folder_of(self.output, system.name) / task
        answers = answers_of(
            system,
            task,
            documents,
            folder=folder,
            data=self.fingerprints[task],
            sample_rate=self.sample_rate,
            on_change=self.on_change,
        )
        basis = _digest(header_of(system, task, self.fingerprints[task]))
        examples = [
            {"id": d.id, "truth": truth_text(d), "answer": a.text, "problems": list(a.problems)}
            for d, a in zip(documents, answers, strict=True)
        ]
        scored: list[tuple[Measure, Score]] = []
        for measure in measures:
            header = {"answers": basis, "system": system.name, **measure.describe()}
            log = RecordFile(folder / f"{measure.name}.jsonl", header, self.on_change)
            records = examine(measure, documents, answers, log)
            total = measure.total(documents, answers, records, system.name == TRUTH)
            if total is None:
                print(f"  {task}: {measure.name} says nothing of these documents; left out", flush=True)
            else:
                scored.append((measure, total))
                for k, example in enumerate(examples):
                    found = {key: value for key, value in records[k].items() if key not in ("index", "id")}
                    example.update(found | dict(total.examples[k] if total.examples else {}))
        return task_result(task, scored, examples) if scored else None


def examine(
    measure: Measure, documents: Sequence[Document], answers: Sequence[FileAnswer], log: RecordFile
) -> list[dict]:
    """A measure's record of each answer; those in `log` are taken from there, the others added.

    Raises RecordError for one in `log` that is damaged.
    """
    for k, document in enumerate(documents):
        if k in log.records:
            log.require(k, measure.entries(document))
    todo = [k for k in range(len(documents)) if k not in log.records]
    for start in range(0, len(todo), GROUP):
        group = todo[start : start + GROUP]
        found = measure.examine([documents[k] for k in group], [answers[k] for k in group])
        for k, record in zip(group, found, strict=True):
            log.append(k, {"id": documents[k].id, **record})
    return [log.records[k] for k in range(len(documents))]


def folder_of(output: Path, system: str) -> Path:
    """Where a system's files are: the trained model's under the output itself."""
    if system == TRAINED:
        return output
    return output / "systems" / "".join(c if c.isalnum() else "_" for c in system).replace("__", "_")


def _digest(header: Mapping) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
