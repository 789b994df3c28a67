"""dataset.json beside the shards: what the data is, what it was made with, counts, and what was dropped."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.documents import TokenDocument
from ar_omni_jax.files import replace_file
from ar_omni_jax.vocabulary import MODALITY_NAMES, JointVocabulary, VocabularyError
from data_pipelines.schema import KINDS, SCHEMA_VERSION, SchemaError

FILE_NAME = "dataset.json"
MAX_LISTED = 1000  # dropped documents listed by name; all are counted


@dataclasses.dataclass
class Counts:
    """Documents and tokens of a split, and the tokens of its longest document.

    `by_task` and `by_group` map to {"documents", "tokens"}, `by_modality` to tokens. `dropped` maps a reason to
    its number; `dropped_list` names the first MAX_LISTED as {"id", "reason"}.
    """

    documents: int = 0
    tokens: int = 0
    longest: int = 0
    by_task: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    by_group: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    by_modality: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped_list: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, doc: TokenDocument) -> None:
        """Counts one kept document."""
        n = len(doc.tokens)
        self.documents += 1
        self.tokens += n
        self.longest = max(self.longest, n)
        for table, key in ((self.by_task, doc.task), (self.by_group, doc.group)):
            entry = table.setdefault(key, {"documents": 0, "tokens": 0})
            entry["documents"] += 1
            entry["tokens"] += n
        for span in doc.spans:
            name = MODALITY_NAMES[span.modality]
            self.by_modality[name] = self.by_modality.get(name, 0) + span.end - span.start

    def drop(self, doc_id: str, reason: str) -> None:
        """Counts one document that was left out; `reason` is a short phrase without the document's name."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if len(self.dropped_list) < MAX_LISTED:
            self.dropped_list.append({"id": doc_id, "reason": reason})

    def merge(self, other: Counts) -> Counts:
        """The sum of two disjoint parts."""
        merged = Counts(self.documents + other.documents, self.tokens + other.tokens, max(self.longest, other.longest))
        for name in ("by_task", "by_group", "by_modality", "dropped"):
            setattr(merged, name, _sum_tables(getattr(self, name), getattr(other, name)))
        merged.dropped_list = (self.dropped_list + other.dropped_list)[:MAX_LISTED]
        return merged

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Counts:
        """Inverse of `to_dict`; other keys (such as a packed split's rows) are left out."""
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data})


def _sum_tables(a: Mapping, b: Mapping) -> dict:
    out = {}
    for key in sorted({*a, *b}):
        if isinstance(a.get(key, b.get(key)), Mapping):
            out[key] = _sum_tables(a.get(key, {}), b.get(key, {}))
        else:
            out[key] = a.get(key, 0) + b.get(key, 0)
    return out


@dataclasses.dataclass
class DatasetInfo:
    """Content of dataset.json.

    kind: "documents" or "packed". tokenizers: identity strings by modality. splits: split ->
    `Counts.to_dict()` (packed data adds rows and fill by group). settings: the options it was made with.
    length: L of packed rows.
    """

    kind: str
    vocabulary: JointVocabulary
    tokenizers: dict[str, Any] = dataclasses.field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    length: int | None = None

    def to_dict(self) -> dict[str, Any]:
        data = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "vocabulary": self.vocabulary.to_dict(),
            "vocabulary_fingerprint": self.vocabulary.fingerprint,
            "tokenizers": self.tokenizers,
            "settings": self.settings,
            "splits": self.splits,
        }
        return data | ({} if self.length is None else {"length": self.length})


def write_info(directory: str | os.PathLike, info: DatasetInfo, name: str = FILE_NAME) -> Path:
    """Writes dataset.json atomically, keys sorted, so that equal content gives equal bytes."""
    path = Path(directory) / name
    replace_file(path, (json.dumps(info.to_dict(), indent=1, sort_keys=True, default=_plain) + "\n").encode())
    return path


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot stand in {FILE_NAME}")


def read_info(
    directory: str | os.PathLike,
    kind: str | None = None,
    fingerprint: str | None = None,
    name: str = FILE_NAME,
) -> DatasetInfo:
    """Reads dataset.json; SchemaError or VocabularyError when missing, damaged, of another kind or vocabulary.

    Args:
      kind: "documents" or "packed" when only that will do.
      fingerprint: vocabulary fingerprint of the caller's model; both are named when they differ.
    """
    path = Path(directory) / name
    if not path.is_file():
        raise SchemaError(f"{path} is missing; give the directory that build_shards or pack_shards wrote")
    try:
        data = json.loads(path.read_text())
        version = data["schema_version"]
        if version != SCHEMA_VERSION:
            raise SchemaError(f"{path}: schema version {version}, but this code reads {SCHEMA_VERSION}; build it again")
        vocabulary = JointVocabulary.from_dict(data["vocabulary"])
        info = DatasetInfo(
            data["kind"], vocabulary, data["tokenizers"], data["splits"], data["settings"], data.get("length")
        )
        stored = data["vocabulary_fingerprint"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as e:
        raise SchemaError(f"{path} is damaged ({type(e).__name__}: {e}); build the data again") from e
    vocabulary.require_same(stored, f"{path} (its layout and its own fingerprint disagree: edited by hand?)")
    if kind is not None and info.kind != kind:
        assert kind in KINDS, kind
        hint = "run pack_shards first" if kind == "packed" else "give the output of build_shards"
        raise SchemaError(f"{path}: holds {info.kind}, but {kind} are needed; {hint}")
    if fingerprint is not None and fingerprint != stored:
        raise VocabularyError(
            f"{path} was made with vocabulary {stored} ({vocabulary.name!r}), but this run uses "
            f"{fingerprint}; use the "
            "tokenizers it was made with, or build the data again"
        )
    return info


def merge_infos(infos: Iterable[DatasetInfo], names: Sequence[str] = ()) -> DatasetInfo:
    """One description of several parts; counts of equal splits add up. `names` of the parts stand in errors.

    Raises SchemaError or VocabularyError when kind, length, settings, tokenizers or vocabulary differ.
    """
    infos = list(infos)
    if not infos:
        raise SchemaError("nothing to merge")
    first = infos[0]
    splits: dict[str, dict[str, Any]] = {}
    for info, part in zip(infos, names or [f"part {number}" for number in range(1, len(infos) + 1)], strict=True):
        first.vocabulary.require_same(info.vocabulary.fingerprint, part)
        for name in ("kind", "length", "tokenizers", "settings"):
            if getattr(info, name) != getattr(first, name):
                raise SchemaError(
                    f"{part} has other {name} than the first: {getattr(info, name)!r}, not {getattr(first, name)!r}; "
                    "make all with the same options, or use each alone"
                )
        for split, counts in info.splits.items():
            if split in splits:
                counts = Counts.from_dict(splits[split]).merge(Counts.from_dict(counts)).to_dict()
            splits[split] = counts
    return dataclasses.replace(first, splits={k: splits[k] for k in sorted(splits)})
