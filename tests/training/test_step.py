"""The jitted step: meshes, micro-batches, skipped steps, what trains and what never does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax.documents import task_index, token_class
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.training.state import model_from_params, model_params
from ar_omni_jax.training.step import BatchError, Trainer
from ar_omni_jax.vocabulary import Modality, compact_vocabulary

VOCABULARY = compact_vocabulary(20, 12, 6, (2, 2), multiple=16)
CONFIG = TransformerConfig(VOCABULARY.size, 2, 16, 4, 2, 4, 32, dtype="float32", attention="reference")
ROWS, LENGTH = 8, 16
ONE = {"data": -1}


def features(decoder, latents, depth):
    return jnp.tanh(latents @ decoder["a"])


def image_decoder():
    r = np.random.default_rng(0)
    codebook = r.normal(size=(12, 5)).astype(np.float32)
    return FrozenImageDecoder(codebook, features, {"a": r.normal(size=(5, 6)).astype(np.float32)}, ("mid",))


def make_batch(seed=0, rows=ROWS):
    """Rows with an image document and a text document, weights 0, 1 and 2, and padding of varied length."""
    r = np.random.default_rng(seed)
    tokens = np.full((rows, LENGTH + 1), VOCABULARY.pad, np.int32)
    segments, classes = np.zeros_like(tokens), np.zeros(tokens.shape, np.uint8)
    for row in range(rows):
        codes = VOCABULARY.to_ids(Modality.IMAGE, r.integers(0, 12, 4))
        text = VOCABULARY.to_ids(Modality.TEXT, r.integers(0, 20, r.integers(2, 9)))
        documents = [("t2i", [VOCABULARY.marker("boi"), *codes, VOCABULARY.marker("eoi")]), ("asr", text)]
        at = 0
        for k, (task, ids) in enumerate(documents[row % 2 :]):
            part = slice(at, at + len(ids))
            tokens[row, part], segments[row, part] = ids, k + 1
            classes[row, part] = token_class(task_index(task), 1, VOCABULARY.modality_table[ids])
            at += len(ids)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    starts = np.maximum.accumulate(np.where(np.diff(segments, axis=1, prepend=-1) != 0, np.arange(LENGTH + 1), 0), 1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": np.where(same, r.choice([1.0, 2.0], same.shape), 0).astype(np.float32),
        "target_class": classes[:, 1:],
        "segment_ids": segments[:, :-1],
        "positions": (np.arange(LENGTH + 1) - starts)[:, :-1].astype(np.int32),
    }


_TRAINERS = {}


def make_trainer(mesh=ONE, devices=1, decoder=True, loss=(), **optimizer):
    """A trainer of the given settings; equal settings share one, and so its compiled step."""
    key = repr((mesh, devices, decoder, loss, optimizer))
    if key not in _TRAINERS:
        _TRAINERS[key] = new_trainer(mesh, devices, decoder, loss, optimizer)
    return _TRAINERS[key]


def new_trainer(mesh, devices, decoder, loss, optimizer):
    loss = {"chunk": 16, "z_loss": 1e-3, "perceptual_weight": 0.3 if decoder else 0.0} | dict(loss)
    optimizer = {"peak_lr": 0.01, "warmup_fraction": 0.0, "weight_decay": 0.1} | optimizer
    decoder = image_decoder() if decoder else None
    mesh = make_mesh(mesh, jax.devices()[:devices])
    return Trainer(CONFIG, loss, optimizer, VOCABULARY, mesh, decoder, total_steps=10)


def run(trainer, steps=2):
    state, history = trainer.init(0), []
    for i in range(steps):
        state, metrics = trainer.train_step(state, trainer.put(make_batch(i)))
        history.append({k: float(v) for k, v in metrics.items()})
    return state, history


@pytest.fixture(scope="module")
def one_device():
    return run(make_trainer())


@pytest.mark.parametrize(
    "mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "sequence": 2}], ids=str
)
def test_every_mesh_gives_the_losses_of_one_device(one_device, mesh):
    trainer = make_trainer(mesh, 8)
    state, history = run(trainer)
    expected, expected_history = one_device
    for ours, theirs in zip(history, expected_history, strict=True):
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=2e-5, err_msg=name)
    # Adam divides by the gradient's own size: where it is near 0, float32 sums of another order show more.
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(trainer.state_sharding), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


@pytest.mark.parametrize("depth,normalize", [("codebook", "weights"), ("mid", "tokens")])
def test_micro_batches_do_not_change_loss_or_gradient(depth, normalize):
    loss = {"perceptual_depth": depth, "normalize": normalize, "perceptual_images": 3}
    results = []
    for accumulate in (1, 4):
        trainer = make_trainer(loss=loss, accumulate=accumulate)
        state = trainer.init(0)
        batch = trainer._mark(trainer.put(make_batch()), 0)
        results.append(jax.jit(trainer._loss_and_gradients)(state.params, trainer._placed, batch))
    for value, sums, gradients in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-6)
        for a, b in zip(jax.tree.leaves((sums, gradients)), jax.tree.leaves(results[0][1:]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rows_may_stand_anywhere():
    trainer = make_trainer(accumulate=4)
    batch, order = make_batch(), np.random.default_rng(0).permutation(ROWS)
    shuffled = {k: v[order] for k, v in batch.items()}
    losses = [trainer.train_step(trainer.init(0), trainer.put(b))[1]["loss"] for b in (batch, shuffled)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_loss_is_the_sum_of_its_parts():
    trainer = make_trainer()
    state = trainer.init(0)
    batch = make_batch()
    sums = {k: float(v) for k, v in trainer.eval_step(state, trainer.put(batch)).items()}
    _, metrics = trainer.train_step(state, trainer.put(batch))
    m = {k: float(v) for k, v in metrics.items()}
    np.testing.assert_allclose(
        m["loss"], m["weighted_nll"] / m["weight"] + 0.3 * m["perceptual"] + m["z_loss"], rtol=1e-5
    )
    for name in set(sums) & set(m):
        np.testing.assert_allclose(sums[name], m[name], rtol=1e-5, err_msg=name)
    for found in (sums, m):  # a window of steps needs sums: they have different numbers of images
        np.testing.assert_allclose(found["perceptual_sum"] / found["perceptual_count"], m["perceptual"], rtol=1e-5)
    counts = sum(m[f"count/{x.name.lower()}"] for x in Modality)
    assert counts == sum(v for k, v in m.items() if k.startswith("count_task/")) == (batch["loss_weights"] > 0).sum()
    assert m["tokens"] == (batch["segment_ids"] > 0).sum() and m["weight"] == batch["loss_weights"].sum()
    np.testing.assert_allclose(m["learning_rate"], 0.01)


def test_a_step_that_is_not_finite_changes_nothing_but_its_counters():
    trainer = make_trainer()
    state, _ = trainer.train_step(trainer.init(0), trainer.put(make_batch()))
    before = jax.tree.map(np.asarray, state)
    broken = make_batch(1)
    broken["loss_weights"][0, 0] = np.inf
    for n in (1, 2):
        state, metrics = trainer.train_step(state, trainer.put(broken))
        assert float(metrics["skipped"]) == 1 and float(metrics["skipped_in_row"]) == n
        assert float(metrics["weight"]) == float(metrics["nll/text"]) == 0.0
    for a, b in zip(
        *map(jax.tree.leaves, ((state.params, state.opt_state), (before.params, before.opt_state))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (3, 2, 2)
    state, metrics = trainer.train_step(state, trainer.put(make_batch(2)))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (4, 2, 0)
    assert float(metrics["skipped"]) == 0 and np.isfinite(float(metrics["loss"]))


def test_it_learns_and_the_projection_is_trained():
    trainer = make_trainer(loss={"perceptual_depth": "mid"})
    state = trainer.init(0)
    first = jax.tree.map(np.asarray, state.params)
    values = []
    for _ in range(8):
        state, metrics = trainer.train_step(state, trainer.put(make_batch()))
        values.append(float(metrics["loss"]))
    assert values[-1] < 0.8 * values[0]
    changed = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, first)
    assert all(x > 0 for x in jax.tree.leaves(changed))


def test_perceptual_gradients_reach_the_transformer():
    trainer = make_trainer(loss={"z_loss": 0.0})
    batch = make_batch()
    batch["loss_weights"] = np.zeros_like(batch["loss_weights"])
    state = trainer.init(0)
    marked = trainer._mark(trainer.put(batch), 0)
    _, _, gradients = jax.jit(trainer._loss_and_gradients)(state.params, trainer._placed, marked)
    blocks = gradients["model"]["blocks"]
    assert all(float(jnp.abs(blocks[k]).max()) > 0 for k in ("wq", "wo", "w_down"))
    assert not np.asarray(gradients["model"]["output"]).any()


def test_state_can_be_described_without_memory():
    for decoder in (False, True):
        trainer = make_trainer({"fsdp": 4, "tensor": 2}, 8, decoder)
        abstract, state = trainer.abstract_state(), trainer.init(0)
        assert jax.tree.structure(abstract) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
        assert set(state.params["projection"]) == ({"kernel", "bias"} if decoder else set())
    assert trainer.lower(16, 8).in_tree.num_leaves == len(jax.tree.leaves(state)) + 2 + 6


def test_parameters_make_the_model_again():
    params = make_trainer(decoder=False).init(0).params["model"]
    model = model_from_params(CONFIG, params)
    for a, b in zip(jax.tree.leaves(model_params(model)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    batch = make_batch()
    hidden = model(*(jnp.asarray(batch[k]) for k in ("tokens", "positions", "segment_ids")))
    assert hidden.shape == (ROWS, LENGTH, CONFIG.d_model)


def test_batches_that_do_not_fit_are_refused():
    trainer = make_trainer({"data": 4, "sequence": 2}, 8, accumulate=2)
    with pytest.raises(BatchError, match="multiple of 8"):
        trainer.put(make_batch(rows=4))
    with pytest.raises(BatchError, match="lacks positions"):
        trainer.put({k: v for k, v in make_batch().items() if k != "positions"})
    with pytest.raises(BatchError, match="mesh.sequence = 2"):
        trainer.check_batch(8, 15)
    with pytest.raises(ValueError, match="vocabulary"):
        Trainer(CONFIG, {}, {}, compact_vocabulary(9, 9, 9, (3, 3)), trainer.mesh, total_steps=1)
