import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.decoding.grammar import Picking, TaskGrammar, class_table, compile_grammar, has_class
from ar_omni_jax.decoding.sampling import cut, penalize, pick
from ar_omni_jax.decoding.strategy import GREEDY, Strategy
from ar_omni_jax.vocabulary import compact_vocabulary

VOCABULARY = compact_vocabulary(text=20, image=8, speech=12, image_grid=(2, 3), multiple=16)


def picking_of(*strategies: Strategy) -> Picking:
    """The settings of rows, one strategy each."""
    tasks = {str(i): TaskGrammar(("text",), "eos") for i in range(len(strategies))}
    given = {(str(i), "text"): strategy for i, strategy in enumerate(strategies)}
    grammar, starts = compile_grammar(VOCABULARY, tasks=tasks, strategies=given)
    return jax.tree.map(jnp.asarray, grammar.picking.at(np.array([starts[task] for task in tasks])))


def kept(probabilities, top_k=0, top_p=1.0, min_p=0.0) -> list[int]:
    scores = jnp.log(jnp.asarray([probabilities]))
    picking = picking_of(Strategy(top_k=top_k, top_p=top_p, min_p=min_p))
    return np.flatnonzero(np.isfinite(np.asarray(cut(scores, picking))[0])).tolist()


def by_sorting(scores, top_k, top_p, min_p):
    """The definition of `cut` for one row without ties, in float64."""
    order = np.argsort(-scores)
    order = order[: top_k or None]
    p = np.exp(scores[order] - scores.max())
    before = np.cumsum(p / p.sum()) - p / p.sum()
    order = order[(before < top_p) | (top_p >= 1)]
    return sorted(order[np.exp(scores[order] - scores.max()) >= min_p].tolist())


def test_cuts_keep_what_they_should():
    p = [0.1, 0.4, 0.05, 0.25, 0.2]
    assert kept(p, 0, 1.0) == [0, 1, 2, 3, 4]
    assert kept(p, 2, 1.0) == [1, 3]
    assert kept(p, 0, 0.6) == [1, 3]
    assert kept(p, 0, 0.7) == [1, 3, 4]
    assert kept(p, 0, 1e-6) == [1]
    assert kept(p, 3, 0.7) == [1, 3]  # of the three that are left, 0.65 / 0.85 = 0.76 is enough
    assert kept(p, min_p=0.45) == [1, 3, 4]
    assert kept(p, 2, 1.0, 0.7) == [1]
    assert kept([0.3, 0.1, 0.3, 0.3], 2) == [0, 2, 3]  # ties at the edge stay


def test_cuts_of_many_rows_equal_sorting():
    rng = np.random.default_rng(3)
    settings = [(0, 0.9, 0.0), (7, 1.0, 0.0), (0, 1.0, 0.2), (12, 0.6, 0.05), (0, 0.999, 0.0), (1000, 0.5, 0.0)]
    scores = (3 * rng.standard_normal((len(settings), 300))).astype(np.float32)
    scores[:, rng.permutation(300)[:100]] = -np.inf  # what the grammar forbids
    picking = picking_of(*(Strategy(top_k=k, top_p=p, min_p=m) for k, p, m in settings))
    got = np.isfinite(np.asarray(cut(jnp.asarray(scores), picking)))
    for row, (k, p, m) in enumerate(settings):
        legal = np.flatnonzero(np.isfinite(scores[row]))
        expected = by_sorting(scores[row][legal].astype(np.float64), k, p, m)
        assert np.flatnonzero(got[row]).tolist() == legal[expected].tolist(), settings[row]


def test_penalty_lowers_seen_ids_only():
    got = penalize(jnp.array([[2.0, -2.0, 1.0]]), jnp.array([[True, True, False]]), jnp.array([2.0]))
    assert got.tolist() == [[1.0, -4.0, 1.0]]


def _pick(strategies, tasks, keys, logits):
    grammar, starts = compile_grammar(VOCABULARY, strategies=strategies)
    grammar = jax.tree.map(jnp.asarray, grammar)
    state = jnp.array([starts[t] for t in tasks])
    bits = grammar.legal_bits(state, jnp.zeros(len(tasks), int), jnp.full(len(tasks), 60))
    legal = has_class(bits, class_table(VOCABULARY))
    nothing = jnp.zeros_like(legal)
    return np.asarray(pick(logits, legal, grammar.picking.at(state), lambda: nothing, lambda: keys)), np.asarray(legal)


def test_rows_follow_their_own_strategy_and_stay_legal():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(np.tile(rng.standard_normal(VOCABULARY.size), (64, 1)), jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(64, dtype=jnp.uint32))
    strategies = {("asr", "text"): GREEDY, ("text", "text"): Strategy(temperature=5.0)}
    tokens, legal = _pick(strategies, ["asr", "text"] * 32, keys, logits)
    assert legal[np.arange(64), tokens].all()
    best = int(np.argmax(np.where(legal[0], logits[0], -np.inf)))
    assert set(tokens[::2]) == {best} and len(set(tokens[1::2])) > 5


def test_sampling_follows_the_distribution_and_ignores_neighbours():
    count = 4000
    logits = jnp.asarray(np.random.default_rng(1).standard_normal(VOCABULARY.size), jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(count, dtype=jnp.uint32))
    tokens, legal = _pick({"text": Strategy()}, ["text"] * count, keys, jnp.tile(logits, (count, 1)))
    expected = np.asarray(jax.nn.softmax(jnp.where(legal[0], logits, -jnp.inf)))
    seen = np.bincount(tokens, minlength=VOCABULARY.size) / count
    assert np.abs(seen - expected).sum() < 0.1
    few, _ = _pick({"text": Strategy()}, ["text"] * 3, keys[5:8], jnp.tile(logits, (3, 1)))
    assert np.array_equal(few, tokens[5:8])
