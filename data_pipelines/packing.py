"""Putting documents into rows of fixed length: best fit decreasing, splitting of over-long documents, assembly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ar_omni_jax.documents import Span, TokenDocument
from ar_omni_jax.vocabulary import Modality
from data_pipelines.schema import MAX_SEGMENTS, PackedExample, positions_of


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` grouped into rows whose sum is at most `capacity`.

    Longest first, each into the row that it leaves with the least room. Deterministic: equal lengths keep their
    order. Time O(n * capacity / 64): bit r of one integer says whether some row has room r.
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths must lie in [1, {capacity}], got {lengths.min()} .. {lengths.max()}")
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    present = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = present >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                present &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        left = room - length
        if left and len(rows[row]) < MAX_SEGMENTS:
            with_room[left].append(row)
            present |= 1 << left
    return rows


def pack_documents(lengths: Sequence[int], capacity: int, rng: np.random.Generator) -> list[list[int]]:
    """`best_fit_decreasing`, then the documents of each row and the rows themselves in random order.

    Without it long documents would stand first in every row, and full rows first in every shard.
    """
    rows = best_fit_decreasing(lengths, capacity)
    return [rng.permutation(rows[i]).tolist() for i in rng.permutation(len(rows))]


def fill_row(tokens: Sequence[np.ndarray], classes: Sequence[np.ndarray], length: int, pad: int) -> PackedExample:
    """Documents (ids int32 [n] and classes uint8 [n] each) one after another in a row, `pad` after the last."""
    sizes = [len(t) for t in tokens]
    used = sum(sizes)
    if used > length:
        raise ValueError(f"documents of {used} tokens do not fit a row of {length}")
    row_tokens = np.full(length, pad, np.int32)
    row_classes = np.zeros(length, np.uint8)
    segments = np.zeros(length, np.int32)
    if sizes:
        row_tokens[:used] = np.concatenate(tokens)
        row_classes[:used] = np.concatenate(classes)
        segments[:used] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    return PackedExample(row_tokens, segments, positions_of(segments), row_classes)


def split_document(doc: TokenDocument, length: int) -> list[TokenDocument]:
    """`doc` cut into pieces of at most `length` tokens, named id#0, id#1, ...; [doc] when it fits.

    A cut falls on a span's border where one lies in the second half of the piece, so that an image or an
    utterance stays whole if it can; never inside an image that would fit a row by itself; else at `length`.
    """
    if len(doc.tokens) <= length:
        return [doc]
    pieces, start = [], 0
    while start < len(doc.tokens):
        end = min(start + length, len(doc.tokens))
        if end < len(doc.tokens):
            end = _cut(doc.spans, start, end)
        spans = tuple(
            dataclasses.replace(s, start=max(s.start, start) - start, end=min(s.end, end) - start)
            for s in doc.spans
            if s.start < end and s.end > start
        )
        name = f"{doc.id}#{len(pieces)}"
        pieces.append(dataclasses.replace(doc, id=name, tokens=doc.tokens[start:end], spans=spans))
        start = end
    return pieces


def _cut(spans: Sequence[Span], start: int, end: int) -> int:
    """Where a piece from `start` that may reach `end` is to stop."""
    borders = [s.start for s in spans if start < s.start <= end]
    if borders and borders[-1] - start >= (end - start) / 2:
        return borders[-1]
    inside = next(s for s in spans if s.start <= end < s.end or s.end == end)
    whole = (
        inside.modality == Modality.IMAGE and start < inside.start < end and inside.end - inside.start <= end - start
    )
    return inside.start if whole else end


def unpack_row(example: PackedExample) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, classes) of each document of one row: the inverse of `fill_row`."""
    count = int(example.segment_ids.max(initial=0))
    places = [example.segment_ids == segment for segment in range(1, count + 1)]
    return [(example.tokens[place], example.token_class[place]) for place in places]
