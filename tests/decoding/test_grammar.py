import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.decoding.grammar import (
    CLASSES,
    END,
    TASK_GRAMMARS,
    TaskGrammar,
    class_table,
    compile_grammar,
    has_class,
    pad_states,
)
from ar_omni_jax.decoding.guidance import Guidance
from ar_omni_jax.decoding.strategy import GREEDY, Strategy, StrategyError, strategy_for
from ar_omni_jax.documents import TASKS
from ar_omni_jax.responses import parse_response
from ar_omni_jax.vocabulary import Modality, compact_vocabulary

VOCABULARY = compact_vocabulary(text=20, image=8, speech=12, image_grid=(2, 3), multiple=16)


CLASS_OF = class_table(VOCABULARY)


def legal_ids(grammar, state, count, left: int) -> np.ndarray:
    """The ids that may come next in a single row."""
    return np.flatnonzero(np.asarray(has_class(grammar.legal_bits(state, count, np.array([left])), CLASS_OF))[0])


def walk(task: str, left: int, seed: int, budgets=None) -> list[int]:
    """A random walk over legal ids, in NumPy, until the end state; fails when no id is legal."""
    grammar, starts = compile_grammar(VOCABULARY, budgets=budgets)
    rng = np.random.default_rng(seed)
    state, count, out = np.array([starts[task]]), np.array([0]), []
    while state[0] != END:
        legal = legal_ids(grammar, state, count, left - len(out))
        assert len(legal), f"{task}: nothing is legal after {out}"
        out.append(int(rng.choice(legal)))
        state, count = (np.asarray(x) for x in grammar.advance(state, count, CLASS_OF[out[-1:]]))
    return out


def check_answer(task: str, tokens, vocabulary=VOCABULARY):
    """The answer parses without a complaint, and holds the parts of its task in their order."""
    response = parse_response(tokens, vocabulary)
    assert not response.problems and response.ended, (task, list(tokens), response.problems)
    kinds = [Modality(kind).name.lower() for kind, _ in response]
    grammar = TASK_GRAMMARS[task]
    assert tokens[-1] == vocabulary.marker(grammar.end)
    if not grammar.any_order:
        assert tuple(kinds) == grammar.parts
    assert kinds
    for kind, codes in response:
        assert kind != Modality.IMAGE or len(codes) == vocabulary.image_length


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TASKS), st.integers(0, 40), st.integers(0, 10_000))
def test_every_walk_is_a_whole_answer_within_its_budget(task, spare, seed):
    grammar, starts = compile_grammar(VOCABULARY)
    left = int(grammar.need(starts[task], 0)) + spare
    tokens = walk(task, left, seed)
    assert len(tokens) <= left
    check_answer(task, tokens)


def test_shortest_answers():
    grammar, starts = compile_grammar(VOCABULARY)
    need = {task: int(grammar.need(start, 0)) for task, start in starts.items()}
    image = VOCABULARY.image_length + 2
    assert need["text"] == need["asr"] == need["chat_speech"] == need["chat"] == 2
    assert need["tts"] == need["image_to_speech"] == 4
    assert need["t2i"] == need["speech_to_image"] == image + 1
    assert need["chat_image"] == 1 + image + 1


@pytest.mark.parametrize("seed", range(5))
def test_budgets_end_parts(seed):
    tokens = walk("tts", 1000, seed, budgets={"speech": 4})
    codes = parse_response(tokens, VOCABULARY)[0][1]
    assert 1 <= len(codes) <= 4
    with pytest.raises(StrategyError, match="image"):
        compile_grammar(VOCABULARY, budgets={"image": 4})


def legal_names(task: str, tokens: list[int], left: int = 500) -> set[str]:
    """What may follow `tokens`, by marker name or modality."""
    grammar, starts = compile_grammar(VOCABULARY)
    state, count = np.array([starts[task]]), np.array([0])
    for token in tokens:
        state, count = (np.asarray(x) for x in grammar.advance(state, count, CLASS_OF[[token]]))
    ids = legal_ids(grammar, state, count, left)
    names = {token: name for name, token in VOCABULARY.markers.items()}
    kinds = {Modality(int(VOCABULARY.modality_table[i])).name.lower() for i in ids if i not in names}
    for kind in kinds:  # a modality is legal as a whole or not at all
        assert np.isin(np.flatnonzero(VOCABULARY.mask(Modality[kind.upper()])), ids).all()
    return kinds | {names[i] for i in ids if i in names}


