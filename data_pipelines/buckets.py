"""Which documents of a split are packed in rows of which length.

Every batch of a run has one row length, so documents longer than a row can be kept whole only in a data set of longer
rows. `divide` goes through a split once and puts each document into one part: the shortest rows that hold it. A part
is a file with the numbers of its documents, which is read where it is needed, so that memory does not grow with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ar_omni_jax.documents import TokenDocument
from ar_omni_jax.files import replace_file
from ar_omni_jax.vocabulary import JointVocabulary
from data_pipelines import schema
from data_pipelines.pack_options import PackOptions
from data_pipelines.schema import SchemaError
from data_pipelines.split_reader import READ_BATCH, SplitReader, refuse_overlong

FOLDER = re.compile(r"rows-(\d+)")
_INDEX = np.dtype("<i8")
_NAMED = 8  # documents longer than every row that an error names

Totals = dict[str, dict[str, int]]  # group: {"documents", "tokens"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Documents of a split that are packed in rows of one length.

    totals: documents and tokens by group. numbers: file of their places in the split, ascending; None for all of them.
    longer_than: the next shorter rows, which do not hold them; 0 for none.
    """

    reader: SplitReader
    totals: Mapping[str, Mapping[str, int]]
    numbers: Path | None = None
    longer_than: int = 0

    @property
    def tokens(self) -> int:
        return sum(entry["tokens"] for entry in self.totals.values())

    def __len__(self) -> int:
        return sum(entry["documents"] for entry in self.totals.values())

    def read(self, places: np.ndarray, vocabulary: JointVocabulary) -> Iterator[TokenDocument]:
        """Checked documents at `places` of [0, len), in the given order."""
        return self.reader.documents(self._in_split(places), vocabulary)

    def _in_split(self, places: np.ndarray) -> np.ndarray:
        if self.numbers is None:
            return places
        size = _INDEX.itemsize
        with self.numbers.open("rb") as file:
            found = b"".join(os.pread(file.fileno(), size, size * place) for place in places.tolist())
        return np.frombuffer(found, _INDEX)


def folder_name(length: int) -> str:
    """Of the data set of a bucket, in the folder of the rows of ordinary length."""
    return f"rows-{length}"


def divide(
    reader: SplitReader, options: PackOptions, origin: Mapping[str, Any], state: Path, show_progress: bool = False
) -> list[Part]:
    """The parts of a split by options.row_lengths; SchemaError when documents are too long by the rule for these.

    What was found is kept in `state`, where a stopped job finds it again; SchemaError when that is of other options
    or of a split that is not `origin`.
    """
    if options.overlong == "error":
        refuse_overlong(reader, options.length)
    if options.overlong != "bucket":
        return [Part(reader, _present(reader.counts.by_group))]
    record = state / "buckets.json"
    made_for = {"settings": options.settings(), "origin": dict(origin)}
    found = json.loads(record.read_text()) if record.exists() else None
    if found is None:
        found = made_for | {"totals": _sort(reader, options, state, show_progress)}
        replace_file(record, json.dumps(found, sort_keys=True).encode())
    elif {name: found[name] for name in made_for} != made_for:
        raise SchemaError(
            f"{state.parent} was begun with other options or other documents; run with --overwrite to start anew, or "
            "give another --output"
        )
    before = (0, *options.row_lengths)
    return [
        Part(reader, _present(totals), _numbers(state, length), longer_than)
        for length, longer_than, totals in zip(options.row_lengths, before, found["totals"], strict=False)
    ]


def _present(totals: Mapping[str, Mapping[str, int]]) -> Totals:
    return {group: dict(entry) for group, entry in totals.items() if entry["documents"]}


def _numbers(state: Path, length: int) -> Path:
    return state / f"{folder_name(length)}.numbers"


def _sort(reader: SplitReader, options: PackOptions, state: Path, show_progress: bool) -> list[Totals]:
    """Writes the numbers of each part's documents; returns the documents and tokens of each by group."""
    paths = [_numbers(state, length) for length in options.row_lengths]
    totals: list[Totals] = [{} for _ in paths]
    beyond = _Beyond()
    state.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for start in tqdm(range(0, len(reader), READ_BATCH), desc="sort by length", disable=not show_progress):
            records = list(reader.records(range(start, min(start + READ_BATCH, len(reader)))))
            lengths = np.array([schema.record_length(data, where) for data, where in records])
            parts = np.searchsorted(options.row_lengths, lengths)
            placed = np.minimum(parts, len(files) - 1)
            for part, file in enumerate(files):
                file.write((start + np.flatnonzero(placed == part)).astype(_INDEX).tobytes())
            for i in np.flatnonzero(parts).tolist():
                document = schema.decode_document(records[i][0], where=records[i][1])
                _count(totals[placed[i]], document.group, len(document.tokens))
                if parts[i] == len(files):
                    beyond.add(document)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    if beyond.count and options.beyond_buckets == "error":
        for path in paths:
            path.unlink()
        raise beyond.error(len(reader), options)
    totals[0] = _rest(reader.counts.by_group, totals[1:])
    return totals


def _count(totals: Totals, group: str, tokens: int) -> None:
    entry = totals.setdefault(group, {"documents": 0, "tokens": 0})
    entry["documents"] += 1
    entry["tokens"] += tokens


def _rest(whole: Mapping[str, Mapping[str, int]], others: Sequence[Totals]) -> Totals:
    """What is not in `others`. That the counts are those of the documents is seen when they are packed."""
    return {
        group: {name: count - sum(part.get(group, {}).get(name, 0) for part in others) for name, count in entry.items()}
        for group, entry in whole.items()
    }


@dataclasses.dataclass
class _Beyond:
    """Documents longer than every row."""

    count: int = 0
    longest: int = 0
    names: list[str] = dataclasses.field(default_factory=list)

    def add(self, document: TokenDocument) -> None:
        tokens = len(document.tokens)
        self.count, self.longest = self.count + 1, max(self.longest, tokens)
        if len(self.names) < _NAMED:
            self.names.append(f"{document.id} ({tokens} tokens)")

    def error(self, documents: int, options: PackOptions) -> SchemaError:
        more = ", ..." if self.count > len(self.names) else ""
        last = options.row_lengths[-1]
        return SchemaError(
            f"{self.count} of {documents} documents are longer than the longest rows, of {last}: "
            f"{', '.join(self.names)}{more}; add {self.longest} to --bucket_lengths, or give --beyond_buckets=split "
            "to cut them, or --beyond_buckets=drop_counted to leave them out (listed in dataset.json)"
        )
