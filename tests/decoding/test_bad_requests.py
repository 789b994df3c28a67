"""What a careless or hostile caller sends: each request gets its own error in words, whatever its neighbours are."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.decoding.engine import Engine, GenerationError, Request
from ar_omni_jax.decoding.grammar import TaskGrammar
from ar_omni_jax.decoding.guidance import LARGEST_SCALE, Guidance
from ar_omni_jax.decoding.request import plan
from ar_omni_jax.decoding.strategy import GREEDY, LEAST, MOST, ModeSwitch, Strategy, StrategyError
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import compact_vocabulary
from tests.decoding.test_engine import make_engine
from tests.decoding.test_generate import CONFIG, HOT
from tests.decoding.test_grammar import VOCABULARY, check_answer

PROMPT = np.arange(5, dtype=np.int32)
GOOD = Request(PROMPT, "tts", strategies=HOT)
BAD = {
    "unknown task None": Request(PROMPT, None),
    "unknown task 7": Request(PROMPT, 7),
    r"unknown task \['tts'\]": Request(PROMPT, ["tts"]),
    r"parts \(\); give at least one": Request(PROMPT, TaskGrammar((), "eos")),
    "parts .*'video'.*; give at least one": Request(PROMPT, TaskGrammar(("text", "video"), "eos")),
    "ends with 'eoi'; use eos or eom": Request(PROMPT, TaskGrammar(("image",), "eoi")),
    "ends with 'text'; use eos or eom": Request(PROMPT, TaskGrammar(("text",), "text")),
    "two texts in a row": Request(PROMPT, TaskGrammar(("text", "text"), "eos")),
    "name each once": Request(PROMPT, TaskGrammar(("speech", "speech"), "eos", any_order=True)),
    "ModeSwitch: no markers": Request(PROMPT, ModeSwitch(ends=())),
    "seed 'x' is not an integer": Request(PROMPT, "tts", seed="x"),
    "seed inf is not an integer": Request(PROMPT, "tts", seed=float("inf")),
    "seed None is not an integer": Request(PROMPT, "tts", seed=None),
    r"strategies\['text'\] is a str": Request(PROMPT, "tts", strategies={"text": "greedy"}),
    "guidance is a float; give a Guidance": Request(PROMPT, "t2i", guidance=3.0),
    r"budgets\['speech'\] = inf: give positive integers": Request(PROMPT, "tts", budgets={"speech": float("inf")}),
    r"budgets\['text'\] = True": Request(PROMPT, "asr", budgets={"text": True}),
    "text_scale = 1e[+]39: must be a number from": Request(PROMPT, "t2i", guidance=Guidance(text_scale=1e39)),
    "non-empty list of ids": Request(None, "tts"),
    "give integers": Request(["a"], "tts"),
    "needs at least 4 new tokens": Request(PROMPT, "tts", max_new_tokens=-3),
}


@pytest.fixture(scope="module")
def engine():
    return make_engine(rows=4)


def test_each_has_its_own_error_and_the_others_their_answers(engine):
    (alone,) = engine.generate([GOOD])
    answers = engine.generate([request for one in BAD.values() for request in (GOOD, one)])
    for place, message in enumerate(BAD):
        assert np.array_equal(answers[2 * place], alone)
        error = answers[2 * place + 1]
        assert isinstance(error, GenerationError) and str(error).startswith(f"prompt {2 * place + 1}: "), error
        with pytest.raises(GenerationError, match=message):
            raise error


@pytest.mark.parametrize("value", [0, -1, 1e-50, 1e39, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_a_strategy_that_float32_cannot_hold_is_refused(name, value):
    with pytest.raises(StrategyError, match=f"Strategy.{name} = .* must be in"):
        Strategy(**{name: value})


@pytest.mark.parametrize("edge", [LEAST, MOST])
def test_the_outermost_strategies_still_give_whole_answers(engine, edge):
    strategies = [
        Strategy(temperature=edge, top_p=0.5, min_p=0.1),
        Strategy(temperature=edge),
        *(Strategy(greedy=greedy, repetition_penalty=edge) for greedy in (True, False)),
    ]
    far = Guidance(LARGEST_SCALE, -LARGEST_SCALE, image_only=[0])
    requests = [
        Request(PROMPT, task, seed=3, strategies=dict.fromkeys(HOT, strategy), max_new_tokens=30, guidance=guidance)
        for strategy in strategies
        for task, guidance in (("chat", None), ("t2i", far), ("tts", None))
    ]
    for request, answer in zip(requests, engine.generate(requests), strict=True):
        check_answer(request.task, answer)


def test_a_budget_beyond_all_bounds_is_what_the_context_allows(engine):
    (answer,) = engine.generate([Request(PROMPT, "tts", strategies=HOT, budgets={"speech": 10**12})])
    check_answer("tts", answer)


TEXT_LAST = compact_vocabulary(text=28, image=8, speech=12, image_grid=(2, 3), multiple=16)
DAMAGED = VOCABULARY.marker("eoh")  # no task of the grammar may write it, only a ModeSwitch


@pytest.mark.parametrize("vocabulary", [VOCABULARY, TEXT_LAST], ids=["reserved id last", "text last"])
@pytest.mark.parametrize("strategies", [HOT, dict.fromkeys(HOT, GREEDY)], ids=["sampled", "greedy"])
def test_logits_that_are_no_numbers_end_their_request_alone(vocabulary, strategies):
    """One id's embedding is damaged. A row that reads it must not go on for ever, whichever id a comparison with no
    number falls on; rows that do not read it are not touched, nor is the next request of the same row."""
    model = Transformer(CONFIG, rngs=nnx.Rngs(7))
    model.embedding[...] = model.embedding[...].at[DAMAGED].set(jnp.nan)
    engine = Engine(model, vocabulary, rows=4, chunk=5)
    tasks = ("tts", "asr", "t2i", "chat", "chat_image", "reference", "reference_greedy")
    prompts = (PROMPT, np.array([0, DAMAGED, 5], np.int32))
    options = {"strategies": strategies, "max_new_tokens": 25}
    requests = [Request(prompt, task, seed=1, **options) for task in tasks for prompt in prompts]
    answers = engine.generate(requests)
    for task, good, bad in zip(tasks, answers[::2], answers[1::2], strict=True):
        assert isinstance(bad, GenerationError) and "logits for it are no numbers" in str(bad), task
        if isinstance(good, GenerationError):
            assert "reference" in task  # which may write the damaged id itself
        elif "reference" not in task:
            check_answer(task, good, vocabulary)


def test_a_stream_that_is_closed_early_leaves_nothing_behind_in_its_rows():
    """Closed before anybody saw that the row's numbers are none; the next request has the same row."""
    model = Transformer(CONFIG, rngs=nnx.Rngs(7))
    model.embedding[...] = model.embedding[...].at[DAMAGED].set(jnp.nan)
    engine = Engine(model, VOCABULARY, rows=1, chunk=5)
    bad, good = Request(np.array([DAMAGED] * 20, np.int32), "asr"), Request(PROMPT, "tts", max_new_tokens=20)
    (alone,) = engine.generate([good])

    def source():
        yield bad
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.stream(source()))
    (answer,) = engine.generate([good])
    assert np.array_equal(answer, alone)


