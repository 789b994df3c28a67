"""Packing: nothing lost, nothing cut, rows full, splitting by rule."""

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


def test_a_cut_prefers_the_border_of_a_span():
    spans = (Span(Modality.TEXT, Role.PROMPT, 0, 7), Span(Modality.TEXT, Role.RESPONSE, 7, 15))
    doc = TokenDocument("d", "chat", "text", np.arange(15, dtype=np.int32), spans)
    assert [len(p.tokens) for p in packing.split_document(doc, 10)] == [7, 8]
    assert [len(p.tokens) for p in packing.split_document(doc, 15)] == [15]
