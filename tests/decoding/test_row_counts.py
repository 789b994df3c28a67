"""An answer alone or among others, for every size of engine: the same bits in one engine, the same ids in all."""

import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.decoding.engine import Engine, Request
from ar_omni_jax.decoding.guidance import Guidance
from ar_omni_jax.decoding.strategy import GREEDY, Strategy
from ar_omni_jax.documents import TASKS
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer
from tests.decoding.test_generate import CONFIG
from tests.decoding.test_grammar import VOCABULARY, check_answer

# Wider than the other tests' model: products long enough that a library might add in another order.
WIDE = TransformerConfig(
    vocab_size=VOCABULARY.size,
    num_layers=2,
    d_model=192,
    num_heads=3,
    num_kv_heads=3,
    head_dim=64,
    d_ff=512,
    max_length=96,
    dtype="float32",
)
PICKINGS = (
    {},
    {"text": GREEDY, "image": GREEDY, "speech": GREEDY},
    {"text": Strategy(temperature=2.0, top_k=6, min_p=0.02), "image": Strategy(temperature=3.0, top_p=0.9)},
    {"speech": Strategy(temperature=1.5, repetition_penalty=1.5, penalty_scope="answer")},
)


def random_requests(seed: int, count: int, longest: int) -> list[Request]:
    """Any task, prompt, strategy and budget; one in four with guidance, which needs three rows for an image."""
    rng = np.random.default_rng(seed)
    return [
        Request(
            prompt=rng.integers(0, VOCABULARY.size, rng.integers(1, longest)).astype(np.int32),
            task=str(rng.choice(TASKS)),
            seed=int(rng.integers(1 << 32)),
            strategies=PICKINGS[rng.integers(len(PICKINGS))],
            budgets={"text": int(rng.integers(1, 12)), "speech": int(rng.integers(1, 20))},
            max_new_tokens=20,
            guidance=Guidance(2.5, 1.0, image_only=(0,)) if rng.random() < 0.25 else None,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("config", "seed"), [(CONFIG, 0), (WIDE, 2)], ids=["small", "wide"])
def test_the_ids_are_the_same_for_every_number_of_rows_and_capacity(config, seed):
    model = Transformer(config, rngs=nnx.Rngs(seed))
    requests = random_requests(seed, 24, longest=17)
    plain = [i for i, request in enumerate(requests) if request.guidance is None]
    expected = None
    for rows, capacity in ((8, None), (4, config.max_length - 7)):
        answers = Engine(model, VOCABULARY, rows=rows, capacity=capacity, chunk=6).generate(requests)
        expected = answers if expected is None else expected
        for request, answer, other in zip(requests, answers, expected, strict=True):
            check_answer(request.task, answer)
            np.testing.assert_array_equal(answer, other)
    for rows in (2, 1):
        answers = Engine(model, VOCABULARY, rows=rows, chunk=6).generate([requests[i] for i in plain])
        for i, answer in zip(plain, answers, strict=True):
            np.testing.assert_array_equal(answer, expected[i])


def memory_of(engine: Engine, place: int, length: int) -> np.ndarray:
    """All that the row of request `place` holds of its first `length` tokens: every layer's keys and values.

    An idle engine deals requests to its lanes in turn.
    """
    slot, lane = divmod(place, len(engine._lanes))
    cache = engine._lanes[lane]._state.cache
    return np.stack([np.asarray(a)[slot, :, :length] for a in (*cache.keys, *cache.values)])


@pytest.mark.parametrize(("rows", "weights"), [(8, "float32"), (3, "bfloat16"), (2, "int8")])
def test_every_bit_of_a_row_is_the_same_alone_and_among_others(rows, weights):
    """Not only the ids: keys and values, through which alone a row's past acts on its future."""
    engine = Engine(Transformer(WIDE, rngs=nnx.Rngs(5)), VOCABULARY, rows=rows, chunk=5, weights=weights)
    one = Request(np.arange(7, dtype=np.int32), "tts", seed=3, budgets={"speech": 30}, strategies=PICKINGS[3])
    (answer,) = engine.generate([one])
    length = len(one.prompt) + len(answer) - 1  # the end marker is never read
    alone = memory_of(engine, 0, length)
    assert np.isfinite(alone).all() and (alone[:, :, -1] != 0).any()
    for place in range(rows):
        # As many others that take the rows before it and after it, and are done sooner or later than it.
        others = [
            Request(np.arange(1, 9 + i, dtype=np.int32), "asr", seed=i, budgets={"text": 3 + 9 * i})
            for i in range(rows - 1)
        ]
        answers = engine.generate([*others[:place], one, *others[place:]])
        np.testing.assert_array_equal(answers[place], answer)
        np.testing.assert_array_equal(memory_of(engine, place, length), alone)
