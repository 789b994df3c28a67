"""The perceptual term alone on the shipped image codes: it falls on pictures, and noise gives it nothing to learn."""

import random

import jax
import numpy as np
import pytest

from ar_omni_jax.documents import Role, task_index, token_class
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.training.step import Trainer
from ar_omni_jax.vocabulary import Modality, compact_vocabulary
from data_pipelines.toyworld import draw, random_scene

ROWS, STEPS, HELD_OUT = 8, 100, 16
SHAPE = {"num_layers": 1, "d_model": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "d_ff": 64}


@pytest.fixture(scope="module")
def image():
    return load_tokenizers("toyworld", need=("image",)).image


@pytest.fixture(scope="module")
def trainer(image):
    vocabulary = compact_vocabulary(8, len(image.codebook), 4, (8, 8))
    return Trainer(
        TransformerConfig(vocab_size=vocabulary.size, max_length=128, attention="reference", **SHAPE),
        {"perceptual_weight": 1.0, "chunk": 0},
        {"peak_lr": 0.01, "schedule": "constant", "warmup_fraction": 0.1},
        vocabulary,
        make_mesh({"data": 1}, jax.devices()[:1]),
        FrozenImageDecoder(image.codebook),
        total_steps=STEPS,
    )


def batch(trainer, codes):
    """Rows <boi> codes <eoi> of one document each, without a next-token loss."""
    vocabulary = trainer.vocabulary
    full = np.pad(vocabulary.to_ids(Modality.IMAGE, codes), ((0, 0), (1, 1)), constant_values=vocabulary.marker("boi"))
    full[:, -1] = vocabulary.marker("eoi")
    tokens, targets = full[:, :-1], full[:, 1:]
    classes = token_class(task_index("t2i"), Role.RESPONSE, vocabulary.modality_table[targets])
    return trainer.put(
        {
            "tokens": tokens,
            "targets": targets,
            "loss_weights": np.zeros(tokens.shape, np.float32),
            "target_class": classes.astype(np.uint8),
            "segment_ids": np.ones_like(tokens),
            "positions": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
        }
    )


def fit(trainer, draw_codes):
    """(first, last held-out) mean squared distance after STEPS batches of `draw_codes(rows)`."""
    held_out = batch(trainer, draw_codes(HELD_OUT))

    def measure():
        sums = trainer.eval_step(state, held_out)
        return float(sums["perceptual_sum"] / sums["perceptual_count"])

    state = trainer.init(0)
    first = measure()
    for _ in range(STEPS):
        state, _ = trainer.train_step(state, batch(trainer, draw_codes(ROWS)))
    return first, measure()


def spread(codebook, codes):
    """Mean squared distance of the codes' embeddings from their own mean: the best that one answer for all reaches."""
    vectors = np.asarray(codebook)[np.ravel(codes)]
    return float(np.mean(np.sum((vectors - vectors.mean(0)) ** 2, -1)))


def test_noise_stays_at_the_codebooks_variance(trainer, image):
    rng = np.random.default_rng(0)
    variance = spread(image.codebook, np.arange(len(image.codebook)))
    _, last = fit(trainer, lambda rows: rng.integers(0, len(image.codebook), (rows, 64)))
    assert 0.97 * variance < last < 1.3 * variance


def test_pictures_are_learned(trainer, image):
    rng = random.Random(0)
    pictures = np.stack([np.asarray(draw(random_scene(rng)), np.float32) for _ in range(HELD_OUT + 96)])
    codes = image.encode(pictures / 127.5 - 1.0)
    at = [0]

    def following(rows):  # in turn, the held-out ones first and never again
        at[0] = at[0] if at[0] + rows <= len(codes) else HELD_OUT
        at[0] += rows
        return codes[at[0] - rows : at[0]]

    first, last = fit(trainer, following)
    assert last < 0.4 * spread(image.codebook, codes) < first
