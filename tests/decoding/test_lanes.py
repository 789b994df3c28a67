"""Rows dealt to several lanes on a CPU: how many lanes, and that a request's answer does not know of them."""

import concurrent.futures
import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.decoding import lanes, rows
from ar_omni_jax.decoding.engine import Engine, Request
from ar_omni_jax.decoding.guidance import Guidance
from ar_omni_jax.decoding.request import plan
from ar_omni_jax.model.tiled import TiledMatrix
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.model.transposed import TransposedMatrix
from tests.decoding.test_engine import REQUESTS, check_no_influence, make_engine
from tests.decoding.test_generate import CONFIG, HOT
from tests.decoding.test_grammar import VOCABULARY, check_answer


@pytest.mark.parametrize(
    ("rows", "megabytes", "cores", "expected"),
    [(8, 27, 2, 2), (8, 27, 1, 1), (8, 27, 16, 2), (32, 27, 16, 8), (12, 27, 2, 2), (9, 27, 2, 1), (4, 27, 2, 1),
     (1, 27, 2, 1), (8, 400, 2, 1), (10, 1, 2, 2), (15, 1, 4, 3)],
)  # fmt: skip
def test_lane_count(rows, megabytes, cores, expected):
    count = lanes.lane_count(rows, megabytes << 20, cores)
    assert count == expected
    assert rows % count == 0 and (count == 1 or rows // count >= lanes.ROWS_OF_A_LANE)


def make_laned(vendor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "cores", lambda: 2)
        patch.setattr(lanes, "processor_vendor", lambda: vendor)
        made = make_engine(rows=8)
    assert [lane.rows for lane in made._lanes] == [4, 4]
    return made


@pytest.fixture(scope="module")
def engine():
    return make_laned("AuthenticAMD")


def test_matrices_are_in_tiles_where_that_was_measured_to_be_faster(engine):
    for lane in engine._lanes:
        assert isinstance(lane._token_weights.layers[0].out, TiledMatrix)
        assert isinstance(lane._prompt_weights.layers[0].out, jax.Array)
        assert lane._token_weights.embedding is lane._prompt_weights.embedding  # held once
    for vendor in ("GenuineIntel", ""):
        for lane in make_laned(vendor)._lanes:
            assert lane._token_weights is lane._prompt_weights
            assert isinstance(lane._token_weights.layers[0].out, jax.Array)


def make_uncached(vendor):
    """An engine whose weights are too large for the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "CACHED_BYTES", 0)
        patch.setattr(lanes, "processor_vendor", lambda: vendor)
        made = make_engine(rows=8)
    assert len(made._lanes) == 1
    return made


@pytest.fixture(scope="module")
def uncached():
    return make_uncached("GenuineIntel")


def test_matrices_that_no_cache_holds_are_transposed_where_that_was_measured_to_be_faster(uncached):
    lane = uncached._lanes[0]
    assert lane._token_weights is lane._prompt_weights  # held once
    assert isinstance(lane._token_weights.layers[0].out, TransposedMatrix)
    for vendor in ("AuthenticAMD", ""):
        assert isinstance(make_uncached(vendor)._lanes[0]._token_weights.layers[0].out, jax.Array)


@settings(max_examples=8, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=12), st.randoms())
def test_no_row_influences_another_with_transposed_matrices(uncached, requests, random):
    check_no_influence(uncached, requests, random)


@settings(max_examples=15, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=12), st.randoms())
def test_an_answer_does_not_depend_on_its_lane(engine, requests, random):
    check_no_influence(engine, requests, random)


def test_both_lanes_work_at_once_and_are_refilled(engine):
    requests = [Request(np.arange(1, 4 + i % 9, dtype=np.int32), "tts", seed=i, strategies=HOT) for i in range(30)]
    seen, finished, begun = set(), set(), set()
    for event in engine.stream(requests):
        assert event.error is None
        begun.add(event.index)
        seen.add(tuple(len(lane.answers) for lane in engine._lanes))
        finished |= {event.index} if event.done else set()
        assert len(begun) <= len(finished) + 8
    assert finished == set(range(30))
    assert max(min(pair) for pair in seen) == 4


def test_stopped_and_closed_streams_leave_both_lanes_usable(engine):
    requests = [Request(np.arange(1, 5, dtype=np.int32), "tts", seed=i, strategies=HOT) for i in range(12)]
    whole = engine.generate(requests)
    errors = {}
    for event in engine.stream(requests):
        engine.stop(3), engine.stop(4)
        if event.error is not None:
            errors[event.index] = str(event.error)
    assert set(errors) == {3, 4} and all("stopped" in text for text in errors.values())
    stream = engine.stream(requests)
    next(stream)
    stream.close()
    for ours, before in zip(engine.generate(requests), whole, strict=True):
        assert np.array_equal(ours, before)


def test_guided_requests_have_their_branches_in_one_lane(engine):
    guidance = Guidance(text_scale=2.0, image_scale=1.5, image_only=[0, 5, 6])
    requests = [Request(np.arange(6, dtype=np.int32), "t2i", seed=i, guidance=guidance) for i in range(5)]
    for request, answer in zip(requests, engine.generate(requests), strict=True):
        check_answer("t2i", answer)
        assert np.array_equal(answer, engine.generate([request])[0])


def test_what_goes_wrong_on_a_lanes_thread_is_raised(engine, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no memory for the prompt")

    request = Request(np.arange(6, dtype=np.int32), "tts")
    with monkeypatch.context() as patch:
        for lane in engine._lanes:
            patch.setattr(lane, "_read_prompt", broken)
        with pytest.raises(RuntimeError, match="no memory for the prompt"):
            engine.generate([request])
        lane = engine._lanes[0]  # as a stream that is closed between a prompt and its first chunk
        lane.admit(0, "abandoned", plan(request, "abandoned", engine.vocabulary, engine.capacity))
        concurrent.futures.wait(lane._begun)
        lane.abandon()
    check_answer("tts", engine.generate([request])[0])


def test_options_that_the_compiler_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(rows, "SINGLE_THREAD", {"xla_cpu_multi_thread_eigen": False, "xla_cpu_gone_by_now": 1})
    rows.known_options.cache_clear()
    assert rows.known_options() == {"xla_cpu_multi_thread_eigen": False}
    monkeypatch.undo()
    rows.known_options.cache_clear()
    assert "xla_cpu_multi_thread_eigen" in rows.known_options()


ROOMY = dataclasses.replace(CONFIG, max_length=300)


@pytest.fixture(scope="module")
def roomy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "cores", lambda: 2)
        made = Engine(Transformer(ROOMY, rngs=nnx.Rngs(1)), VOCABULARY, rows=8, chunk=16)
    assert len(made._lanes) == 2
    return made


def rooms(engine):
    return [lane._state.cache.capacity for lane in engine._lanes]


def test_rows_have_the_room_they_need_and_its_size_changes_no_bit(roomy):
    lengths = (3, 20, 50, 90, 140, 200, 7, 30)
    requests = [
        Request(np.arange(n, dtype=np.int32) % 50, "tts", seed=n, strategies=HOT, budgets={"speech": 60})
        for n in lengths
    ]
    together = roomy.generate(requests)
    assert max(rooms(roomy)) == 320
    alone_rooms = []
    for request, answer in zip(requests, together, strict=True):
        assert np.array_equal(answer, roomy.generate([request])[0])
        alone_rooms.append(rooms(roomy)[0])  # which gets what comes to empty lanes
    assert alone_rooms[0] <= 128 < max(alone_rooms)
    assert alone_rooms[-1] <= 128  # an empty lane gives back what it had


def test_room_is_a_multiple_of_its_step_and_ends_at_the_capacity():
    assert [lanes._room(reach, 300) for reach in (0, 64, 65, 129, 257, 300, 999)] == [64, 64, 128, 256, 320, 320, 320]
    assert lanes._room(500, 40) == 64
