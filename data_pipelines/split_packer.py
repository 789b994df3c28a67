"""Packs the documents of one split that belong in rows of one length, unit by unit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ar_omni_jax.documents import GROUPS, TokenDocument
from ar_omni_jax.files import replace_file
from ar_omni_jax.vocabulary import JointVocabulary
from data_pipelines import packing, schema, shards
from data_pipelines.buckets import Part
from data_pipelines.dataset_info import Counts
from data_pipelines.pack_options import PackOptions
from data_pipelines.permutation import Permutation
from data_pipelines.schema import SchemaError
from data_pipelines.split_reader import SplitReader

_Document = tuple[np.ndarray, np.ndarray]  # ids, token classes


@dataclasses.dataclass
class UnitResult:
    """What one unit did: counts of what is in its rows, tokens dropped, rows and their tokens by the rows' group,
    documents cut and pieces."""

    counts: Counts = dataclasses.field(default_factory=Counts)
    dropped_tokens: int = 0
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    row_tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    cut: int = 0
    pieces: int = 0

    def merge(self, other: UnitResult) -> UnitResult:
        return UnitResult(
            self.counts.merge(other.counts),
            self.dropped_tokens + other.dropped_tokens,
            _added(self.rows, other.rows),
            _added(self.row_tokens, other.row_tokens),
            self.cut + other.cut,
            self.pieces + other.pieces,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UnitResult:
        return cls(**(data | {"counts": Counts.from_dict(data["counts"])}))


def _added(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in sorted({*a, *b})}


def origin_of(reader: SplitReader) -> dict[str, Any]:
    """What tells the documents of a split from others, to be kept with the rows that are made of them."""
    counts = reader.counts
    digest = hashlib.sha256(json.dumps(counts.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
    return {"documents": counts.documents, "tokens": counts.tokens, "digest": digest, "shards": reader.digest}


def state_of(output: Path, split: str) -> Path:
    """Folder of what a stopped job has done of a split."""
    return output / f".pack-{split}"


class SplitPacker:
    """Packs a part of a split into output/split; `run` does all units that are not yet done and returns the entry for
    dataset.json. `origin`: of the whole split."""

    def __init__(
        self,
        part: Part,
        output: Path,
        split: str,
        vocabulary: JointVocabulary,
        options: PackOptions,
        origin: Mapping[str, Any],
    ):
        self.part, self.directory, self.state = part, output / split, state_of(output, split)
        self.split, self.vocabulary, self.options, self.origin = split, vocabulary, options, dict(origin)
        self.groups = [group for group in GROUPS if group in part.totals]
        self.units = -(-part.tokens // options.unit_tokens)
        self.plan = options.settings() | {"origin": self.origin, "units": self.units}
        if part.longer_than:
            self.plan["longer_than"] = part.longer_than

    def run(self, show_progress: bool = False) -> dict[str, Any]:
        """Packs, and returns counts, rows, fill, origin. Raises SchemaError when any token is unaccounted for."""
        self.check_plan()
        for group in self.groups:
            shards.remove_stale(self.directory, group)
        total = UnitResult()
        name = f"pack {self.split}" + (f", {self.options.length}" if self.part.longer_than else "")
        bar = tqdm(range(self.units), desc=name, unit="unit", disable=not show_progress)
        for unit in bar:
            if (result := self._done(unit)) is None:
                result = self._pack_unit(unit)
                _write_json(self._record(unit), dataclasses.asdict(result))
            total = total.merge(result)
            bar.set_postfix(tokens=total.counts.tokens)
        if total.counts.tokens + total.dropped_tokens != self.part.tokens:
            raise SchemaError(
                f"{self.directory}: {total.counts.tokens} tokens packed and {total.dropped_tokens} dropped, but the "
                f"documents have {self.part.tokens}; the input changed meanwhile: run again with --overwrite"
            )
        return self._entry(total)

    def check_plan(self) -> None:
        """Continues only a job with equal options and input; otherwise the shards would be a mixture of two."""
        path = self.state / "plan.json"
        if path.exists() and json.loads(path.read_text()) != self.plan:
            raise SchemaError(
                f"{self.directory} was begun with other options or other documents; run with --overwrite to start "
                "anew, or give another --output"
            )
        _write_json(path, self.plan)

    def _record(self, unit: int) -> Path:
        return self.state / f"unit-{unit:05d}.json"

    def _shard(self, unit: int, group: str) -> Path:
        return self.directory / shards.shard_name(group, unit, self.units)

    def _done(self, unit: int) -> UnitResult | None:
        """What a unit has done, None unless all of its shards are whole: some may be gone since the job was stopped."""
        if not self._record(unit).exists():
            return None
        result = UnitResult.from_dict(json.loads(self._record(unit).read_text()))
        try:
            rows = {group: shards.count_records(self._shard(unit, group)) for group in self.groups}
        except SchemaError:
            return None
        return result if rows == result.rows else None

    def _pack_unit(self, unit: int) -> UnitResult:
        start, stop = (len(self.part) * u // self.units for u in (unit, unit + 1))
        places = Permutation(len(self.part), self.options.seed)(np.arange(start, stop))
        result = UnitResult()
        found: dict[str, list[_Document]] = {g: [] for g in self.groups}
        for doc in self.part.read(places, self.vocabulary):
            for piece in self._by_rule(doc, result):
                result.counts.add(piece)
                found[piece.group].append((piece.tokens, piece.classes()))
        rows = self._rows(unit, found)
        for group in self.groups:
            result.rows[group] = len(rows[group])
            result.row_tokens[group] = sum(len(tokens) for row in rows[group] for tokens, _ in row)
            self._write_rows(unit, group, rows[group])
        return result

    def _rows(self, unit: int, found: dict[str, list[_Document]]) -> dict[str, list[list[_Document]]]:
        """The documents of each group in rows; those of `top_up` are packed last, after the others' room is filled."""
        rows: dict[str, list[list[_Document]]] = {}
        for group in sorted(self.groups, key=lambda g: g == self.options.top_up):
            documents = found[group]
            rng = np.random.default_rng([self.options.seed, unit, GROUPS.index(group)])
            if group == self.options.top_up:
                documents = self._top_up(rows, documents, rng)
            packed = packing.pack_documents([len(t) for t, _ in documents], self.options.length, rng)
            rows[group] = [[documents[i] for i in row] for row in packed]
        return rows

    def _top_up(self, rows, documents: list[_Document], rng: np.random.Generator) -> list[_Document]:
        """Puts documents where `rows` have room, in random order with those that are there; returns the others."""
        all_rows = [row for group in rows.values() for row in group]
        rooms = [self.options.length - sum(len(tokens) for tokens, _ in row) for row in all_rows]
        added = packing.top_up(rooms, [len(tokens) for tokens, _ in documents])
        for row, indices in zip(all_rows, added, strict=True):
            row += [documents[i] for i in indices]
            row[:] = [row[i] for i in rng.permutation(len(row))]
        placed = {i for indices in added for i in indices}
        return [document for i, document in enumerate(documents) if i not in placed]

    def _by_rule(self, doc: TokenDocument, result: UnitResult) -> list[TokenDocument]:
        """The document, its pieces, or nothing, by the rule for over-long ones; kept account of in `result`."""
        length = self.options.length
        if len(doc.tokens) <= length:
            return [doc]
        if self.options.overlong == "drop_counted":
            result.counts.drop(doc.id, f"longer than {length} tokens")
            result.dropped_tokens += len(doc.tokens)
            return []
        if self.options.overlong != "split":  # `buckets.divide` has found none
            raise SchemaError(
                f"{self.directory}: document {doc.id!r} of {len(doc.tokens)} tokens is longer than a row of {length}; "
                "the input changed meanwhile: run again with --overwrite"
            )
        pieces = packing.split_document(doc, length)
        result.cut += 1
        result.pieces += len(pieces)
        return pieces

    def _write_rows(self, unit: int, group: str, rows: list[list[_Document]]) -> None:
        length, width = self.options.length, schema.token_bytes_for(self.vocabulary.size)
        with shards.ShardWriter(self._shard(unit, group)) as writer:
            for row in rows:
                example = packing.fill_row([t for t, _ in row], [c for _, c in row], length, self.vocabulary.pad)
                writer.write(schema.encode_packed(example, width))

    def _entry(self, total: UnitResult) -> dict[str, Any]:
        fill = {
            g: round(total.row_tokens[g] / (rows * self.options.length), 6) for g, rows in total.rows.items() if rows
        }
        return total.counts.to_dict() | {
            "rows": total.rows,
            "row_tokens": total.row_tokens,
            "fill": fill,
            "cut": {"documents": total.cut, "pieces": total.pieces},
            "dropped_tokens": total.dropped_tokens,
            "origin": self.origin,
        }


def _write_json(path: Path, data: Any) -> None:
    replace_file(path, json.dumps(data, sort_keys=True).encode())
