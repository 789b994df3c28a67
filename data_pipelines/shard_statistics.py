"""Counts over a split of token or packed shards, in memory that does not grow with the data; text and plots."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ar_omni_jax.documents import GROUPS, NUM_TOKEN_CLASSES, TASKS, split_token_class
from ar_omni_jax.vocabulary import MODALITY_NAMES
from data_pipelines.dataset_info import DatasetInfo
from data_pipelines.packing import unpack_row
from data_pipelines.schema import PackedExample
from data_pipelines.shards import read_documents
from data_pipelines.unigram import read_packed


@dataclasses.dataclass
class GroupStatistics:
    """Of one mixture group: documents by length (index) and by task, tokens by token class, rows by documents in them.

    `rows` and `row_documents` stay empty for documents that are not packed.
    """

    lengths: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    task_documents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(TASKS), np.int64))
    classes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(NUM_TOKEN_CLASSES, np.int64))
    row_documents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def documents(self) -> int:
        return int(self.lengths.sum())

    @property
    def tokens(self) -> int:
        return int(self.classes.sum())

    @property
    def rows(self) -> int:
        return int(self.row_documents.sum())

    def add(self, tokens: np.ndarray, classes: np.ndarray) -> None:
        """One document: ids [n] and token classes [n]."""
        self.lengths = _count(self.lengths, len(tokens))
        self.task_documents[split_token_class(int(classes[0]))[0]] += 1
        self.classes += np.bincount(classes, minlength=NUM_TOKEN_CLASSES)

    def add_row(self, documents: int) -> None:
        """One packed row of so many documents."""
        self.row_documents = _count(self.row_documents, documents)

    def by_modality(self) -> dict[str, int]:
        """Tokens by modality name."""
        modality = split_token_class(np.arange(NUM_TOKEN_CLASSES))[2]
        return {name: int(self.classes[modality == i].sum()) for i, name in enumerate(MODALITY_NAMES)}

    def by_task(self) -> dict[str, tuple[int, int]]:
        """(documents, tokens) by task name, tasks without documents left out."""
        task = split_token_class(np.arange(NUM_TOKEN_CLASSES))[0]
        return {
            name: (int(self.task_documents[i]), int(self.classes[task == i].sum()))
            for i, name in enumerate(TASKS)
            if self.task_documents[i]
        }

    def quantile(self, share: float) -> int:
        """Length that `share` of the documents do not exceed; 0 without documents."""
        if not self.documents:
            return 0
        return int(np.searchsorted(np.cumsum(self.lengths), max(share * self.documents, 1)))


def _count(histogram: np.ndarray, value: int) -> np.ndarray:
    if value >= len(histogram):
        histogram = np.pad(histogram, (0, max(value + 1, 2 * len(histogram)) - len(histogram)))
    histogram[value] += 1
    return histogram


def iterate(
    directory: str | os.PathLike, split: str, info: DatasetInfo
) -> Iterator[tuple[str, list[tuple[str, np.ndarray, np.ndarray]]]]:
    """(group, documents) of each record; a document is (name, ids, classes), of a packed row named by its number."""
    if info.kind == "documents":
        for doc in read_documents(directory, split, info.vocabulary):
            yield doc.group, [(doc.id, doc.tokens, doc.classes())]
        return
    number = 0
    for group, rows in read_packed(directory, split, info):
        for i in range(len(rows.tokens)):
            row = PackedExample(rows.tokens[i], rows.segment_ids[i], rows.positions[i], rows.token_class[i])
            yield group, [(f"row {number}", *document) for document in unpack_row(row)]
            number += 1


def summary_lines(split: str, groups: Mapping[str, GroupStatistics], length: int | None) -> list[str]:
    """Plain text: a line a group and a line a task of it. `length` of rows, None for documents."""
    lines = [f"split {split}"]
    for group in GROUPS:
        if group not in groups:
            continue
        s = groups[group]
        quantiles = "/".join(str(s.quantile(q)) for q in (0, 0.5, 0.9, 1))
        text = f"  {group:7s} {s.documents:9d} documents {s.tokens:12d} tokens, lengths min/median/90%/max {quantiles}"
        if s.rows:
            share = s.tokens / (s.rows * length)
            text += f", {s.rows} rows of {length}, {s.documents / s.rows:.1f} documents a row, fill {share:.2%}"
        lines.append(text)
        lines.append("          tokens: " + ", ".join(f"{k} {v}" for k, v in s.by_modality().items() if v))
        lines += [f"          {task:16s} {n:9d} documents {t:12d} tokens" for task, (n, t) in s.by_task().items()]
    return lines


def plot(splits: Mapping[str, Mapping[str, GroupStatistics]], path: Path) -> None:
    """PNG with a row a split: lengths of documents by group, tokens by modality and group, documents a packed row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(splits), 3, figsize=(14, 3.6 * len(splits)), squeeze=False)
    for (split, groups), (left, middle, right) in zip(splits.items(), axes, strict=True):
        bottom = np.zeros(len(MODALITY_NAMES))
        for group, s in groups.items():
            width = max(1, len(s.lengths) // 60)
            edges = np.arange(0, len(s.lengths) + width, width)
            left.stairs(np.histogram(np.arange(len(s.lengths)), edges, weights=s.lengths)[0], edges, label=group)
            values = np.array(list(s.by_modality().values()))
            middle.bar(MODALITY_NAMES, values, bottom=bottom, label=group)
            bottom += values
            if s.rows:
                right.step(np.arange(len(s.row_documents)), s.row_documents, where="mid", label=group)
        left.set(title=f"{split}: documents by length", xlabel="tokens", ylabel="documents")
        middle.set(title=f"{split}: tokens by modality", ylabel="tokens")
        middle.set_ylim(0, 1.08 * max(bottom.max(), 1))  # or the highest stack looks cut
        right.set(title=f"{split}: documents in a row", xlabel="documents", ylabel="rows")
        for axis in (left, middle, right):
            if axis.get_legend_handles_labels()[0]:
                axis.legend(title="group of documents")
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
