"""Rows do not influence each other, answers parse, bad requests fail alone, streams tell what generate tells."""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.decoding.engine import Engine, GenerationError, Request
from ar_omni_jax.decoding.grammar import TaskGrammar
from ar_omni_jax.decoding.guidance import Guidance
from ar_omni_jax.decoding.strategy import GREEDY, ModeSwitch, Strategy
from ar_omni_jax.documents import TASKS
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.parallel.mesh import make_mesh
from tests.decoding.test_generate import CONFIG, HOT
from tests.decoding.test_grammar import VOCABULARY, check_answer

ROWS = 3


def make_engine(seed: int = 7, **options) -> Engine:
    return Engine(Transformer(CONFIG, rngs=nnx.Rngs(seed)), VOCABULARY, **({"rows": ROWS, "chunk": 5} | options))


@pytest.fixture(scope="module")
def engines():
    return [make_engine(seed) for seed in range(3)]


PICKINGS = (
    HOT["text"],
    GREEDY,
    Strategy(temperature=2.0, top_k=5, min_p=0.1),
    Strategy(temperature=1.5, repetition_penalty=1.7, penalty_scope="answer"),
    Strategy(greedy=True, repetition_penalty=3.0, penalty_scope="part"),
    Strategy(top_p=0.7, repetition_penalty=1.2),
)
PROMPTS = st.lists(st.integers(0, VOCABULARY.size - 1), min_size=1, max_size=30)
REQUESTS = st.builds(
    Request,
    prompt=PROMPTS.map(lambda ids: np.array(ids, np.int32)),
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 2**32 - 1),
    strategies=st.dictionaries(st.sampled_from(("text", "image", "speech")), st.sampled_from(PICKINGS)),
    budgets=st.dictionaries(st.sampled_from(("text", "speech")), st.integers(1, 12)),
    max_new_tokens=st.one_of(st.none(), st.integers(10, 30)),
    guidance=st.sampled_from((None, None, Guidance(), Guidance(2.0, 1.5, image_only=[0, 5, 6]))),
)


def check_no_influence(engine, requests, random) -> list[np.ndarray]:
    """The answers, after holding them against those in another order of arrival, and so in other rows (and lanes) and
    with other neighbours, and against those of each request alone."""
    order = list(range(len(requests)))
    random.shuffle(order)
    together = engine.generate(requests)
    shuffled = dict(zip(order, engine.generate([requests[i] for i in order]), strict=True))
    for i, request in enumerate(requests):
        assert not isinstance(together[i], Exception), together[i]
        assert np.array_equal(together[i], shuffled[i])
        assert np.array_equal(together[i], engine.generate([request])[0])
        check_answer(request.task, together[i])
    return together


@settings(max_examples=25, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=6), st.integers(0, 2), st.randoms())
def test_answers_parse_and_no_row_influences_another(engines, requests, model, random):
    together = check_no_influence(engines[model], requests, random)
    for i, request in enumerate(requests):
        assert len(together[i]) <= (request.max_new_tokens or CONFIG.max_length - len(request.prompt))
        for kind, largest in request.budgets.items():
            assert longest_run(together[i], VOCABULARY.range_of({"text": 0, "speech": 2}[kind])) <= largest


def longest_run(tokens, ids) -> int:
    """The longest run of ids of one range."""
    runs, run = [0], 0
    for token in tokens.tolist():
        run = run + 1 if ids.start <= token < ids.stop else 0
        runs.append(run)
    return max(runs)


def test_more_requests_than_rows_are_answered_as_they_come(engines):
    requests = [Request(np.arange(1, 4 + i, dtype=np.int32), "tts", seed=i, strategies=HOT) for i in range(11)]
    parts, finished = {i: [] for i in range(11)}, []
    for event in engines[0].stream(iter(requests)):
        assert event.error is None and event.index not in finished
        if not parts[event.index]:
            assert len(event.tokens) == 1  # the first token is told at once
        parts[event.index].append(event.tokens)
        if event.done:
            finished.append(event.index)
            begun = sum(bool(p) for p in parts.values())
            assert begun <= len(finished) + ROWS
    whole = engines[0].generate(requests)
    assert sorted(finished) == list(range(11))
    for i in range(11):
        assert np.array_equal(np.concatenate(parts[i]), whole[i])
    assert max(len(p) for p in parts.values()) > 2  # told in pieces


