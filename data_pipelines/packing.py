"""Putting documents into rows of fixed length: two ways of packing, splitting of over-long documents, assembly.

Best fit decreasing is near the optimum where lengths are spread over all of a row, and loses 2 to 7 % where they
crowd around a few values (scenes of 86 to 110 tokens in rows of 1024): it uses up the longest first, and what is left
does not add up. `closest_sum_rows` chooses documents whose sum is the row, from a random part of them, so that what
is left stays like the whole. The better of the two is taken. Neither can pass the bound of whole documents: three
of 1060 tokens leave a quarter of a row of 4096 empty; `top_up` puts documents of another group there.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ar_omni_jax.documents import Role, Span, TokenDocument
from ar_omni_jax.responses import BRACKETS
from ar_omni_jax.vocabulary import Modality
from data_pipelines.schema import MAX_SEGMENTS, PackedExample, positions_of

_WINDOW = 64  # documents to choose from, at least
_GOOD_ENOUGH = 1.002  # rows for each row of a perfect packing


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


def closest_sum_rows(lengths: Sequence[int], capacity: int, rng: np.random.Generator) -> list[list[int]]:
    """Indices of `lengths` grouped into rows whose sum is at most `capacity`, as `best_fit_decreasing`.

    Documents wait in random order; each row takes the one that has waited longest and those others that together
    fill it best. Deterministic for a state of `rng`. Time O(n * capacity / 64), the sums being bits of integers.
    """
    sizes = np.asarray(lengths, np.int64).tolist()
    queue = iter(rng.permutation(len(sizes)).tolist())
    waiting: list[int] = []
    rows: list[list[int]] = []
    total = 0  # tokens waiting
    while True:
        while len(waiting) < _WINDOW or total < 2 * capacity:
            if (index := next(queue, None)) is None:
                break
            waiting.append(index)
            total += sizes[index]
        if not waiting:
            return rows
        first, *others = waiting
        row = [first, *_closest(others, sizes, capacity - sizes[first])]
        placed = set(row)
        waiting = [index for index in waiting if index not in placed]
        total -= sum(sizes[index] for index in row)
        rows.append(row)


def _closest(indices: Sequence[int], sizes: Sequence[int], room: int) -> list[int]:
    """Those of `indices` whose sizes have the largest sum up to `room`, from the first ones where they reach it."""
    reached = [1]  # bit s of element i: the first i sizes have a subset of sum s
    mask, full = (1 << (room + 1)) - 1, 1 << room
    for index in indices:
        reached.append((reached[-1] | reached[-1] << sizes[index]) & mask)
        if reached[-1] & full:
            break
    rest = reached[-1].bit_length() - 1
    chosen = []
    for i in range(len(reached) - 1, 0, -1):
        if not reached[i - 1] >> rest & 1:
            chosen.append(indices[i - 1])
            rest -= sizes[indices[i - 1]]
    return chosen[: MAX_SEGMENTS - 1]


def pack_documents(lengths: Sequence[int], capacity: int, rng: np.random.Generator) -> list[list[int]]:
    """The fewer rows of `best_fit_decreasing` and `closest_sum_rows`, with their documents, in random order.

    Without that long documents would stand first in every row, and full rows first in every shard.
    """
    rows = best_fit_decreasing(lengths, capacity)
    if len(rows) > np.sum(lengths) / capacity * _GOOD_ENOUGH + 1:
        rows = min(rows, closest_sum_rows(lengths, capacity, rng), key=len)
    return [rng.permutation(rows[i]).tolist() for i in rng.permutation(len(rows))]


def top_up(rooms: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """For each row with so much room left, indices of the documents of `lengths` that fill it, each at most once.

    Of the documents that fit, the longest are tried first. Deterministic.
    """
    sizes = np.asarray(lengths, np.int64).tolist()
    stock: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        stock.setdefault(size, []).append(index)
    present = sorted(stock)
    added = []
    for room in rooms:
        candidates: list[int] = []
        for at in range(bisect.bisect_right(present, room) - 1, -1, -1):
            candidates += stock[present[at]][-(room // present[at]) :]
            if len(candidates) >= _WINDOW:
                break
        added.append([stock[sizes[index]].pop() for index in _closest(candidates, sizes, room)])
        present = [size for size in present if stock[size]] if any(not stock[sizes[i]] for i in added[-1]) else present
    return added


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

    A cut falls where an answer has ended and the next question begins, if that is in the second half of the piece,
    else on a border of other spans there, else at `length`. An image or utterance that fits a row with its markers is
    never cut, nor parted from them.
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
    borders = [(best, place) for place, best in _borders(spans) if start < place <= end and 2 * place >= start + end]
    if borders:
        return max(borders)[1]
    for first, last in _media(spans):
        if start < first < end < last and last - first <= end - start:
            return first
    return end


def _borders(spans: Sequence[Span]) -> Iterator[tuple[int, bool]]:
    """(place, whether an answer ends there) of the borders between spans, in order. Between the codes of a medium and
    the marker beside them is none: it lies beyond the marker."""
    for before, after in itertools.pairwise(spans):
        place = after.start
        if after.modality in BRACKETS and before.modality == Modality.MARKER:
            place -= 1
        elif before.modality in BRACKETS and after.modality == Modality.MARKER:
            place += 1
        yield place, before.role == Role.RESPONSE and after.role == Role.PROMPT


def _media(spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """(first token, one behind the last) of each image and utterance with the markers beside it, then without."""
    for before, span, after in zip([None, *spans], spans, [*spans[1:], None], strict=False):
        if span.modality in BRACKETS:
            opened, closed = (side is not None and side.modality == Modality.MARKER for side in (before, after))
            yield span.start - opened, span.end + closed
            yield span.start, span.end


def unpack_row(example: PackedExample) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, classes) of each document of one row: the inverse of `fill_row`."""
    count = int(example.segment_ids.max(initial=0))
    places = [example.segment_ids == segment for segment in range(1, count + 1)]
    return [(example.tokens[place], example.token_class[place]) for place in places]
