"""Steps whose loss or gradient stands far above those before them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import CONFIG, VOCABULARY, make_batch

from ar_omni_jax.checkpoint import Checkpoints, Description
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.training import spikes
from ar_omni_jax.training.spikes import SpikeConfig
from ar_omni_jax.training.step import Trainer


def judged(config, losses, norms=None):
    """Which of a series of losses are spikes."""
    step = jax.jit(lambda memory, loss, norm: spikes.judge(config, memory, loss, norm))
    memory, found = spikes.initial(config), []
    for n, loss in enumerate(losses):
        spike, memory = step(memory, jnp.float32(loss), jnp.float32(norms[n] if norms else 1.0))
        found.append(bool(spike))
    return found


def falling(count, seed=0):
    return list(3.0 - 0.01 * np.arange(count) + np.random.default_rng(seed).normal(0, 0.05, count))


def test_a_spike_is_found_and_the_ordinary_is_not():
    config = SpikeConfig(8.0, 16)
    series = falling(60)
    assert not any(judged(config, series))
    for at in (16, 40, 59):
        assert judged(config, [6.0 if n == at else x for n, x in enumerate(series)]).index(True) == at
    norms = [30.0 if n == 40 else 1.0 + 0.1 * np.sin(n) for n in range(60)]
    assert judged(config, series, norms).index(True) == 40


def test_nothing_is_judged_before_there_is_something_to_judge_by():
    assert not any(judged(SpikeConfig(8.0, 16), [3.0] * 15 + [100.0]))


def test_values_that_are_not_finite_are_no_spikes_and_leave_no_trace():
    config = SpikeConfig(8.0, 8)
    series = falling(30)
    broken = list(series)
    for at in range(10, 20):
        broken.insert(at, float("nan") if at % 2 else float("inf"))
    assert not any(judged(config, broken))


def test_single_spikes_do_not_raise_what_is_normal():
    """A mean and a standard deviation would have: each would hide the next."""
    series = [9.0 if n >= 16 and n % 4 == 0 else x for n, x in enumerate(falling(60))]
    found = judged(SpikeConfig(8.0, 16), series)
    assert [n for n, spike in enumerate(found) if spike] == list(range(16, 60, 4))


def test_a_level_that_lasts_becomes_normal():
    found = judged(SpikeConfig(8.0, 16), falling(20) + [6.0 + 0.01 * n for n in range(30)])
    assert found[20] and sum(found[20:]) == 8 and not any(found[28:])


def test_a_plateau_without_any_spread_lets_rounding_pass():
    assert not any(judged(SpikeConfig(8.0, 8), [2.0] * 12 + [2.0001, 2.1]))
    assert judged(SpikeConfig(8.0, 8), [2.0] * 12 + [2.2])[-1]


def make_trainer(mesh=None, devices=1):
    """Where the loss is divided by tokens, weights make it as large as one likes."""
    mesh = make_mesh(mesh or {"data": -1}, jax.devices()[:devices])
    loss, optimizer = {"chunk": 16, "normalize": "tokens"}, {"peak_lr": 1e-3, "warmup_fraction": 0.0}
    return Trainer(CONFIG, loss, optimizer, VOCABULARY, mesh, total_steps=20, spike=SpikeConfig(8.0, 4))


def batch(number):
    made = make_batch(number)
    if number in (6, 9):
        made["loss_weights"] *= 100.0
    return made


def take(trainer, state, numbers):
    history = []
    for number in numbers:
        state, metrics = trainer.train_step(state, trainer.put(batch(number)))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@pytest.fixture(scope="module")
def whole():
    trainer = make_trainer()
    return trainer, *take(trainer, trainer.init(0), range(12))


def test_a_spike_changes_nothing_and_is_counted(whole):
    trainer, state, history = whole
    assert [n for n, metrics in enumerate(history) if metrics["spikes"]] == [6, 9]
    assert [n for n, metrics in enumerate(history) if metrics["skipped"]] == [6, 9]
    assert int(state.skipped) == 2 and int(state.step) == 12
    assert history[6]["nll/text"] == 0.0 < history[7]["nll/text"]
    before, _ = take(trainer, trainer.init(0), range(6))
    before = jax.tree.map(np.asarray, before)
    after, _ = take(trainer, jax.device_put(before, trainer.state_sharding), [6])
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(before.opt_state), jax.tree.leaves(after.opt_state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_resumed_run_judges_as_the_uninterrupted_one(whole, tmp_path, mesh):
    """Also on another mesh: the detector's memory is a part of the state."""
    trainer, _, history = whole
    state, _ = take(trainer, trainer.init(0), range(5))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, Description(5, 5, {}, {}, ""))
    checkpoints.close()
    other = make_trainer(mesh, 8) if mesh else trainer
    restored, _ = Checkpoints(tmp_path).restore_latest(other.abstract_state(), lambda description: None)
    _, rest = take(other, restored, range(5, 12))
    for ours, theirs in zip(rest, history[5:], strict=True):
        assert ours["spikes"] == theirs["spikes"]
        tolerance = {"rtol": 2e-5, "atol": 2e-5} if mesh else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(ours["loss"], theirs["loss"], **tolerance)


def test_switched_off_it_leaves_no_trace_in_the_state():
    mesh = make_mesh({"data": -1}, jax.devices()[:1])
    plain = Trainer(CONFIG, {"chunk": 16}, {"peak_lr": 1e-3}, VOCABULARY, mesh, total_steps=20)
    assert plain.abstract_state().spikes == {}