@pytest.mark.parametrize("parts", [("text", "image", "text"), ("image", "image"), ("speech", "text", "speech")])
def test_what_is_not_refused_is_answered(engine, parts):
    (answer,) = engine.generate([Request(PROMPT, TaskGrammar(parts, "eom"), strategies=HOT, budgets={"speech": 3})])
    assert not isinstance(answer, Exception) and answer[-1] == VOCABULARY.marker("eom")


@pytest.mark.parametrize("sizes", [{"rows": 0}, {"chunk": 0}, {"capacity": 0}, {"capacity": -5}])
def test_an_engine_without_room_is_refused(sizes):
    with pytest.raises(GenerationError, match="positive"):
        make_engine(**sizes)


def test_a_stop_reaches_requests_that_wait(engine):
    """Six long answers on four rows: the fifth waits for a row, the sixth is not even taken, when they are stopped."""
    long = {"speech": Strategy(temperature=9.0)}
    requests = [Request(PROMPT, "tts", seed=i, strategies=long, max_new_tokens=40) for i in range(7)]
    whole = engine.generate(requests)
    told, stopped = [], (4, 5)
    for event in engine.stream(requests):
        if not told:
            for index in stopped:
                engine.stop(index)
        told.append(event)
    for index in range(7):
        mine = [event for event in told if event.index == index]
        if index in stopped:
            assert len(mine) == 1 and mine[0].done and not len(mine[0].tokens)
            assert f"prompt {index}: stopped before it began" in str(mine[0].error)
        else:
            assert np.array_equal(np.concatenate([event.tokens for event in mine]), whole[index])
    # A stop belongs to its stream: the next one is not touched by it.
    assert all(np.array_equal(a, b) for a, b in zip(engine.generate(requests), whole, strict=True))


