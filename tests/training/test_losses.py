"""The chunked loss equals its definition; its sums and denominators are global; the published trainer's numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_losses import golden_batch

from ar_omni_jax.documents import TASKS, token_class
from ar_omni_jax.training import losses
from ar_omni_jax.vocabulary import Modality

GOLDEN = Path(__file__).parent.parent / "golden"


def inputs(batch=3, length=13, width=8, vocab=29, seed=0, dtype=np.float32):
    r = np.random.default_rng(seed)
    hidden = jnp.asarray(r.normal(size=(batch, length, width)), dtype)
    matrix = jnp.asarray(r.normal(size=(width, vocab)), jnp.float32)
    targets = jnp.asarray(r.integers(0, vocab, (batch, length)), jnp.int32)
    weights = jnp.asarray(r.choice([0.0, 1.0, 2.0], (batch, length)), jnp.float32)
    return hidden, matrix, targets, weights


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [0, 1, 7, 12, 39, 1000])
def test_value_and_gradient_equal_the_plain_form(chunk, z_loss):
    hidden, matrix, targets, weights = inputs()

    def value(form, hidden, matrix):
        out = form(hidden, matrix, targets, weights, *((z_loss, chunk) if form is losses.token_losses else (z_loss,)))
        return out.objective / jnp.sum(weights), out

    grad = jax.jit(jax.value_and_grad(value, argnums=(1, 2), has_aux=True), static_argnums=0)
    (plain, plain_out), plain_grads = grad(losses.plain_token_losses, hidden, matrix)
    (ours, out), grads = grad(losses.token_losses, hidden, matrix)
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
    np.testing.assert_allclose(out.nll, plain_out.nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.log_z, plain_out.log_z, rtol=1e-6, atol=1e-6)
    for a, b in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(jnp.abs(b).max()))
    without_gradient = losses.token_losses(hidden, matrix, targets, weights, z_loss, chunk)
    np.testing.assert_allclose(without_gradient.objective, out.objective, rtol=1e-6)


def test_bfloat16_product_is_summed_in_float32():
    hidden, matrix, targets, weights = inputs(width=512, dtype=jnp.bfloat16)
    exact = losses.plain_token_losses(hidden.astype(jnp.float32), matrix.astype(jnp.bfloat16), targets, weights)
    exact_f32 = losses.plain_token_losses(
        hidden.astype(jnp.float32), matrix.astype(jnp.bfloat16).astype(jnp.float32), targets, weights
    )
    ours = losses.token_losses(hidden, matrix, targets, weights, 0.0, 8)
    assert ours.nll.dtype == jnp.float32
    np.testing.assert_allclose(ours.nll, exact_f32.nll, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(exact.nll, exact_f32.nll, rtol=1e-4, atol=1e-3)
    grads = jax.grad(lambda h, m: losses.token_losses(h, m, targets, weights, 0.0, 8).objective, (0, 1))(hidden, matrix)
    assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == jnp.float32


def test_no_array_of_all_logits_is_made():
    hidden, matrix, targets, weights = inputs(batch=4, length=64, vocab=517)

    def value(hidden, matrix):
        return losses.token_losses(hidden, matrix, targets, weights, 0.0, 32).objective

    text = jax.jit(jax.grad(value, (0, 1))).lower(hidden, matrix).as_text()
    assert "4x8x517xf32" in text  # chunks of 32 tokens: 4 rows, 8 positions
    assert "4x64x517" not in text and "256x517" not in text


def test_positions_without_weight_change_nothing():
    hidden, matrix, targets, weights = inputs()
    other = jnp.where((weights > 0)[..., None], hidden, 7.0 * hidden + 1.0)
    other_targets = jnp.where(weights > 0, targets, 0)
    grad = jax.value_and_grad(lambda h, y: losses.token_losses(h, matrix, y, weights, 1e-3, 5).objective)
    (a, ga), (b, gb) = grad(hidden, targets), grad(other, other_targets)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ga, gb)
    assert not np.asarray(ga)[np.asarray(weights) == 0].any()


def test_denominators():
    weights = jnp.asarray([[2.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    assert float(losses.denominator(weights, "weights")) == 5.0
    assert float(losses.denominator(weights, "tokens")) == 3.0
    assert 0.0 / float(losses.denominator(0 * weights, "weights")) == 0.0


def test_sums_by_modality_and_task():
    r = np.random.default_rng(1)
    task, role, modality = r.integers(0, len(TASKS), (2, 40)), r.integers(0, 2, (2, 40)), r.integers(0, 4, (2, 40))
    nll, weights = r.normal(size=(2, 40)).astype(np.float32), r.choice([0.0, 1.0, 2.0], (2, 40)).astype(np.float32)
    nll[weights == 0] = np.nan
    out = losses.class_sums(jnp.asarray(nll), jnp.asarray(weights), jnp.asarray(token_class(task, role, modality)))
    for m in Modality:
        member = (modality == m) & (weights > 0)
        np.testing.assert_allclose(out[f"nll/{m.name.lower()}"], nll[member].sum(), rtol=1e-5, atol=1e-5)
        assert float(out[f"count/{m.name.lower()}"]) == member.sum()
    for i, name in enumerate(TASKS):
        member = (task == i) & (weights > 0)
        np.testing.assert_allclose(out[f"nll_task/{name}"], nll[member].sum(), rtol=1e-5, atol=1e-5)
        assert float(out[f"count_task/{name}"]) == member.sum()


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.5])
def test_next_token_part_of_the_published_trainer(weight):
    batch, arrays = golden_batch(weight)
    # The golden logits as the product of hidden states and an output matrix: logits times identity.
    logits = jnp.asarray(arrays["logits"])
    ours = losses.token_losses(
        logits, jnp.eye(logits.shape[-1]), batch["targets"], batch["loss_weights"], 0.0, 512
    ).objective / losses.denominator(batch["loss_weights"], "weights")
    expected = json.loads((GOLDEN / "losses.json").read_text())["total_loss"][f"seg{weight}_perc0.0"]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_settings_are_checked():
    with pytest.raises(losses.LossError, match="loss.normalize"):
        losses.LossConfig(normalize="rows")
    with pytest.raises(losses.LossError, match="loss.perceptual_wieght"):
        losses.LossConfig.of({"perceptual_wieght": 0.1})
