"""Packing: nothing lost, nothing cut, rows full, splitting by rule."""

import itertools

import numpy as np
import pytest
from corpus import make_document
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.documents import Role, Span, TokenDocument
from ar_omni_jax.vocabulary import Modality
from data_pipelines import packing, schema


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
def test_every_index_is_in_one_row_and_rows_fit(case):
    capacity, lengths = case
    rows = packing.pack_documents(lengths, capacity, np.random.default_rng(0))
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < s <= capacity for s in sums)
    if sums:  # best fit leaves at most one row that is half empty
        assert sum(s <= capacity // 2 for s in sums) <= 1


def test_each_document_goes_where_least_room_is_left():
    rows = packing.best_fit_decreasing([6, 7, 3, 4, 2], 10)
    assert sorted(map(sorted, rows)) == [[0, 3], [1, 2], [4]]


def test_fill_on_toy_lengths_is_above_98_percent():
    lengths = np.random.default_rng(0).integers(20, 401, 3000)
    rows = packing.best_fit_decreasing(lengths, 512)
    assert lengths.sum() / (len(rows) * 512) >= 0.98


# Lengths of documents: published codecs (1024 codes an image, LAION's captions; 40 tokens a second of MLS; web pages),
# and the toy world's, which crowd around the sizes that its sentences make.
def laion(rng, n):
    return rng.integers(1030, 1110, n)


def mls(rng, n):
    return rng.integers(200, 1301, n)


def pages(rng, n):
    return np.clip(np.exp(rng.normal(6.2, 1.1, n)).astype(int), 30, 4000)


def toy_images(rng, n):
    center = rng.choice([88, 97, 106], n, p=[0.49, 0.34, 0.17])
    long = rng.integers(200, 380, n)
    return np.where(rng.random(n) < 0.02, long, center + rng.integers(-2, 4, n))


def toy_speech(rng, n):
    short = rng.normal(78, 15, n).astype(int).clip(40, 130)
    return np.where(rng.random(n) < 0.2, rng.integers(140, 220, n), short)


def fill(lengths, rows, capacity):
    return lengths.sum() / (len(rows) * capacity)


def bound(lengths, capacity):
    """Rows that no packing of whole documents can do without: as many as tokens need, and by counts, since of
    documents longer than capacity / (k + 1) at most k stand in a row (Fekete and Schepers' dual feasible functions)."""
    times = (np.arange(1, 40)[:, None] + 1) * lengths
    count = np.where(times % capacity == 0, lengths / capacity, times // capacity / np.arange(1, 40)[:, None])
    return max(-(-lengths.sum() // capacity), count.sum(1).max())


CASES = [(mls, 4096), (mls, 8192), (pages, 4096), (pages, 8192), (toy_speech, 512), (toy_images, 1024), (laion, 4352)]


@pytest.mark.parametrize(("draw", "capacity"), CASES)
def test_fill_of_real_lengths_is_above_98_percent(draw, capacity):
    lengths = draw(np.random.default_rng(0), 6000)
    rows = packing.pack_documents(lengths, capacity, np.random.default_rng(1))
    assert fill(lengths, rows, capacity) >= 0.98


@pytest.mark.parametrize(("draw", "shorter", "length"), [(pages, 512, 4096), (mls, 512, 4096), (pages, 2048, 4096)])
def test_longer_rows_fill_up_unless_they_are_but_twice_as_long(draw, shorter, length):
    """With what the shorter rows do not hold: of more than half a row each stands alone."""
    drawn = draw(np.random.default_rng(0), 6000)
    there = drawn[drawn > shorter]
    rows = packing.pack_documents(there, length, np.random.default_rng(1))
    if length > 2 * shorter:
        assert fill(there, rows, length) >= 0.98
    else:
        assert len(rows) == len(there) and fill(there, rows, length) < 0.8


@pytest.mark.parametrize(("draw", "capacity"), [(laion, 4096), (laion, 8192), (toy_images, 512), (toy_images, 576)])
def test_where_whole_documents_cannot_fill_rows_no_packing_is_better(draw, capacity):
    lengths = draw(np.random.default_rng(0), 6000)
    rows = packing.pack_documents(lengths, capacity, np.random.default_rng(1))
    assert len(rows) <= bound(lengths, capacity) * 1.005 + 1


def test_crowded_lengths_need_the_second_way_of_packing():
    lengths = toy_images(np.random.default_rng(0), 6000)
    best_fit = packing.best_fit_decreasing(lengths, 1024)
    closest = packing.closest_sum_rows(lengths, 1024, np.random.default_rng(1))
    assert fill(lengths, best_fit, 1024) < 0.97 and fill(lengths, closest, 1024) > 0.99


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=120))))
def test_rows_of_closest_sums_hold_every_index_once(case):
    capacity, lengths = case
    one, again = (packing.closest_sum_rows(lengths, capacity, np.random.default_rng(0)) for _ in range(2))
    assert one == again
    assert sorted(i for row in one for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= capacity for row in one)