def test_legal_sets_are_exact():
    text, image, speech = (int(VOCABULARY.to_ids(m, 0)) for m in (Modality.TEXT, Modality.IMAGE, Modality.SPEECH))
    marker, length = VOCABULARY.marker, VOCABULARY.image_length
    assert legal_names("caption", []) == {"text"}
    assert legal_names("caption", [text]) == {"text", "eos"}  # no <boi> in a caption
    assert legal_names("t2i", []) == {"boi"}
    assert legal_names("t2i", [marker("boi")] + [image] * (length - 1)) == {"image"}
    assert legal_names("t2i", [marker("boi")] + [image] * length) == {"eoi"}
    assert legal_names("tts", [marker("boa")]) == {"speech"}
    assert legal_names("tts", [marker("boa"), speech]) == {"speech", "eoa"}
    assert legal_names("tts", [marker("boa"), speech, marker("eoa")]) == {"eos"}
    assert legal_names("chat_image", [text]) == {"text", "boi"}
    assert legal_names("chat", [text]) == {"text", "boi", "boa", "eom"}
    assert legal_names("chat", [text], left=length + 3) == {"text", "boi", "boa", "eom"}
    assert legal_names("chat", [text], left=length + 2) == {"text", "boa", "eom"}  # an image no longer fits
    assert legal_names("caption", [text], left=1) == {"eos"}


def test_rows_in_different_states_do_not_mix():
    grammar, starts = compile_grammar(VOCABULARY)
    grammar = jax.tree.map(jnp.asarray, grammar)
    states = jnp.array([starts[t] for t in ("asr", "t2i", "tts")])
    together = grammar.legal_bits(states, jnp.zeros(3, int), jnp.full(3, 50))
    for i in range(3):
        alone = grammar.legal_bits(states[i : i + 1], jnp.zeros(1, int), jnp.full(1, 50))
        assert np.array_equal(together[i], alone[0])
    assert len(set(together.tolist())) == 3


def test_strategies_are_looked_up_by_task_then_kind():
    cold = Strategy(temperature=0.5)
    assert strategy_for(None, "asr", "text") == GREEDY
    assert not strategy_for(None, "chat", "text").greedy
    assert strategy_for({"text": cold}, "asr", "text") == cold
    assert strategy_for({"text": GREEDY, ("asr", "text"): cold}, "asr", "text") == cold
    grammar, starts = compile_grammar(VOCABULARY, strategies={("caption", "text"): cold})
    picking = grammar.picking.at(starts["caption"])
    assert picking.temperature == np.float32(0.5) and not picking.greedy
    wrong = [{"temperature": 0}, {"top_p": 0.0}, {"top_k": -1}, {"repetition_penalty": 0}]
    for changes in (*wrong, {"min_p": 1.0}, {"penalty_scope": "page"}):
        with pytest.raises(StrategyError, match=f"Strategy.{next(iter(changes))} = "):
            Strategy(**changes)


def test_guidance_is_in_effect_inside_images_only():
    guidance = Guidance(text_scale=2.0)
    grammar, starts = compile_grammar(VOCABULARY, tasks=TASK_GRAMMARS, guidance=guidance)
    guided = np.flatnonzero(grammar.picking.text_scale == 2)
    image = CLASSES.index("image")
    assert np.array_equal(guided, np.flatnonzero(grammar.next_state[:, image] == np.arange(len(grammar.least))))
    own = {("t2i", "image"): Strategy(guidance=Guidance(text_scale=5.0))}
    grammar, starts = compile_grammar(VOCABULARY, strategies=own, guidance=guidance)
    inside = grammar.next_state[starts["t2i"], CLASSES.index("boi")]
    assert grammar.picking.text_scale[inside] == 5 and grammar.picking.text_scale[starts["t2i"]] == 1


def test_a_task_of_ones_own_is_a_declaration():
    story = TaskGrammar(("text", "image", "speech"), "eos")
    grammar, starts = compile_grammar(VOCABULARY, tasks={"story": story}, budgets={"text": 2, "speech": 3})
    whole = pad_states(grammar, 16)
    assert whole.next_state.shape == (16, len(CLASSES)) and starts["story"] != END
    assert int(whole.need(starts["story"], 0)) == 1 + (VOCABULARY.image_length + 2) + 3 + 1
