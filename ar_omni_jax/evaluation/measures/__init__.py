"""Measures: a metric applied to documents and answers, one protocol a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ar_omni_jax.documents import Document
from ar_omni_jax.evaluation.file_answer import FileAnswer
from ar_omni_jax.evaluation.results import Score


class Measure(Protocol):
    """`examine` looks at each document once, in groups, and what it finds is kept; `total` makes a figure of it all.

    name: as on the command line. title, unit, higher_is_better: as in `results.TaskResult`.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool

    def describe(self) -> dict[str, Any]:
        """All that the records depend on beside documents and answers, and how the figure is to be read."""
        ...

    def examine(self, documents: Sequence[Document], answers: Sequence[FileAnswer]) -> list[dict[str, Any]]:
        """A record each, of what JSON can hold."""
        ...

    def entries(self, document: Document) -> dict[str, str]:
        """What the document's record must have for `total`: {key: TEXT, NUMBER or TEXTS of `record_file`}."""
        ...

    def total(
        self, documents: Sequence[Document], answers: Sequence[FileAnswer], records: Sequence[Mapping], truth: bool
    ) -> Score | None:
        """The figure. truth: the answers are the data set's own. None where nothing can be said."""
        ...