def branch_prompts(**request):
    return [ids.tolist() for ids in plan(Request(PROMPT, **request), "it", VOCABULARY, 60).branches]


def test_branches_are_those_of_the_guidance_that_is_in_effect():
    """Of several strategies with guidance it is the image part's, and of the task's own before the general one."""
    text, image, own = (Guidance(2.0, 1.0, unconditional=[0, n]) for n in (41, 42, 43))
    strategies = {"text": Strategy(guidance=text), "image": Strategy(guidance=image)}
    assert branch_prompts(task="chat_image", strategies=strategies) == [[0, 42]]
    strategies[("t2i", "image")] = Strategy(guidance=own)
    assert branch_prompts(task="t2i", strategies=strategies) == [[0, 43]]
    assert branch_prompts(task="chat_image", strategies=strategies, guidance=text) == [[0, 42]]
    assert branch_prompts(task="chat_image", strategies={"image": GREEDY}, guidance=text) == [[0, 41]]
    assert branch_prompts(task="asr", strategies=strategies, guidance=own) == []


def test_guidance_of_a_switch_is_none(engine):
    """Its states are no image parts; what a Strategy says of guidance has nothing to act on there."""
    plain = ModeSwitch(greedy_first=True, sample_after=())
    guided = dataclasses.replace(plain, greedy=dataclasses.replace(plain.greedy, guidance=Guidance(9.0, 9.0)))
    one, other = engine.generate([Request(PROMPT, switch, max_new_tokens=12) for switch in (plain, guided)])
    assert np.array_equal(one, other)


def test_a_chat_that_may_draw_holds_rows_and_changes_no_neighbour(engine):
    """Guidance takes its rows for the whole answer of a task that has an image part, and for no other."""
    options = {"guidance": Guidance(4.0, 1.0), "strategies": HOT, "max_new_tokens": 25}
    chats = [Request(PROMPT, "chat", seed=seed, **options) for seed in range(3)]
    others = [Request(PROMPT, "asr", seed=seed, **options) for seed in range(4)]
    alone = [engine.generate([request])[0] for request in (*chats, *others)]
    most, running = 0, set()
    parts = {i: [] for i in range(7)}
    for event in engine.stream([*chats, *others]):
        parts[event.index].append(event.tokens)
        running = (running | {event.index}) - ({event.index} if event.done else set())
        most = max(most, len(running))
        assert 2 * len(running & {0, 1, 2}) + len(running & {3, 4, 5, 6}) <= engine.rows
    for i, expected in enumerate(alone):
        assert np.array_equal(np.concatenate(parts[i]), expected)
        check_answer("chat" if i < 3 else "asr", expected)
    assert most > 2  # requests without an image part take one row each
