"""Which columns of a parquet file are meant, and the ids of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ar_omni_jax.documents import Document, DocumentError
from data_pipelines.sources.base import Record
from data_pipelines.sources.options import SourceOptions
from data_pipelines.sources.parquet_rows import ParquetFile, ParquetRows, Row


def find_column(
    file: ParquetFile,
    what: str,
    options: SourceOptions,
    fits: Callable[[Any], bool],
    kind: str,
    usual: Sequence[str] = (),
) -> str:
    """The column for `what`: the one that the user named, or the first of `usual`, or the only one that `fits`.

    Args:
      fits: whether a pyarrow type can be it; kind: that in words.
    Raises DocumentError, without the file's name, with the columns that there are.
    """
    types = {field.name: field.type for field in file.schema}
    there = f"its columns are {', '.join(f'{name} ({_short(type)})' for name, type in types.items())}"
    named = options.column(what)
    if named is not None:
        if named not in types:
            raise DocumentError(f"no column {named!r} for the {what}; {there}")
        if not fits(types[named]):
            raise DocumentError(f"column {named!r} cannot be the {what}: it is not {kind}; {there}")
        return named
    found = [name for name, type in types.items() if fits(type)]
    if usual:
        found = [name for name in usual if name in found][:1]
    if len(found) == 1:
        return found[0]
    wanted = f"that is {kind}" + (f" and called {', '.join(usual)}" if usual else "")
    number = f"more than one column ({', '.join(found)})" if found else "no column"
    raise DocumentError(f"{number} {wanted} for the {what}; {there}; name the right one with --columns={what}:NAME")


def find_id(file: ParquetFile, options: SourceOptions) -> str | None:
    """The column that the user named for ids, if any."""
    if options.column("id") is None:
        return None
    return find_column(file, "id", options, lambda _: True, "a value")


def is_text(kind: Any) -> bool:
    """Whether a pyarrow type holds strings, as they are or as places in a list of them (pandas' categories)."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def row_ids(rows: ParquetRows, options: SourceOptions) -> Iterator[str | None]:
    """The id of each row, None where it has none; reads nothing unless a column is named for them."""
    column = options.column("id")
    if column is None:
        for file in rows.files:
            yield from (f"{file.name}/{number}" for number in range(sum(file.groups)))
            if file.fault:
                yield None
        return
    for row in rows.rows(0, len(rows), lambda file: [find_id(file, options)]):
        yield None if row.error else row_id(row, column)


def row_id(row: Row, column: str | None) -> str | None:
    """FILE/ROW, or FILE/ID by the column for ids; None where the row has none."""
    value = row.number if column is None else (row.values or {}).get(column)
    return None if value is None or row.number < 0 else f"{row.file.name}/{value}"


def record_of(row: Row, options: SourceOptions, document: Callable[[Row, str], Document]) -> Record:
    """The record of a row; `document` makes its document of the row and its id, or raises DocumentError."""
    column = options.column("id")
    name = row_id(row, column)
    try:
        if row.error:
            raise DocumentError(row.error)
        if name is None:
            raise DocumentError(f"{row.where}: no id in column {column!r}; supply it, or let rows be counted")
        return Record(row.index, row.where, name, document(row, name))
    except DocumentError as e:
        return Record(row.index, row.where, name or "", error=str(e))


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 40 else text[:37] + "..."
