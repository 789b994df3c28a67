"""Token shards to packed shards: rows of one length, by mixture group, shuffled by seed, no document lost.

    python -m data_pipelines.pack_shards --input=SHARDS --output=PACKED --length=512

Several --input are packed as one: their splits of one name become one. The documents of a split are visited in a
pseudo-random order (a function of the seed, not a list) in units of about `unit_tokens` tokens; each unit is packed
by itself, so memory does not grow with the corpus. A unit writes one shard a group, atomically, then its counts; a
stopped job continues with the first unit that lacks them and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ar_omni_jax.documents import GROUPS, TokenDocument
from ar_omni_jax.files import replace_file
from data_pipelines import packing, schema, shards
from data_pipelines.dataset_info import FILE_NAME, Counts, DatasetInfo, read_info, write_info
from data_pipelines.permutation import Permutation
from data_pipelines.schema import SchemaError
from data_pipelines.split_reader import Inputs, SplitReader, open_inputs, refuse_overlong

OVERLONG = ("error", "drop_counted", "split")
LOW_FILL = 0.95  # below it, the summary gives advice

_Document = tuple[np.ndarray, np.ndarray]  # ids, token classes


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """length: tokens a row. overlong: what becomes of documents longer than a row ("error" names them, "drop_counted"
    leaves them out and lists them in dataset.json, "split" cuts them into pieces). unit_tokens: tokens packed at
    once, which bounds memory and sets the size of a shard. top_up: group whose documents also go where rows of the
    other groups have room, "" for none."""

    length: int
    seed: int = 0
    overlong: str = "error"
    unit_tokens: int = 16_000_000
    top_up: str = ""

    def __post_init__(self):
        if self.length < 2 or self.unit_tokens < 1:
            raise ValueError(f"length {self.length} must be at least 2 and unit_tokens {self.unit_tokens} at least 1")
        if self.overlong not in OVERLONG:
            raise ValueError(f"overlong {self.overlong!r} is not one of {', '.join(OVERLONG)}")
        if self.top_up and self.top_up not in GROUPS:
            raise ValueError(f"top_up {self.top_up!r} is not one of {', '.join(GROUPS)}")


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


class SplitPacker:
    """Packs one split of one data set; `run` does all units that are not yet done and returns the split's entry."""

    def __init__(self, inputs: Inputs, output: Path, split: str, options: PackOptions):
        self.reader = SplitReader(inputs, split)
        self.directory, self.state = output / split, output / f".pack-{split}"
        self.split, self.vocabulary, self.options = split, inputs[0][1].vocabulary, options
        counts = self.reader.counts
        self.groups = [g for g in GROUPS if counts.by_group.get(g, {}).get("documents", 0)]
        self.units = max(1, -(-counts.tokens // options.unit_tokens))
        self.order = Permutation(len(self.reader), options.seed)
        digest = hashlib.sha256(json.dumps(counts.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
        self.origin = {
            "documents": counts.documents,
            "tokens": counts.tokens,
            "digest": digest,
            "shards": self.reader.digest,
        }
        self.plan = dataclasses.asdict(options) | {"origin": self.origin, "units": self.units}

    def run(self, show_progress: bool = False) -> dict[str, Any]:
        """Packs, and returns counts, rows, fill, origin. Raises SchemaError when any token is unaccounted for."""
        self._check_plan()
        if self.options.overlong == "error":
            refuse_overlong(self.reader, self.options.length)
        for group in self.groups:
            shards.remove_stale(self.directory, group)
        total = UnitResult()
        bar = tqdm(range(self.units), desc=f"pack {self.split}", unit="unit", disable=not show_progress)
        for unit in bar:
            done = self.state / f"unit-{unit:05d}.json"
            if not done.exists():
                _write_json(done, dataclasses.asdict(self._pack_unit(unit)))
            total = total.merge(UnitResult.from_dict(json.loads(done.read_text())))
            bar.set_postfix(tokens=total.counts.tokens)
        self.reader.close()
        if total.counts.tokens + total.dropped_tokens != self.origin["tokens"]:
            raise SchemaError(
                f"{self.directory}: {total.counts.tokens} tokens packed and {total.dropped_tokens} dropped, "
                "but the "
                f"documents have {self.origin['tokens']}; the input changed meanwhile: run again with "
                "--overwrite"
            )
        return self._entry(total)

    def _check_plan(self) -> None:
        """Continues only a job with equal options and input; otherwise the shards would be a mixture of two."""
        path = self.state / "plan.json"
        if path.exists() and json.loads(path.read_text()) != self.plan:
            raise SchemaError(
                f"{self.directory} was begun with other options or other documents; run with --overwrite to "
                "start "
                "anew, or give another --output"
            )
        _write_json(path, self.plan)

    def _pack_unit(self, unit: int) -> UnitResult:
        start, stop = (len(self.reader) * u // self.units for u in (unit, unit + 1))
        indices = self.order(np.arange(start, stop))
        result = UnitResult()
        found: dict[str, list[_Document]] = {g: [] for g in self.groups}
        for doc in self.reader.documents(indices, self.vocabulary):
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
        pieces = packing.split_document(doc, length)
        result.cut += 1
        result.pieces += len(pieces)
        return pieces

    def _write_rows(self, unit: int, group: str, rows: list[list[_Document]]) -> None:
        length, width = self.options.length, schema.token_bytes_for(self.vocabulary.size)
        with shards.ShardWriter(self.directory / shards.shard_name(group, unit, self.units)) as writer:
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


def pack(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: PackOptions,
    splits: Sequence[str] = (),
    overwrite: bool = False,
    show_progress: bool = False,
) -> DatasetInfo:
    """Packs `splits` (default: all of the input) and describes them in output/dataset.json, which is returned.

    source: folder that build_shards wrote, or several whose splits of one name become one. A split that is there
    already, whole and made from the same documents with the same options, is left alone; anything else in its place
    is a SchemaError unless `overwrite`.
    """
    output = Path(output)
    inputs, documents = open_inputs(source)
    settings = dataclasses.asdict(options)
    packed = DatasetInfo(
        "packed", documents.vocabulary, documents.tokenizers, {}, settings | documents.settings, options.length
    )
    splits = splits or sorted(documents.splits)
    if (output / FILE_NAME).exists():
        packed = _existing(output, packed, splits if overwrite else ())
        if overwrite:  # from here on nothing that is being replaced may look finished
            write_info(output, packed) if packed.splits else (output / FILE_NAME).unlink()
    for split in splits:
        packer = SplitPacker(inputs, output, split, options)
        if overwrite:
            shutil.rmtree(packer.state, ignore_errors=True)
            shutil.rmtree(packer.directory, ignore_errors=True)
        if not _is_packed(packer, packed.splits.get(split)):
            packed.splits[split] = packer.run(show_progress)
            write_info(output, packed)
        shutil.rmtree(packer.state, ignore_errors=True)
    return packed


def _is_packed(packer: SplitPacker, entry: dict[str, Any] | None) -> bool:
    """Whether the split is there, whole; SchemaError when it was packed from other documents."""
    if entry is None:
        return False
    if any(entry["origin"].get(key, value) != value for key, value in packer.origin.items()):
        raise SchemaError(
            f"{packer.directory} was packed from other documents; run with --overwrite or give another --output"
        )
    try:
        counts = {
            group: sum(shards.count_records(path) for path in shards.shard_paths(packer.directory, group))
            for group in entry["rows"]
        }
    except SchemaError:  # a shard is gone or damaged
        return False
    return counts == entry["rows"]


def _existing(output: Path, wanted: DatasetInfo, replaced: Sequence[str]) -> DatasetInfo:
    """The description in `output` without the splits to be replaced; SchemaError if the rest is of another make."""
    info = read_info(output, "packed")
    kept = {split: entry for split, entry in info.splits.items() if split not in replaced}
    if not kept:
        return wanted
    wanted.vocabulary.require_same(info.vocabulary.fingerprint, str(output))
    for name in ("settings", "tokenizers", "length"):
        if getattr(info, name) != getattr(wanted, name):
            raise SchemaError(
                f"{output}: {', '.join(kept)} packed with {name} {getattr(info, name)}, not "
                f"{getattr(wanted, name)}; "
                "replace all splits with --overwrite or give another --output"
            )
    return dataclasses.replace(info, splits=kept)


def summary(info: DatasetInfo) -> str:
    """A line a split and group: rows, documents, tokens, fill; then what was cut or dropped."""
    lines = []
    for split, entry in info.splits.items():
        for group, rows in entry["rows"].items():
            kept = entry["by_group"].get(group, {"documents": 0, "tokens": 0})
            lines.append(
                f"{split}/{group}: {rows} rows of {info.length}, {kept['documents']} documents, "
                f"{kept['tokens']} "
                f"tokens, fill {entry['fill'].get(group, 0):.2%}"
            )
            if entry["fill"].get(group, 1) < LOW_FILL and rows > 1:
                mean = kept["tokens"] / kept["documents"]
                better = -(-int(mean * (info.length // mean + 1) * 1.03) // 64) * 64
                texts = "" if group == "text" or info.settings.get("top_up") else "--top_up=text puts texts there, or "
                lines.append(
                    f"  low fill: whole documents of about {mean:.0f} tokens leave this room; {texts}try "
                    f"--length={better}"
                )
        if entry["cut"]["documents"]:
            lines.append(f"{split}: {entry['cut']['documents']} documents cut into {entry['cut']['pieces']} pieces")
        for reason, number in entry["dropped"].items():
            lines.append(f"{split}: {number} documents dropped ({reason}), {entry['dropped_tokens']} tokens")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, action="append", help="directory that build_shards wrote, may repeat: all as one"
    )
    parser.add_argument("--output", required=True, help="directory for the packed shards")
    parser.add_argument("--length", type=int, required=True, help="tokens a row")
    parser.add_argument("--split", action="append", default=[], help="split to pack, may repeat; default: all")
    parser.add_argument("--seed", type=int, default=0, help="order of documents")
    parser.add_argument("--overlong", choices=OVERLONG, default="error", help="documents longer than a row")
    parser.add_argument("--top_up", default="", help="group, such as text, that also fills the room in other rows")
    parser.add_argument("--unit_tokens", type=int, default=PackOptions.unit_tokens, help="tokens packed at once")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output")
    args = parser.parse_args(argv)
    try:
        options = PackOptions(args.length, args.seed, args.overlong, args.unit_tokens, args.top_up)
        info = pack(args.input, args.output, options, args.split, args.overwrite, show_progress=True)
    except (ValueError, OSError) as e:
        sys.exit(f"pack_shards: {e}")
    except KeyboardInterrupt:
        print("pack_shards: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)
    print(summary(info))


if __name__ == "__main__":
    main()