def test_bad_requests_fail_alone(engines):
    prompt = np.arange(5, dtype=np.int32)
    bad = {
        "unknown task 'ocr'; known tasks: .*tts": Request(prompt, "ocr"),
        "prompt of 58 tokens, max_length 60": Request(np.zeros(58, np.int32), "tts"),
        "prompt of 50 tokens and max_new_tokens 20 exceed max_length 60": Request(
            np.zeros(50, np.int32), "tts", max_new_tokens=20
        ),
        "id 99 at position 0 is outside": Request(np.array([99]), "tts"),
        "id -1 at position 1": Request(np.array([0, -1]), "tts"),
        "non-empty": Request(prompt[:0], "tts"),
        "float64; give integers": Request(prompt / 2, "tts"),
        "text_scale = nan": Request(prompt, "t2i", guidance=Guidance(text_scale=float("nan"))),
        "image_scale = inf": Request(prompt, "t2i", strategies={"image": Strategy(guidance=Guidance(1.0, np.inf))}),
        "unconditional is empty": Request(prompt, "t2i", guidance=Guidance(unconditional=())),
        r"budgets\['video'\]": Request(prompt, "tts", budgets={"video": 3}),
        "needs at least 9 .* 5 are allowed": Request(prompt, "t2i", max_new_tokens=5),
        "more than 16": Request(prompt, TaskGrammar(("speech",) * 9, "eos")),
    }
    good = Request(prompt, "tts", strategies=HOT)
    mixed = [request for one in bad.values() for request in (one, good)]
    answers = engines[1].generate(mixed)
    (alone,) = engines[1].generate([good])
    for place, message in enumerate(bad):
        error = answers[2 * place]
        assert isinstance(error, GenerationError) and str(error).startswith(f"prompt {2 * place}"), error
        with pytest.raises(GenerationError, match=message):
            raise error
        assert np.array_equal(answers[2 * place + 1], alone)


def test_a_request_named_by_its_caller_is_named_in_errors(engines):
    (error,) = engines[0].generate([Request(np.arange(3), "ocr", id="call 17")])
    assert "(call 17)" in str(error)


def test_a_stop_in_the_middle_ends_that_request_alone(engines):
    engine, told = engines[0], []
    endless = {"speech": Strategy(temperature=9.0)}
    requests = [Request(np.arange(3), "tts", seed=i, strategies=endless, max_new_tokens=40) for i in range(4)]
    whole = engine.generate(requests)
    long = int(np.argmax([len(a) for a in whole]))
    assert len(whole[long]) > 12
    for event in engine.stream(requests):
        told.append(event)
        if event.index == long:
            engine.stop(long)
    last = {event.index: event for event in told if event.done}
    assert "stopped after" in str(last[long].error) and len(last) == 4
    for i in set(range(4)) - {long}:
        assert np.array_equal(np.concatenate([e.tokens for e in told if e.index == i]), whole[i])


def test_a_closed_stream_leaves_the_engine_usable(engines):
    engine = engines[2]
    request = Request(np.arange(3), "tts", strategies=HOT)
    (before,) = engine.generate([request])
    stream = engine.stream([Request(np.arange(9), "chat", seed=i, strategies=HOT) for i in range(5)])
    next(stream)
    with pytest.raises(GenerationError, match="streaming already"):
        next(engine.stream([request]))
    stream.close()
    assert np.array_equal(engine.generate([request])[0], before)


def test_a_source_may_have_nothing_for_now(engines):
    request = Request(np.arange(3), "tts", strategies=HOT)

    def source():
        yield None
        yield request
        yield None
        yield None
        yield request

    answers = {0: [], 1: []}
    for event in engines[0].stream(source()):
        answers[event.index].append(event.tokens)
    (alone,) = engines[0].generate([request])
    assert all(np.array_equal(np.concatenate(parts), alone) for parts in answers.values())


