"""Guidance as rows of the batch: each code is the likeliest of the mixture that whole forward passes give."""

import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.decoding.engine import Engine, Request
from ar_omni_jax.decoding.guidance import Guidance, branches, mix_guided
from ar_omni_jax.decoding.strategy import GREEDY
from ar_omni_jax.model.transformer import Transformer
from tests.decoding.test_generate import CONFIG
from tests.decoding.test_grammar import VOCABULARY, check_answer

marker = VOCABULARY.marker
CODES = np.arange(VOCABULARY.image.start, VOCABULARY.image.stop)
PLAIN = np.array([0, 41, 42, 43, 8], np.int32)
WITH_IMAGE = np.array([0, 41, marker("boi"), 16, 17, 18, 19, 20, 21, marker("eoi"), 44, 8], np.int32)
GREEDILY = {"image": GREEDY, "text": GREEDY}


@nnx.jit
def _logits(model, tokens, positions, segments):
    return model.logits(model(tokens, positions, segments))


def last_logits(model, row):
    tokens = np.zeros((1, 60), np.int32)
    tokens[0, : len(row)] = row
    positions, segments = np.arange(60, dtype=np.int32)[None], (np.arange(60) < len(row)).astype(np.int32)[None]
    return np.asarray(_logits(model, tokens, positions, segments))[0, len(row) - 1]


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG, rngs=nnx.Rngs(11))


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, VOCABULARY, rows=4, chunk=4)


def mixtures(model, prompt, answer, guidance):
    """(token, its index, logits by the definition) of every code in the answer."""
    image = [t for t in prompt.tolist() if t in CODES or t in (marker("boi"), marker("eoi"))]
    for place, token in enumerate(answer.tolist()):
        if token not in CODES:
            continue
        made = answer[:place].tolist()
        since = made[len(made) - 1 - made[::-1].index(marker("boi")) :]
        images = [t for t in made if t in CODES or t in (marker("boi"), marker("eoi"))]
        bare = last_logits(model, [marker("bos"), *since])
        only = last_logits(model, [marker("bos"), *image, *images]) if image else bare
        full = last_logits(model, [*prompt.tolist(), *made])
        scales = {"text_scale": guidance.text_scale, "image_scale": guidance.image_scale}
        yield token, mix_guided(full, only, bare, **scales), full


@pytest.mark.parametrize("prompt,task,rows", [(PLAIN, "t2i", 2), (WITH_IMAGE, "t2i", 3), (PLAIN, "chat_image", 2)])
def test_codes_are_the_likeliest_of_the_mixture(model, engine, prompt, task, rows):
    guidance = Guidance(text_scale=6.0, image_scale=2.5)
    assert len(branches(guidance, prompt, VOCABULARY)) == rows - 1
    requests = [
        Request(prompt, task, strategies=GREEDILY, budgets={"text": 4}, guidance=guidance),
        Request(PLAIN, "t2i"),
    ]
    answer, _ = engine.generate(requests)
    check_answer(task, answer)
    changed = 0
    for token, mixed, full in mixtures(model, prompt, answer, guidance):
        assert token == CODES[np.argmax(mixed[CODES])]
        changed += token != CODES[np.argmax(full[CODES])]
    assert changed >= 1  # guidance did something


def test_a_second_image_forgets_the_first_in_the_unconditional_branch_only(model, engine):
    guidance = Guidance(text_scale=4.0, image_scale=3.0)
    for seed in range(30):
        request = Request(WITH_IMAGE, "chat", seed=seed, strategies=GREEDILY, budgets={"text": 2}, guidance=guidance)
        request = Request(**{**vars(request), "strategies": {"image": GREEDY}})
        (answer,) = engine.generate([request])
        if (answer == marker("boi")).sum() > 1:
            break
    else:
        raise AssertionError("no answer with two images among 30")
    for token, mixed, _ in mixtures(model, WITH_IMAGE, answer, guidance):
        assert token == CODES[np.argmax(mixed[CODES])]


def test_scales_of_one_need_no_rows_and_a_full_engine_says_so(engine):
    one = Request(PLAIN, "t2i", guidance=Guidance(1.0, 1.0), strategies=GREEDILY)
    without = Request(PLAIN, "t2i", strategies=GREEDILY)
    assert np.array_equal(*engine.generate([one, without]))
    small = Engine(Transformer(CONFIG, rngs=nnx.Rngs(11)), VOCABULARY, rows=2, chunk=4)
    bad, good = small.generate([Request(WITH_IMAGE, "t2i", guidance=Guidance()), without])
    assert "needs 3 rows, the engine has 2" in str(bad) and not isinstance(good, Exception)


def test_a_guided_request_waits_until_enough_rows_are_free(engine):
    guided = Request(WITH_IMAGE, "t2i", strategies=GREEDILY, guidance=Guidance())
    (alone,) = engine.generate([guided])
    requests = [Request(PLAIN, "tts", seed=i) for i in range(3)] + [guided] * 3 + [Request(PLAIN, "asr")]
    answers = engine.generate(requests)
    assert all(np.array_equal(answer, alone) for answer in answers[3:6])
