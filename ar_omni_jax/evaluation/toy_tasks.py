"""The toy world's four tasks, scored: caption and image attributes, ASR and TTS word error rates.

A *system* is anything that answers documents: the trained model, an untrained one, the tokenizers alone (true
answer, encoded and decoded: the ceiling), or the files themselves (what the judges say of the truth: their own error).
None of the judges is the model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax.documents import Document, DocumentError, document_from_json
from ar_omni_jax.evaluation import toy_judges, wer
from ar_omni_jax.inference import Answer, answer_tokens, detokenize
from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.vocabulary import Modality

JUDGED_TASKS = ("caption", "t2i", "asr", "tts")
MEASURES = {
    "caption": ("caption attributes right", "%", True),
    "t2i": ("image attributes read back", "%", True),
    "asr": ("ASR word error rate", "%", False),
    "tts": ("TTS word error rate", "%", False),
}
System = Callable[[str, Sequence[Document]], list[Answer]]


@dataclasses.dataclass
class TaskResult:
    """Score of one system on one task: percent, bootstrap 95 % interval, examples with their own records.

    `details`: percent of shapes, colors, sizes, positions and backgrounds right, for pictures and captions.
    """

    task: str
    score: float
    low: float
    high: float
    examples: list[dict]
    details: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def load_documents(manifest: Path, limit: int, tasks: Sequence[str] = JUDGED_TASKS) -> dict[str, list[Document]]:
    """The first `limit` documents of each task, in file order; fewer when the file has fewer.

    Raises DocumentError, with file and line, for a line that cannot be read or judged, and when no line is of `tasks`.
    """
    found: dict[str, list[Document]] = {task: [] for task in tasks}
    with open(manifest, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{manifest}: line {number}"
            try:
                record = json.loads(line) if line.strip() else {}
                rows = found.get(record.get("task"))
            except (ValueError, AttributeError) as e:
                raise DocumentError(f"{where}: must be one JSON object ({e})") from e
            if rows is not None and len(rows) < limit:
                rows.append(document_from_json(record, where=where))
                if rows[-1].task in ("caption", "t2i") and "scene" not in rows[-1].meta:
                    raise DocumentError(f"{where}: meta.scene is missing; only the toy world's pictures can be judged")
                if rows[-1].task in ("asr", "tts") and not wer.normalize(truth_text(rows[-1])):
                    raise DocumentError(f"{where}: the text has no words, and no word error rate is defined on it")
    if not any(found.values()):
        raise DocumentError(f"{manifest}: no document of task {', '.join(tasks)}; give a toy world's test.jsonl")
    return found


def truth_text(document: Document) -> str:
    """The text that the document's task is about: the transcript, or the text to be spoken or drawn."""
    return " ".join(p.value for t in document.turns for p in t.parts if p.modality == Modality.TEXT)


def truth_system(root: Path) -> System:
    """Answers with the data set's own files: the judges' own error."""
    from PIL import Image

    def answer(task: str, documents: Sequence[Document]) -> list[Answer]:
        out = []
        for document in documents:
            parts = [p for t in document.turns if t.role == "assistant" for p in t.parts]
            texts = [p.value for p in parts if p.modality == Modality.TEXT]
            images = [
                np.asarray(Image.open(root / p.value).convert("RGB")) for p in parts if p.modality == Modality.IMAGE
            ]
            speech = [_read_speech(root / p.value) for p in parts if p.modality == Modality.SPEECH]
            out.append(Answer(" ".join(texts), images, speech, np.zeros(0, np.int32)))
        return out

    return answer


def _read_speech(path: Path) -> np.ndarray:
    import soundfile

    try:
        return soundfile.read(path, dtype="float32")[0]
    except soundfile.LibsndfileError as e:  # a RuntimeError that need not name its file
        raise DocumentError(f"{path} cannot be read as speech ({e}); make the data again") from e


def chance_system(root: Path) -> System:
    """Answers each document with the true answer of the next one: right in form, blind to the question."""
    truth = truth_system(root)

    def answer(task: str, documents: Sequence[Document]) -> list[Answer]:
        answers = truth(task, documents)
        return [*answers[1:], *answers[:1]]

    return answer


def ceiling_system(tokenizers: Tokenizers, template: str, root: Path) -> System:
    """Answers with the true answer through the tokenizers and back: what a perfect model would reach."""

    def answer(task: str, documents: Sequence[Document]) -> list[Answer]:
        return [detokenize(t, tokenizers) for t in answer_tokens(documents, tokenizers, template, root)]

    return answer


def judge(
    system: System, documents: dict[str, list[Document]], recognize: Callable[[np.ndarray], str] | None
) -> tuple[dict[str, TaskResult], dict[str, list[Answer]]]:
    """Scores a system on every task that has documents; `recognize` turns float32 [T] speech into words for TTS."""
    results, responses = {}, {}
    for task, rows in documents.items():
        if not rows or (task == "tts" and recognize is None):
            continue
        responses[task] = system(task, rows)
        examples = [_example(task, d, r, recognize) for d, r in zip(rows, responses[task], strict=True)]
        results[task] = TaskResult(task, *_aggregate(task, examples), examples, _details(task, examples))
    return results, responses


def _example(task: str, document: Document, response: Answer, recognize) -> dict:
    record = {"id": document.id, "truth": truth_text(document), "answer": response.text, "problems": response.problems}
    if task == "caption":
        record |= toy_judges.score_caption(response.text, document.meta["scene"])
    elif task == "t2i":
        scene = document.meta["scene"]
        record |= toy_judges.score_image(response.images[0], scene) if response.images else toy_judges.nothing(scene)
    else:
        heard = response.text
        if task == "tts":
            heard = recognize(response.speech[0]) if response.speech else ""
            record |= {"answer": heard, "samples": len(response.speech[0]) if response.speech else 0}
        edits, words = wer.edit_counts(record["truth"], heard)
        record |= {"edits": edits, "words": words}
    return record


def _aggregate(task: str, examples: list[dict], draws: int = 1000) -> tuple[float, float, float]:
    """(score, low, high) in percent; the interval is the 2.5 … 97.5 % range over resampled examples."""
    if task in ("caption", "t2i"):
        top, bottom = np.array([e["attributes"] for e in examples]), np.ones(len(examples))
    else:
        top, bottom = np.array([e["edits"] for e in examples]), np.array([e["words"] for e in examples])
    picks = np.random.default_rng(0).integers(0, len(examples), (draws, len(examples)))
    resampled = top[picks].sum(1) / bottom[picks].sum(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return tuple(float(100 * x) for x in (top.sum() / bottom.sum(), low, high))


def _details(task: str, examples: list[dict]) -> dict[str, float]:
    names = ("shapes", "colors", "sizes", "positions", "background") if task in ("caption", "t2i") else ()
    return {name: 100 * float(np.mean([e[name] for e in examples])) for name in names}


def table(systems: dict[str, dict[str, TaskResult]]) -> str:
    """Markdown table: a row a system, a column a task, score with its 95 % interval."""
    tasks = [t for t in JUDGED_TASKS if any(t in r for r in systems.values())]
    heads = [f"{MEASURES[t][0]} ({'higher' if MEASURES[t][2] else 'lower'} is better)" for t in tasks]
    lines = ["| system | " + " | ".join(heads) + " |", "|---" * (len(tasks) + 1) + "|"]
    for name, results in systems.items():
        cells = [
            f"{results[t].score:.1f} % [{results[t].low:.1f}, {results[t].high:.1f}]" if t in results else "–"
            for t in tasks
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