TOPPED_UP = [(laion, 4096, 12_000), (laion, 8192, 6000), (toy_images, 512, 0)]


@pytest.mark.parametrize(("draw", "capacity", "texts"), TOPPED_UP)
def test_topping_up_fills_what_whole_documents_leave(draw, capacity, texts):
    rng = np.random.default_rng(0)
    lengths = draw(rng, 3000)
    extra = pages(rng, texts) if texts else rng.integers(11, 58, 3000)
    rows = packing.pack_documents(lengths, capacity, np.random.default_rng(1))
    rooms = [capacity - int(lengths[row].sum()) for row in rows]
    added = packing.top_up(rooms, extra)
    assert (lengths.sum() + sum(extra[row].sum() for row in added)) / (len(rows) * capacity) >= 0.98


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=20), st.lists(st.integers(1, 50), max_size=60))
def test_topping_up_takes_each_document_once_and_never_too_many(rooms, lengths):
    added = packing.top_up(rooms, lengths)
    assert len(added) == len(rooms)
    assert all(sum(lengths[i] for i in row) <= room for row, room in zip(added, rooms, strict=True))
    taken = [i for row in added for i in row]
    assert len(set(taken)) == len(taken)
    left = [length for i, length in enumerate(lengths) if i not in taken]
    for row, room in zip(added, rooms, strict=True):  # nothing that is left would have gone into a row as it is
        assert all(length > room - sum(lengths[i] for i in row) for length in left)


def test_order_is_mixed_but_a_function_of_the_seed():
    lengths = np.random.default_rng(1).integers(500, 6000, 400)
    one, again, other = (packing.pack_documents(lengths, 10_000, np.random.default_rng(s)) for s in (3, 3, 4))
    assert one == again != other
    first_longest = [lengths[row[0]] == max(lengths[i] for i in row) for row in one if len(row) > 2]
    assert np.mean(first_longest) < 0.7


def test_lengths_outside_a_row_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 8\], got 3 .. 9"):
        packing.best_fit_decreasing([3, 9], 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(4, 12), max_size=4), st.integers(0, 1000))
