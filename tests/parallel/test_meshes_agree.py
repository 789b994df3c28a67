"""One loss on every mesh: packed rows, perceptual loss at depth, micro-batches, remat, all together.

Float32 sums in another order differ by a few units in the last place (1.2e-7 each): over the some hundred terms of a
mean, and through two layers, 2e-5 relative is wide, and a wrong weight, a lost row or a leaking document is far
outside of it. Parameters after Adam steps: its first steps divide a gradient by its own size, so where a gradient is
nearly 0 its rounding shows as up to a step; 1e-4 absolute is 1 % of a step.
"""

import dataclasses

import jax
import numpy as np
import pytest

from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.training.step import Trainer
from tests.training.test_step import CONFIG, VOCABULARY, image_decoder, make_batch

ROWS = 16
LOSS = {"chunk": 16, "z_loss": 1e-3, "perceptual_weight": 0.3, "perceptual_depth": "mid", "perceptual_images": 3}
OPTIMIZER = {"peak_lr": 0.01, "warmup_fraction": 0.0, "weight_decay": 0.1, "accumulate": 2}


def run(mesh: dict, devices: int, **model):
    config = dataclasses.replace(CONFIG, **model)
    mesh = make_mesh(mesh, jax.devices()[:devices])
    trainer = Trainer(config, LOSS, OPTIMIZER, VOCABULARY, mesh, image_decoder(), total_steps=10)
    state, history = trainer.init(0), []
    for step in range(2):
        state, metrics = trainer.train_step(state, trainer.put(make_batch(step, ROWS)))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@pytest.fixture(scope="module")
def one_device():
    return run({}, 1)


@pytest.mark.parametrize(
    "mesh, model",
    [
        ({"data": 8}, {"attention": "rowwise", "remat": "none"}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"attention": "reference", "remat": "zero_recompute"}),
        ({"fsdp": 2, "sequence": 2, "tensor": 2}, {"attention": "blocked", "remat": "full", "tie_embeddings": False}),
    ],
    ids=["8x1", "2x2x2", "2x2x2 with split rows"],
)
def test_losses_of_one_device(one_device, mesh, model):
    state, history = run(mesh, 8, **model)
    expected, expected_history = one_device
    assert expected_history[0]["perceptual_count"] == 3 and expected_history[0]["skipped"] == 0
    for ours, theirs in zip(history, expected_history, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=2e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
