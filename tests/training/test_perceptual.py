"""Perceptual alignment: eq. 3, the published trainer's form, the frozen decoder, and that it cannot be copied."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_losses import GOLDEN, golden_batch, golden_vocabulary

from ar_omni_jax.documents import Role, task_index, token_class
from ar_omni_jax.main import image_decoder
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.training import losses, perceptual
from ar_omni_jax.training.losses import LossConfig, LossError
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.vocabulary import Modality, compact_vocabulary

VOCABULARY = compact_vocabulary(8, 12, 4, (2, 3), multiple=1)
WIDTH, CHANNELS = 5, 4


def toy_features(decoder, latents, depth):
    """Two stages standing in for a decoder: a channel mix, then a nonlinear upsampling."""
    x = jnp.tanh(latents @ decoder["a"])
    return x if depth == "mid" else jnp.repeat(x @ decoder["b"], 2, axis=1) ** 2


def frozen(seed=0):
    r = np.random.default_rng(seed)
    decoder = {"a": jnp.asarray(r.normal(size=(CHANNELS, 7))), "b": jnp.asarray(r.normal(size=(7, 3)))}
    codebook = jnp.asarray(r.normal(size=(VOCABULARY.image.count, CHANNELS)), jnp.float32)
    return FrozenImageDecoder(codebook, toy_features, decoder, ("mid", "pixels"))


def make_batch(rows, length=24):
    """Rows are lists of (task, role) images; each is <boi> codes <eoi> in a document of its own."""
    r = np.random.default_rng(3)
    full = np.full((len(rows), length + 1), VOCABULARY.pad, np.int32)
    segments, classes = np.zeros_like(full), np.zeros(full.shape, np.uint8)
    for i, images in enumerate(rows):
        at = 0
        for k, (task, role) in enumerate(images):
            codes = VOCABULARY.to_ids(Modality.IMAGE, r.integers(0, 12, VOCABULARY.image_length))
            ids = [VOCABULARY.marker("boi"), *codes, VOCABULARY.marker("eoi")]
            part = slice(at, at + len(ids))
            full[i, part], segments[i, part] = ids, k + 1
            classes[i, part] = token_class(task_index(task), role, VOCABULARY.modality_table[ids])
            at += len(ids)
    batch = {
        "tokens": full[:, :-1],
        "targets": full[:, 1:],
        "segment_ids": segments[:, :-1],
        "target_class": classes[:, 1:],
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


ROWS = [[("t2i", 1), ("caption", 0)], [], [("caption", 0)], [("t2i", 1), ("t2i", 1), ("chat_image", 1)]]


def sums(config, batch, hidden, projection, decoder, step=0):
    marks = perceptual.image_positions(batch, config, VOCABULARY)
    if config.perceptual_depth != "codebook":
        marks = perceptual.choose_images(marks, VOCABULARY.image_length, config.perceptual_images, step)
    return perceptual.perceptual_sums(projection, hidden, batch, marks, decoder, config, VOCABULARY)


def random_hidden(batch, seed=0):
    shape = (*batch["tokens"].shape, WIDTH)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def image_starts(batch, response_only=False):
    """(row, position of <boi>) of every image, by reading the tokens."""
    tokens, classes = np.asarray(batch["tokens"]), np.asarray(batch["target_class"])
    found = np.argwhere(tokens == VOCABULARY.marker("boi"))
    return [(i, t) for i, t in found if not response_only or (classes[i, t] // 4) % 2 == Role.RESPONSE]


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("factor", [0.0, 0.25])
def test_total_loss_of_the_published_trainer(weight, factor):
    batch, arrays = golden_batch(weight)
    vocabulary = golden_vocabulary()
    config = LossConfig(perceptual_weight=factor, perceptual_alignment="reference")
    projection = {"kernel": jnp.asarray(arrays["projection_w"].T), "bias": jnp.asarray(arrays["projection_b"])}
    logits = jnp.asarray(arrays["logits"])
    next_token = losses.token_losses(
        logits, jnp.eye(logits.shape[-1]), batch["targets"], batch["loss_weights"], 0.0, 0
    ).objective / losses.denominator(batch["loss_weights"], "weights")
    marks = perceptual.image_positions(batch, config, vocabulary)
    term = perceptual.perceptual_sums(
        projection,
        jnp.asarray(arrays["hidden"]),
        batch,
        marks,
        FrozenImageDecoder(arrays["codebook"]),
        config,
        vocabulary,
    )
    expected = json.loads((GOLDEN / "losses.json").read_text())["total_loss"][f"seg{weight}_perc{factor}"]
    assert float(term.count) == 2 * 1024
    np.testing.assert_allclose(next_token + factor * term.total / term.count, expected, rtol=1e-5)


@pytest.mark.parametrize("scope", ["all", "response"])
def test_codebook_depth_is_equation_3(scope):
    batch, decoder = make_batch(ROWS), frozen()
    hidden, key = random_hidden(batch), jax.random.key(0)
    projection = perceptual.init_projection(key, WIDTH, CHANNELS) | {"bias": jnp.arange(4.0)}
    config = LossConfig(perceptual_weight=1.0, perceptual_scope=scope)
    total = count = 0
    for i, start in image_starts(batch, scope == "response"):
        for t in range(start, start + VOCABULARY.image_length):
            code = int(batch["targets"][i, t]) - VOCABULARY.image.start
            projected = np.asarray(hidden[i, t]) @ np.asarray(projection["kernel"]) + np.arange(4.0)
            total += np.sum((projected - np.asarray(decoder.codebook[code])) ** 2)
            count += 1
    ours = sums(config, batch, hidden, projection, decoder)
    assert float(ours.count) == count == 6 * (6 if scope == "all" else 4)
    np.testing.assert_allclose(ours.total, total, rtol=1e-5)


@pytest.mark.parametrize("depth", ["mid", "pixels"])
@pytest.mark.parametrize("alignment", ["predicting", "reference"])
def test_deeper_is_the_mean_over_images_of_decoder_features(depth, alignment):
    batch, decoder = make_batch(ROWS), frozen()
    hidden = random_hidden(batch)
    projection = perceptual.init_projection(jax.random.key(0), WIDTH, CHANNELS, bias=False)
    config = LossConfig(
        perceptual_weight=1.0, perceptual_depth=depth, perceptual_images=9, perceptual_alignment=alignment
    )
    starts = image_starts(batch)
    if alignment == "reference":
        starts = [(i, t) for i, t in starts if batch["target_class"][i, t] // 8 == task_index("t2i")]
    total = 0.0
    for i, start in starts:
        shift = 1 if alignment == "reference" else 0
        grid = (1, *VOCABULARY.image_grid, CHANNELS)
        predicted = (hidden[i, start + shift : start + shift + 6] @ projection["kernel"]).reshape(grid)
        target = decoder.codebook[batch["targets"][i, start : start + 6] - VOCABULARY.image.start].reshape(grid)
        error = toy_features(decoder.decoder, predicted, depth) - toy_features(decoder.decoder, target, depth)
        total += CHANNELS * float(jnp.mean(error**2))
    ours = sums(config, batch, hidden, projection, decoder)
    assert float(ours.count) == len(starts)
    np.testing.assert_allclose(ours.total, total, rtol=1e-4)


@pytest.mark.parametrize("depth", ["mid", "up_3", "pixels"])
def test_one_weight_serves_every_depth_of_a_real_decoder(depth):
    tokenizers = load_tokenizers("toyworld", need=("image",))
    decoder = image_decoder(tokenizers, depth)
    codes = np.random.default_rng(7).integers(len(decoder.codebook), size=(2, 6, *tokenizers.vocabulary.image_grid))
    a, b = jnp.asarray(decoder.codebook)[codes]
    ours, theirs = (decoder.features(decoder.decoder, z, depth) for z in (a, b))
    ratio = float(jnp.mean(jnp.square(ours - theirs)) / jnp.mean(jnp.square(a - b)))
    assert ratio > 1e3 or depth == "pixels"  # unscaled the term drowned the rest
    np.testing.assert_allclose(ratio * decoder.scale, 1, rtol=0.15)
    assert image_decoder(tokenizers).scale == image_decoder(tokenizers, "nowhere").scale == 1


def test_the_scale_multiplies_deeper_terms_alone():
    batch, decoder = make_batch(ROWS), frozen()
    hidden, projection = (
        random_hidden(batch),
        perceptual.init_projection(jax.random.key(0), WIDTH, CHANNELS, bias=False),
    )
    for depth, factor in (("codebook", 1), ("mid", 0.25)):
        config = LossConfig(perceptual_weight=1.0, perceptual_depth=depth, perceptual_images=9)
        one, other = (
            sums(config, batch, hidden, projection, dataclasses.replace(decoder, scale=scale)) for scale in (1.0, 0.25)
        )
        np.testing.assert_allclose(other.total, factor * one.total, rtol=1e-6)


def test_a_decoder_that_makes_the_same_of_all_codes_is_refused():
    dead = dataclasses.replace(frozen(), features=lambda decoder, z, depth: jnp.zeros_like(z))
    with pytest.raises(LossError, match="'mid': this image decoder makes the same"):
        perceptual.depth_scale(dead, "mid", VOCABULARY.image_grid)
    broken = dataclasses.replace(frozen(), features=lambda decoder, z, depth: z * jnp.nan)
    with pytest.raises(LossError, match="makes the same"):
        perceptual.depth_scale(broken, "mid", VOCABULARY.image_grid)


def test_only_complete_images_are_drawn_and_the_draw_is_fixed():
    batch = make_batch(ROWS)
    positions = perceptual.image_positions(batch, LossConfig(), VOCABULARY)
    cut = positions.at[0, 0].set(False)  # the first image of row 0 loses a code
    draws = [np.asarray(perceptual.choose_images(cut, 6, 3, step)) for step in range(8)]
    starts = {tuple(x) for x in image_starts(batch)[1:]}
    for draw in draws:
        assert draw.sum() == 3 and {tuple(x) for x in np.argwhere(draw)} <= starts
    assert len({draw.tobytes() for draw in draws}) > 1
    np.testing.assert_array_equal(draws[2], perceptual.choose_images(cut, 6, 3, 2))
    assert not perceptual.choose_images(positions[:, :4], 6, 3).any()


@pytest.mark.parametrize("depth", ["codebook", "mid", "pixels"])
@pytest.mark.parametrize("alignment", ["predicting", "reference"])
def test_a_batch_without_images_gives_exact_zeros(depth, alignment):
    batch, decoder = make_batch([[], []]), frozen()
    config = LossConfig(perceptual_weight=1.0, perceptual_depth=depth, perceptual_alignment=alignment)
    projection = perceptual.init_projection(jax.random.key(0), WIDTH, CHANNELS)

    def total(projection, hidden):
        return sums(config, batch, hidden, projection, decoder).total

    value, grads = jax.value_and_grad(total, (0, 1))(projection, random_hidden(batch))
    assert float(value) == 0.0
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("depth", ["codebook", "mid", "pixels"])
def test_gradients_reach_hidden_and_projection_and_never_the_tokenizer(depth):
    batch, decoder = make_batch(ROWS), frozen()
    config = LossConfig(perceptual_weight=1.0, perceptual_depth=depth)
    projection = perceptual.init_projection(jax.random.key(0), WIDTH, CHANNELS)

    def total(hidden, projection, codebook, weights):
        return sums(config, batch, hidden, projection, FrozenImageDecoder(codebook, toy_features, weights)).total

    grads = jax.grad(total, (0, 1, 2, 3))(random_hidden(batch), projection, decoder.codebook, decoder.decoder)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[:2]))
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads[2:]))


def test_settings_that_do_not_fit_are_refused():
    config = LossConfig(perceptual_weight=0.1, perceptual_depth="up_9")
    with pytest.raises(LossError, match="up_9.*mid"):
        perceptual.check_depth(config, frozen(), VOCABULARY)
    with pytest.raises(LossError, match="image tokenizer"):
        perceptual.check_depth(config, None, VOCABULARY)
    small = FrozenImageDecoder(jnp.zeros((3, 4)))
    with pytest.raises(LossError, match="3 codes"):
        perceptual.check_depth(LossConfig(perceptual_weight=0.1), small, VOCABULARY)


def fit(alignment: str, structured: bool, steps: int = 150) -> float:
    """The last mean loss of a causal model (a bag of the last two tokens) on images of the given kind."""
    codes, decoder = 12, frozen(1)
    book = (decoder.codebook - decoder.codebook.mean(0)) / decoder.codebook.std()
    decoder = FrozenImageDecoder(book)
    config = LossConfig(perceptual_weight=1.0, perceptual_alignment=alignment)
    key = jax.random.key(0)
    params = {
        "embed": jax.random.normal(key, (VOCABULARY.size, 32)) * 0.3,
        "previous": jax.random.normal(key, (VOCABULARY.size, 32)) * 0.3,
        "projection": perceptual.init_projection(key, 32, CHANNELS),
    }
    tx = optax.adam(0.03)

    def loss(params, tokens):
        segments = jnp.ones_like(tokens)
        classes = jnp.full(tokens.shape, token_class(task_index("t2i"), 1, Modality.IMAGE), jnp.uint8)
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
        hidden = params["embed"][tokens] + params["previous"][before]
        targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
        batch = {"targets": targets, "segment_ids": segments, "target_class": classes}
        term = sums(config, batch, hidden, params["projection"], decoder)
        return term.total / term.count

    @jax.jit
    def step(params, state, key):
        length = VOCABULARY.image_length
        first = jax.random.randint(key, (32, 1), 0, codes)
        noise = jax.random.randint(jax.random.fold_in(key, 1), (32, length), 0, codes)
        image = (first + jnp.arange(length)) % codes if structured else noise
        tokens = jnp.pad(image + VOCABULARY.image.start, ((0, 0), (1, 1)), constant_values=VOCABULARY.marker("boi"))
        value, grads = jax.value_and_grad(loss)(params, tokens)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, values = tx.init(params), []
    for i in range(steps):
        params, state, value = step(params, state, jax.random.key(i))
        values.append(float(value))
    return float(np.mean(values[-20:])) * (CHANNELS if alignment == "reference" else 1)


def test_random_codes_cannot_be_copied_at_predicting_positions():
    book = np.asarray(frozen(1).codebook)
    book = (book - book.mean(0)) / book.std()
    variance = np.mean(np.sum((book - book.mean(0)) ** 2, -1))
    assert fit("predicting", structured=False) > 0.95 * variance
    assert fit("reference", structured=False) < 0.05 * variance
    # Structured images: all codes but the first follow from their predecessors.
    assert fit("predicting", structured=True) < 1.15 * variance / VOCABULARY.image_length
