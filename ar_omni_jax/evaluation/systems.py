"""Who answers: the model, an untrained one, another document's truth (chance), the tokenizers alone, the truth itself.

A perfect model would reach the tokenizers' ceiling; what the judges say of the truth is their own error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation.file_answer import FileAnswer, true_answer
from ar_omni_jax.evaluation.manifest import references
from ar_omni_jax.inference import Answer, answer_tokens, detokenize
from ar_omni_jax.tokenizers.bundle import Tokenizers

Made = tuple[int, Answer | Exception, dict[str, Any]]  # index, answer, and what else its record holds
Make = Callable[[str, Sequence[Document], Mapping[int, Mapping]], Iterator[Made]]

TRAINED, UNTRAINED, CHANCE = "trained model", "untrained model", "another document's answer"
CEILING, TRUTH = "tokenizers' ceiling", "judges on the files"
NAMES = {"untrained": UNTRAINED, "chance": CHANCE, "ceiling": CEILING, "truth": TRUTH}  # by the command's words


@dataclasses.dataclass(frozen=True)
class MakingSystem:
    """Answers that take time to make and are kept. make(task, documents, records that are there) gives the others.

    identity: all that the answers depend on, but for the documents.
    """

    name: str
    make: Make
    identity: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class KnownSystem:
    """Answers that stand in the documents. known(task, documents) gives one each."""

    name: str
    known: Callable[[str, Sequence[Document]], list[FileAnswer]]


def truth_system(root: Path) -> KnownSystem:
    """Answers with the data set's own files: the judges' own error."""
    return KnownSystem(TRUTH, lambda task, documents: [true_answer(d, root) for d in documents])


def chance_system(root: Path) -> KnownSystem:
    """Answers each document with the true answer of the next one: right in form, blind to the question.

    In dialogues the next one that asks the same (a colour, a number, ...), so that the answer is one to the question.
    """

    def known(task: str, documents: Sequence[Document]) -> list[FileAnswer]:
        answers = [dataclasses.replace(true_answer(d, root), is_reference=False) for d in documents]
        return [answers[k] for k in next_of_its_kind([d.meta.get("question") for d in documents])]

    return KnownSystem(CHANCE, known)


def next_of_its_kind(kinds: Sequence[Any]) -> list[int]:
    """For each place the next one of the same kind, the last of a kind taking its first; the only one of its kind
    takes the next place of any."""
    out = []
    for k, kind in enumerate(kinds):
        around = [*range(k + 1, len(kinds)), *range(k)]
        out.append(next((other for other in around if kinds[other] == kind), around[0] if around else k))
    return out


def ceiling_system(tokenizers: Tokenizers, template: str, root: Path, batch: int = 16) -> MakingSystem:
    """Answers with the true answer through the tokenizers and back: what a perfect model would reach."""

    def make(task: str, documents: Sequence[Document], done: Mapping[int, Mapping]) -> Iterator[Made]:
        for group in unfinished(len(documents), batch, done):
            rows = [documents[k] for k in group]
            if task == "caption":  # the caption that the truth is judged by, whatever the manifest's answer
                texts = [references(d)[0] for d in rows]
                tokens = [tokenizers.text.encode(text) for text in texts]
                answers = [Answer(tokenizers.text.decode(t).strip(), [], [], t) for t in tokens]
            else:
                answers = [detokenize(t, tokenizers) for t in answer_tokens(rows, tokenizers, template, root)]
            for k, answer in zip(group, answers, strict=True):
                yield k, answer, {"is_reference": task == "caption"}

    return MakingSystem(CEILING, make, {"tokenizers": tokenizers.fingerprint, "template": template})


def unfinished(count: int, batch: int, done: Mapping[int, Mapping]) -> Iterator[list[int]]:
    """Groups of `batch` indices below `count` that are not wholly in `done`.

    A group is made as a whole or not at all: products of other sizes round otherwise, and a run that goes on is to end
    with equal answers.
    """
    for start in range(0, count, batch):
        group = list(range(start, min(start + batch, count)))
        if not all(k in done for k in group):
            yield group


def model_system(
    predictor, *, name: str, batch: int, seed: int, on_error: str, identity: Mapping[str, Any], how: Mapping[str, Any]
) -> MakingSystem:
    """The model as a system: `batch` documents decoded together, one seed a document.

    Args:
      on_error: "fail" raises a document's error once its group is done; "empty" takes it as an empty answer.
      how: `Predictor.stream`'s budgets, strategies and guidance.
    """

    def make(task: str, documents: Sequence[Document], done: Mapping[int, Mapping]) -> Iterator[Made]:
        todo = list(unfinished(len(documents), batch, done))
        finished = [k for start in todo[:1] for k in range(start[0])] if todo else range(len(documents))
        for k in finished:  # the engine is as large as it was when they were made
            size = done[k].get("engine", {})
            predictor.rows = max(predictor.rows or 0, size.get("rows", 0)) or None
            predictor.capacity = max(predictor.capacity or 0, size.get("capacity", 0)) or None
        for group in todo:
            failed = None
            rows, seeds = [documents[k] for k in group], [seed + k for k in group]
            for piece in predictor.stream(rows, seeds=seeds, live=False, **how):
                if piece.error is not None and on_error == "fail":
                    failed = failed or piece.error
                elif piece.answer is not None or piece.error is not None:
                    yield group[piece.index], piece.answer or piece.error, {"engine": predictor.engine_size}
            if failed is not None:
                raise failed
            print(f"  {task}: {group[-1] + 1}/{len(documents)}", flush=True)

    return MakingSystem(name, make, identity)
