"""One JSON object a line, written as results come: what is there after a kill is kept, if it is of this run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar_omni_jax.files import replace_file

# What an entry of a record must be, for `RecordFile.require`.
TEXT, NUMBER, TEXTS = "text", "number", "list of texts"


class RecordError(ValueError):
    """A file of records that belongs to another run or is damaged; the message says which, and what to do."""


class RecordFile:
    """Records by index in `path`, under a header that says all that they depend on.

    The first line is {"header": …}; each further one is a record with its "index", the last of an index being valid. A
    last line that a kill cut short is dropped.

    Args:
      on_change: "anew" drops the records of another header and says so; "refuse" raises RecordError.
    Attributes: records: {index: record}.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], on_change: str = "anew"):
        self.path, self.records = path, {}
        self._lines: dict[int, int] = {}  # of the records that were read
        self._header = json.loads(json.dumps(header))
        if path.is_file():
            self._read(on_change)
        if not path.is_file():
            replace_file(path, _line({"header": self._header}))

    def _read(self, on_change: str) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rows = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                if number > 1 and not isinstance(row["index"], int):
                    raise ValueError("its index is no number")
                rows.append(row if number > 1 else row.get("header"))
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise RecordError(f"{self.path}: line {number} is damaged ({error!r}); remove the file") from error
        header = rows[0] if rows and isinstance(rows[0], dict) else None
        if header != self._header:
            self._another(header, len({row["index"] for row in rows[1:]}), on_change)
            return
        self.records = {row["index"]: row for row in rows[1:]}
        self._lines = {row["index"]: number for number, row in enumerate(rows[1:], 2)}
        if whole != data:
            replace_file(self.path, whole)

    def _another(self, header: Mapping | None, count: int, on_change: str) -> None:
        """Another run's file: gone, or an error."""
        mine, theirs = self._header, header or {}
        changed = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        what = f"{self.path} holds {count} records of another run ({', '.join(changed) or 'no header'} differ)"
        if on_change == "refuse":
            raise RecordError(f"{what}; give another --output, or --on_change=anew to drop them")
        if count:
            print(f"{what}; beginning anew", flush=True)
        self.path.unlink()

    def require(self, index: int, entries: Mapping[str, str]) -> None:
        """RecordError, with the line, unless the record that was read of `index` has all `entries`, {key: kind}."""
        record = self.records[index]
        for key, kind in entries.items():
            if key in record and _is_of(record[key], kind):
                continue
            why = f"its {key} is no {kind}" if key in record else f"it has no {key}"
            raise RecordError(
                f"{self.path}: line {self._lines[index]} is damaged ({why}); remove the line, or the file, and what it "
                "held is made again"
            )

    def append(self, index: int, record: Mapping[str, Any]) -> None:
        """Adds a record; it is on its way to the disk when this returns."""
        row = {"index": index, **record}
        with open(self.path, "ab") as file:
            file.write(_line(row))
        self.records[index] = json.loads(json.dumps(row))


def _is_of(value: Any, kind: str) -> bool:
    if kind == TEXTS:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return isinstance(value, str if kind == TEXT else int | float)


def _line(record: Mapping) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