def test_row_assembly_has_an_inverse(lengths, seed):
    rng = np.random.default_rng(seed)
    docs = [make_document(str(i), int(rng.integers(5)), n, rng) for i, n in enumerate(lengths)]
    row = packing.fill_row([d.tokens for d in docs], [d.classes() for d in docs], 50, pad=1)
    schema.check_packed(row)
    assert (row.tokens[sum(lengths) :] == 1).all() and (row.token_class[sum(lengths) :] == 0).all()
    back = packing.unpack_row(row)
    assert len(back) == len(docs)
    for (tokens, classes), doc in zip(back, docs, strict=True):
        np.testing.assert_array_equal(tokens, doc.tokens)
        np.testing.assert_array_equal(classes, doc.classes())


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Modality), st.integers(1, 30)), min_size=1, max_size=8), st.integers(4, 40))
def test_pieces_are_valid_and_join_to_the_document(runs, length):
    spans, end = [], 0
    for modality, n in runs:
        spans.append(Span(modality, Role.RESPONSE, end, end + n))
        end += n
    doc = TokenDocument("d", "chat", "speech", np.arange(end, dtype=np.int32), tuple(spans))
    pieces = packing.split_document(doc, length)
    assert all(0 < len(p.tokens) <= length for p in pieces)
    for piece in pieces:
        schema.check_document(piece)
    np.testing.assert_array_equal(np.concatenate([p.tokens for p in pieces]), doc.tokens)
    np.testing.assert_array_equal(np.concatenate([p.classes() for p in pieces]), doc.classes())
    assert len({p.id for p in pieces}) == len(pieces)
    cuts = set(np.cumsum([len(p.tokens) for p in pieces])[:-1].tolist())
    for span in spans:
        if span.modality == Modality.IMAGE and span.end - span.start <= length:
            assert not cuts & set(range(span.start + 1, span.end)), "an image that fits a row was cut"


MARKER, TEXT, IMAGE, SPEECH = Modality.MARKER, Modality.TEXT, Modality.IMAGE, Modality.SPEECH


def dialogue(*rounds):
    """A document as templates write it, of (question, answer) that are lists of (modality, tokens), media between
    markers; where its rounds begin; and where its media stand with their markers."""
    runs, starts, media, at = [], [], [], 0
    for asked, answered in rounds:
        starts.append(at)
        parts = [(MARKER, 1, Role.PROMPT), *((*part, Role.PROMPT) for part in asked), (MARKER, 1, Role.PROMPT)]
        parts += [*((*part, Role.RESPONSE) for part in answered), (MARKER, 1, Role.RESPONSE)]
        for modality, count, role in parts:
            around = [(MARKER, 1)] if modality in (IMAGE, SPEECH) else []
            media += [(at, at + count + 2)] if around else []
            for kind, n in [*around, (modality, count), *around]:
                runs += [(kind, role)] * n
                at += n
    borders = [0, *(i for i in range(1, at) if runs[i] != runs[i - 1]), at]
    spans = tuple(Span(*runs[first], first, last) for first, last in itertools.pairwise(borders))
    return TokenDocument("d", "chat", "speech", np.arange(at, dtype=np.int32), spans), starts, media


PARTS = st.lists(st.tuples(st.sampled_from([TEXT, IMAGE, SPEECH]), st.integers(1, 25)), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=5), st.integers(6, 60))
def test_media_that_fit_a_row_keep_their_markers(rounds, length):
    doc, _, media = dialogue(*rounds)
    pieces = packing.split_document(doc, length)
    np.testing.assert_array_equal(np.concatenate([p.tokens for p in pieces]), doc.tokens)
    np.testing.assert_array_equal(np.concatenate([p.classes() for p in pieces]), doc.classes())
    assert all(0 < len(p.tokens) <= length for p in pieces)
    cuts = set(np.cumsum([len(p.tokens) for p in pieces])[:-1].tolist())
    for first, last in media:
        if last - first <= length:
            assert not cuts & set(range(first + 1, last)), (first, last, cuts)


def test_dialogues_are_cut_between_their_rounds():
    question, answer = [(TEXT, 10)], [(TEXT, 30)]
    doc, starts, _ = dialogue(*[(question, answer)] * 6)
    size = starts[1]
    for length in range(size, 3 * size):
        pieces = packing.split_document(doc, length)
        cuts = set(np.cumsum([len(p.tokens) for p in pieces])[:-1].tolist())
        assert cuts <= set(starts), length


def test_a_cut_prefers_the_border_of_a_span():
    spans = (Span(Modality.TEXT, Role.PROMPT, 0, 7), Span(Modality.TEXT, Role.RESPONSE, 7, 15))
    doc = TokenDocument("d", "chat", "text", np.arange(15, dtype=np.int32), spans)
    assert [len(p.tokens) for p in packing.split_document(doc, 10)] == [7, 8]
    assert [len(p.tokens) for p in packing.split_document(doc, 15)] == [15]
