import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.decoding.generate import GenerationError, generate
from ar_omni_jax.decoding.strategy import GREEDY, Strategy
from ar_omni_jax.documents import TASKS
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import VocabularyError
from tests.decoding.test_grammar import VOCABULARY, check_answer

CONFIG = TransformerConfig(
    vocab_size=VOCABULARY.size,
    num_layers=2,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=24,
    max_length=60,
    dtype="float32",
)
HOT = {kind: Strategy(temperature=3.0, top_p=0.98) for kind in ("text", "image", "speech")}


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG, rngs=nnx.Rngs(7))


def make_prompts(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY.size, rng.integers(1, 40)).astype(np.int32) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_answers_of_random_models_always_parse(seed):
    prompts, tasks = make_prompts(20, seed), list(TASKS) * 2
    model = Transformer(CONFIG, rngs=nnx.Rngs(seed))
    answers = generate(model, prompts, tasks, VOCABULARY, strategies=HOT, seeds=range(20))
    for prompt, task, answer in zip(prompts, tasks, answers, strict=True):
        assert len(prompt) + len(answer) <= CONFIG.max_length
        check_answer(task, answer)


@nnx.jit
def _whole_row_logits(model, tokens, positions, segments):
    return model.logits(model(tokens, positions, segments))


def _by_full_forward(model, prompt, steps):
    """Greedy ids of an image answer by running the whole row again for every token."""
    row, start = list(prompt), len(prompt)
    image = np.flatnonzero(VOCABULARY.modality_table == 1)
    plan = [[VOCABULARY.marker("boi")], *[image] * VOCABULARY.image_length]
    plan += [[VOCABULARY.marker("eoi")], [VOCABULARY.marker("eos")]]
    for legal in plan[:steps]:
        tokens = np.zeros((1, 60), np.int32)
        tokens[0, : len(row)] = row
        segments = (np.arange(60) < len(row)).astype(np.int32)[None]
        positions = np.arange(60, dtype=np.int32)[None]
        logits = np.asarray(_whole_row_logits(model, tokens, positions, segments))[0, len(row) - 1]
        row.append(int(legal[int(np.argmax(logits[legal]))]))
    return row[start:]


def test_greedy_answers_equal_the_uncached_model(model):
    prompts = make_prompts(3, seed=5)
    answers = generate(model, prompts, ["t2i"] * 3, VOCABULARY, strategies={"image": GREEDY})
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tolist() == _by_full_forward(model, prompt, VOCABULARY.image_length + 3)


def test_an_answer_depends_on_its_seed_and_not_on_its_neighbours(model):
    prompts, tasks = make_prompts(8), ["text", "t2i", "tts", "chat"] * 2
    options = {"strategies": HOT, "max_new_tokens": 20}
    together = generate(model, prompts, tasks, VOCABULARY, seeds=range(8), **options)
    again = generate(model, prompts, tasks, VOCABULARY, seeds=range(8), **options)
    other = generate(model, prompts, tasks, VOCABULARY, seeds=range(8, 16), **options)
    for i in (1, 4, 7):
        alone = generate(model, prompts[i : i + 1], tasks[i : i + 1], VOCABULARY, seeds=[i], **options)[0]
        assert np.array_equal(alone, together[i])
    assert all(np.array_equal(a, b) for a, b in zip(together, again, strict=True))
    assert sum(not np.array_equal(a, b) for a, b in zip(together, other, strict=True)) >= 6


def test_batches_and_budgets(model):
    prompts, tasks = make_prompts(5), ["tts"] * 5
    answers = generate(
        model, prompts, tasks, VOCABULARY, strategies=HOT, budgets={"speech": 3}, seeds=range(5), batch_size=2
    )
    whole = generate(model, prompts, tasks, VOCABULARY, strategies=HOT, budgets={"speech": 3}, seeds=range(5))
    for one, other in zip(answers, whole, strict=True):
        assert np.array_equal(one, other) and 4 <= len(one) <= 6
    assert generate(model, [], [], VOCABULARY) == []


def test_repetition_penalty_spares_nothing_seen(model):
    strong = {"text": Strategy(greedy=True, repetition_penalty=1e6)}
    (answer,) = generate(model, [np.array([0], np.int32)], ["text"], VOCABULARY, strategies=strong, max_new_tokens=8)
    assert len(set(answer.tolist())) == len(answer)


def test_requests_that_cannot_be_answered_are_refused(model):
    prompt = np.arange(30, dtype=np.int32)
    with pytest.raises(GenerationError, match="prompt 0: task 't2i' needs at least 9 .* 5 are allowed"):
        generate(model, [prompt], ["t2i"], VOCABULARY, max_new_tokens=5)
    with pytest.raises(GenerationError, match="prompt of 58 tokens, max_length 60"):
        generate(model, [np.zeros(58, np.int32)], ["tts"], VOCABULARY)
    with pytest.raises(GenerationError, match="unknown task 'ocr'"):
        generate(model, [prompt], ["ocr"], VOCABULARY)
    with pytest.raises(GenerationError, match="non-empty"):
        generate(model, [prompt[:0]], ["asr"], VOCABULARY)
    with pytest.raises(GenerationError, match="1 prompts, 2 tasks"):
        generate(model, [prompt], ["asr", "tts"], VOCABULARY)
    with pytest.raises(VocabularyError, match="prompt 0"):
        generate(model, [np.array([VOCABULARY.size])], ["asr"], VOCABULARY)
