"""AdamW against plain NumPy, the schedules at their corners, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ar_omni_jax.training.optimizer import OptimizerConfig, OptimizerError, decay_mask, make_optimizer, make_schedule


def numpy_adamw(params, grads, rates, *, b1, b2, eps, decay, clip, decays):
    """The textbook update, one dict of arrays a step."""
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(g**2) for g in grad.values()))
        for k in params:
            g = grad[k] * min(1.0, clip / norm)
            m[k] = b1 * m[k] + (1 - b1) * g
            v[k] = b2 * v[k] + (1 - b2) * g**2
            update = (m[k] / (1 - b1**t)) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
            params[k] = params[k] - rate * (update + decay * params[k] * decays[k])
    return params


@pytest.mark.parametrize("moment_dtype,tolerance", [("float32", 1e-6), ("bfloat16", 3e-3)])
def test_equals_numpy_adamw(moment_dtype, tolerance):
    r = np.random.default_rng(0)
    params = {"wq": r.normal(size=(3, 4)), "mlp_norm": r.normal(size=(2, 4)), "embedding": r.normal(size=(5, 4))}
    grads = [{k: r.normal(size=v.shape) * (3.0 if i % 2 else 0.1) for k, v in params.items()} for i in range(6)]
    settings = OptimizerConfig(
        peak_lr=0.01, warmup_fraction=0.3, b2=0.95, weight_decay=0.1, clip_norm=1.0, moment_dtype=moment_dtype
    )
    tx, schedule = make_optimizer(settings, 10)
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = tx.init(ours)
    update = jax.jit(tx.update)
    for grad in grads:
        updates, state = update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grad), state, ours)
        ours = optax.apply_updates(ours, updates)
    rates = [0.01 * f for f in (1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7)]
    np.testing.assert_allclose([float(schedule(i)) for i in range(6)], rates, rtol=1e-5)
    decays = {"wq": 1.0, "mlp_norm": 0.0, "embedding": 0.0}
    expected = numpy_adamw(params, grads, rates, b1=0.9, b2=0.95, eps=1e-8, decay=0.1, clip=1.0, decays=decays)
    for name in params:
        np.testing.assert_allclose(ours[name], expected[name], rtol=tolerance, atol=tolerance)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) == 6 and {str(x.dtype) for x in floats} == {moment_dtype}


def test_schedules():
    for name, middle in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        schedule = make_schedule(OptimizerConfig(peak_lr=2.0, schedule=name, warmup_fraction=0.2), 100)
        np.testing.assert_allclose([float(schedule(i)) for i in (0, 9, 19, 20)], [0.1, 1.0, 2.0, 2.0], rtol=1e-6)
        np.testing.assert_allclose(float(schedule(60)), 2.0 * middle, rtol=1e-5)
        np.testing.assert_allclose(float(schedule(100)), 2.0 if name == "constant" else 0.0, atol=1e-6)
    cosine = make_schedule(OptimizerConfig(peak_lr=1.0, schedule="cosine", warmup_fraction=0.0), 4)
    np.testing.assert_allclose(float(cosine(1)), 0.5 + 0.5 * np.cos(np.pi / 4), rtol=1e-6)


def test_what_decays():
    names = ("wq", "w_down", "output", "embedding", "final_norm", "q_norm_weight", "kernel", "bias")
    mask = decay_mask({"model": dict.fromkeys(names, 0)})["model"]
    assert {name for name in names if mask[name]} == {"wq", "w_down", "output", "kernel"}


def test_settings_are_checked():
    with pytest.raises(OptimizerError, match="optimizer.schedule"):
        OptimizerConfig(schedule="wsd")
    with pytest.raises(OptimizerError, match="optimizer.peak_rl"):
        make_optimizer({"peak_rl": 1.0}, 10)
    with pytest.raises(OptimizerError, match="train.steps"):
        make_optimizer({}, 0)


def _orthogonal(matrix):
    """The quintic iteration on a matrix scaled to norm 1, in float64: Muon's update without its scale."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / np.linalg.norm(wide)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrix else x.T


def test_muon_equals_its_definition_layer_by_layer():
    r = np.random.default_rng(2)
    shapes = {"wq": (2, 4, 2, 3), "wo": (2, 2, 3, 4), "w_down": (2, 8, 4), "embedding": (5, 4), "mlp_norm": (2, 4)}
    params = {k: jnp.asarray(r.normal(size=s), jnp.float32) for k, s in shapes.items()}
    grads = {k: jnp.asarray(r.normal(size=s), jnp.float32) for k, s in shapes.items()}
    settings = OptimizerConfig(
        peak_lr=0.1, muon_lr=0.02, warmup_fraction=0.0, schedule="constant", clip_norm=0.0, weight_decay=0.1
    )
    tx, schedule = make_optimizer(settings, 10)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert float(schedule(0)) == pytest.approx(0.1)
    for name, (rows, columns) in {"wq": (4, 6), "wo": (6, 4), "w_down": (8, 4)}.items():
        for layer in range(2):
            gradient = np.asarray(grads[name][layer], np.float64).reshape(rows, columns)
            step = _orthogonal(gradient) * 0.2 * np.sqrt(max(rows, columns))
            expected = -0.02 * (step + 0.1 * np.asarray(params[name][layer]).reshape(rows, columns))
            np.testing.assert_allclose(updates[name][layer].reshape(rows, columns), expected, rtol=2e-3, atol=2e-5)
    first = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # Adam with Nesterov momentum, its first step over the rate; nothing decays
    for name in ("embedding", "mlp_norm"):
        np.testing.assert_allclose(np.abs(updates[name]), 0.1 * first, rtol=1e-4)


def test_muon_rate_must_not_be_negative():
    with pytest.raises(OptimizerError, match="optimizer.muon_lr"):
        OptimizerConfig(muon_lr=-1.0)