def test_memory_does_not_grow_with_the_answer():
    engine = make_engine(rows=2)

    def held():
        return sum(array.nbytes for array in jax.live_arrays())

    engine.generate([Request(np.arange(3), "tts", strategies=HOT, max_new_tokens=6)])
    before, most = held(), 0
    for _ in engine.stream([Request(np.arange(3), "tts", seed=i, strategies=HOT) for i in range(6)]):
        most = max(most, held())
    assert most - before <= 4 * 2 * (engine.chunk + 2) * 4  # ids of two chunks, no matter how many were made


def test_penalty_scopes(engines):
    """Greedy with a penalty that nothing outweighs: what has been seen in the scope does not come again."""
    task = TaskGrammar(("text", "image", "text"), "eos")
    first_id = VOCABULARY.text.start

    def texts(scope, seed):
        strategy = Strategy(greedy=True, repetition_penalty=1e6, penalty_scope=scope)
        prompt = first_id + np.random.default_rng(seed).permutation(VOCABULARY.text.count)[:3]
        request = Request(prompt, task, strategies={"text": strategy}, budgets={"text": 3})
        (answer,) = engines[0].generate([request])
        boi = answer.tolist().index(VOCABULARY.marker("boi"))
        parts = ([t for t in part.tolist() if t >= first_id] for part in (answer[:boi], answer[boi:]))
        return [set(prompt.tolist()), *parts]

    found = {scope: [texts(scope, seed) for seed in range(8)] for scope in ("row", "answer", "part")}
    for scope, answers in found.items():
        for prompt, first, second in answers:
            assert len(set(first)) == len(first) and len(set(second)) == len(second), scope
            assert scope == "part" or not set(first) & set(second), scope
            assert scope != "row" or not prompt & set(first + second)
    assert any(set(first) & set(second) for _, first, second in found["part"])
    assert any(prompt & set(first + second) for prompt, first, second in found["answer"])


def test_the_reference_way_of_decoding():
    engine = make_engine(rows=4)

    def ask(switch):
        requests = [Request(np.arange(3), switch, seed=i, max_new_tokens=20) for i in range(4)]
        return [tuple(a.tolist()) for a in engine.generate(requests)]

    always_greedy = ModeSwitch(greedy_first=True, sample_after=())
    assert len(set(ask(always_greedy))) == 1
    assert len(set(ask("reference"))) == 4
    for answer in ask("reference_greedy") + ask("reference"):
        assert answer[-1] in (VOCABULARY.marker("eos"), VOCABULARY.marker("eom")) and len(answer) <= 20


@pytest.mark.slow
def test_sharded_over_a_mesh():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    requests = [
        Request(np.arange(3 + i), task, seed=i, strategies={"text": GREEDY, "image": GREEDY}, max_new_tokens=20)
        for i, task in enumerate(("tts", "t2i", "asr", "chat", "t2i"))
    ]
    plain = make_engine(rows=4).generate(requests)
    for weights in (None, "int8"):
        engine = make_engine(rows=4, weights=weights, mesh=mesh)
        split = jax.tree.leaves(engine._lanes[0]._token_weights.layers[0].gate_up[0])[0]
        assert split.sharding.shard_shape(split.shape) == (split.shape[0] // 2, split.shape[1] // 2)
        answers = engine.generate(requests)
        for request, answer, expected in zip(requests, answers, plain, strict=True):
            check_answer(request.task, answer)
            assert weights or np.array_equal(answer, expected)


def test_a_longer_guidance_prompt_takes_its_room(engines):
    """Rows of guidance hold the answer too: a budget left open shrinks to what the longest prompt leaves."""
    guidance = Guidance(text_scale=2.0, image_scale=1.5, image_only=(0, 5, 6))
    request = Request(prompt=np.array([0], np.int32), task="chat_image", guidance=guidance)
    (answer,) = engines[0].generate([request])
    assert not isinstance(answer, Exception), answer
    assert len(answer) + 3 <= engines[0].capacity
