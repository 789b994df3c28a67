"""The image codec's part of `ar_omni_jax.tokenizers.train`: losses, step, codebook, evaluation, export.

Loss = |x - y| + (x - y)^2 + edge_weight * |grad x - grad y| + commitment_weight * |z - sg(e)|^2 / sg(var z)
+ context_weight * |z(crop of x) - crop of z(x)|^2 / var z, as means over all elements. For the first
`codebook_start` steps the network is a plain autoencoder, so that k-means finds latents worth clustering. The last
two terms are relative to the latents' variance: their scale is free.

The last term is for the language model that will read the codes. Group normalization and attention let a patch's
latent depend on the whole picture, and a codebook then spends codes on that: without the term one flat background
patch was coded in 40 to 100 ways, and every choice among them is a token that nothing in a text predicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from ar_omni_jax.tokenizers.image import codebook as upkeep
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.data import ImageSet, batch_indices, busiest_crops, list_images
from ar_omni_jax.tokenizers.image.model import VQGAN
from ar_omni_jax.tokenizers.image.preprocess import encode_png, to_uint8
from ar_omni_jax.tokenizers.image.scale import with_unit_codebook
from ar_omni_jax.tokenizers.image.weights import published_state, save_weights

State = dict[str, Any]
CROP_TRIES = 4
POOL_BATCHES = 8  # batches of crops that revived codes are chosen from
EVALUATION_BATCH = 50
SHEET_COLUMNS = 8


def create_task(config: Any) -> ImageTask:
    """The task for `ar_omni_jax.tokenizers.train`; OSError or ValueError when data or config are unusable."""
    return ImageTask(config)


def _make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon on the convolutions, Adam at half the rate on norms and biases.

    On 64x64 scenes Muon reached in 150 steps the error that Adam alone had after 250.
    """

    def dimensions(params: Any) -> Any:
        kernel = MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
        return jax.tree.map(lambda leaf: kernel if leaf.ndim == 4 else None, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        muon(
            schedule,
            consistent_rms=0.2,  # updates as large as Adam's, so both take rates of one scale
            adam_b2=0.99,
            adam_learning_rate=lambda step: 0.5 * schedule(step),
            muon_weight_dimension_numbers=dimensions,
        ),
    )


def _edges(pixels_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Differences of neighbouring pixels down and across."""
    return pixels_BHWC[:, 1:] - pixels_BHWC[:, :-1], pixels_BHWC[:, :, 1:] - pixels_BHWC[:, :, :-1]


def reconstruction_loss(pixels_BHWC: jax.Array, decoded_BHWC: jax.Array, edge_weight: float) -> jax.Array:
    """Mean absolute plus mean squared error, plus edge_weight times the mean absolute error of the edges."""
    error = pixels_BHWC - decoded_BHWC
    edge = sum(jnp.mean(jnp.abs(difference)) for difference in _edges(error))
    return jnp.mean(jnp.abs(error)) + jnp.mean(jnp.square(error)) + edge_weight * edge


def matching_crops(
    key: jax.Array, pixels_BHWC: jax.Array, latents_BhwD: jax.Array, downsampling: int
) -> tuple[jax.Array, jax.Array]:
    """From each picture a crop of half its sides, by lot and in whole codes: (pixels, the latents that lie inside).

    Returns float32 [B, H / 2, W / 2, 3] and [B, h / 2, w / 2, D], where h = H / downsampling.
    """
    batch, height, width, depth = latents_BhwD.shape
    half = (height // 2, width // 2)
    low, high = jnp.zeros(2, jnp.int32), jnp.array([height - half[0] + 1, width - half[1] + 1])
    corners_B2 = jax.random.randint(key, (batch, 2), low, high)

    def crop(picture, cells, corner):
        top, left = corner
        begin = (top * downsampling, left * downsampling, 0)
        pixels = jax.lax.dynamic_slice(picture, begin, (half[0] * downsampling, half[1] * downsampling, 3))
        return pixels, jax.lax.dynamic_slice(cells, (top, left, 0), (*half, depth))

    return jax.vmap(crop)(pixels_BHWC, latents_BhwD, corners_B2)


class ImageTask:
    """See `ar_omni_jax.tokenizers.train.CodecTask`. State: params, optimizer, codebook statistics."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.model_config = VQGANConfig.from_dict(config.model.to_dict())
        size = self.model_config.resolution
        self.train_set = ImageSet(list_images(config.data_dir, "train"), size)
        self.test_set = ImageSet(list_images(config.data_dir, "test", config.eval_images), size)
        self.optimizer = _make_optimizer(config, self._learning_rate)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: VQGAN(self.model_config, nnx.Rngs(0))))
        self._step = jax.jit(self._train_step, donate_argnums=0)
        self._latents = jax.jit(lambda params, pixels: self._model(params).latents(pixels))
        self._round_trip = jax.jit(self._encode_decode)

    def _learning_rate(self, step: jax.Array) -> jax.Array:
        """Linear warm-up, then a cosine to 1/50 of the peak at the last step."""
        config, peak = self.config, self.config.learning_rate
        warm = jnp.minimum(1.0, (step + 1) / config.warmup_steps)
        progress = jnp.clip(step / config.steps, 0, 1)
        return peak * warm * (0.02 + 0.98 * 0.5 * (1 + jnp.cos(math.pi * progress)))

    def _model(self, params: nnx.State) -> VQGAN:
        return nnx.merge(self.graphdef, params)

    # ------------------------------------------------------------------------------------- training

    def init(self, seed: int) -> State:
        params = nnx.state(VQGAN(self.model_config, nnx.Rngs(seed)), nnx.Param)
        size, width = self.model_config.n_embed, self.model_config.embed_dim
        statistics = {"count": jnp.ones((size,)), "sum": jnp.zeros((size, width))}
        return {"params": params, "optimizer": self.optimizer.init(params), "codebook": statistics}

    def batches(self, start_step: int, seed: int) -> Iterator[np.ndarray]:
        step = start_step
        while True:
            yield self._batch(step, seed)
            step += 1

    def _batch(self, step: int, seed: int) -> np.ndarray:
        """Whole pictures; before `crop_until`, the busiest of a few crops of each."""
        config = self.config
        if step >= config.crop_until:
            return self.train_set.batch(batch_indices(len(self.train_set), config.batch_size, step, seed))
        chosen = batch_indices(len(self.train_set), config.crop_batch_size, step, seed)
        return self._crops(chosen, np.random.default_rng((seed, step, 2)))

    def _crops(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pixels = self.train_set.batch(chosen)
        return busiest_crops(pixels, self.config.crop_size, self.model_config.downsampling, CROP_TRIES, rng)

    def train_step(self, state: State, batch: np.ndarray, step: int) -> tuple[State, dict[str, jax.Array]]:
        quantizing = jnp.asarray(step >= self.config.codebook_start)
        return self._step(state, batch, quantizing, jax.random.key(step))

    def _train_step(self, state: State, pixels: jax.Array, quantizing: jax.Array, key: jax.Array) -> tuple[State, dict]:
        config = self.config

        def loss_of(params: nnx.State) -> tuple[jax.Array, tuple]:
            model = self._model(params)
            latents = model.latents(pixels)
            codes = model.codes(latents)
            vectors = jax.lax.stop_gradient(model.embed(codes))
            # Straight-through: the decoder sees the code's vector, the encoder gets the decoder's gradient.
            quantized = latents + jax.lax.stop_gradient(jnp.where(quantizing, vectors - latents, 0.0))
            decoded = model.decode(quantized)
            reconstruction = reconstruction_loss(pixels, decoded, config.edge_weight)
            variance = jnp.mean(jnp.var(latents, axis=(0, 1, 2))) + 1e-8
            drift = jnp.mean(jnp.square(latents - vectors)) / jax.lax.stop_gradient(variance)
            commitment = jnp.where(quantizing, drift, 0.0)
            parts, inside = matching_crops(key, pixels, latents, self.model_config.downsampling)
            context = jnp.mean(jnp.square(model.latents(parts) - inside)) / variance
            loss = reconstruction + config.commitment_weight * commitment + config.context_weight * context
            metrics = {"loss": loss, "commitment": commitment, "context": context}
            metrics["mse"] = jnp.mean(jnp.square(pixels - decoded))
            return loss, (metrics, latents, codes)

        gradients, (metrics, latents, codes) = jax.grad(loss_of, has_aux=True)(state["params"])
        updates, optimizer = self.optimizer.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        moved = upkeep.moving_average(
            state["codebook"],
            latents.reshape(-1, latents.shape[-1]),
            codes.reshape(-1),
            config.codebook_decay,
        )
        statistics = jax.tree.map(lambda new, old: jnp.where(quantizing, new, old), moved, state["codebook"])
        params = _with_codebook(params, upkeep.codebook_of(statistics))
        metrics["psnr"] = -10 * jnp.log10(metrics.pop("mse") / 4)  # pixels span 2
        used = jnp.zeros(self.model_config.n_embed, bool).at[codes.reshape(-1)].set(True)
        metrics["batch_use"] = jnp.mean(used)
        return {"params": params, "optimizer": optimizer, "codebook": statistics}, metrics

    # -------------------------------------------------------------------------------------- codebook

    def after_step(self, state: State, step: int, seed: int) -> State:
        config = self.config
        rng = np.random.default_rng((seed, step, 1))
        if step == config.codebook_start:
            points = self._pool(state, rng, config.kmeans_images)
            centres = upkeep.k_means(points, self.model_config.n_embed, config.kmeans_iterations, rng)
            return self._place(state, centres, np.ones(len(centres), bool))
        last = int(config.steps * config.revive_until)
        if step % config.revive_every == 0 and config.codebook_start < step <= last:
            dead = np.asarray(state["codebook"]["count"]) < config.dead_below
            if dead.any():
                points = self._pool(state, rng, POOL_BATCHES * config.crop_batch_size)
                book = np.asarray(upkeep.codebook_of(state["codebook"]))
                return self._place(state, upkeep.revive(book, dead, points, rng), dead)
        return state

    def _pool(self, state: State, rng: np.random.Generator, count: int) -> np.ndarray:
        """Latents [N, D] of busy crops of about `count` training pictures drawn by lot.

        Crops even when training sees whole pictures: most of these is background, which needs few codes.
        """
        size = self.config.crop_batch_size
        chosen = rng.integers(len(self.train_set), size=(max(1, count // size), size))
        rows = [np.asarray(self._latents(state["params"], self._crops(row, rng))) for row in chosen]
        return np.concatenate(rows).reshape(-1, self.model_config.embed_dim)

    def _place(self, state: State, book_KD: np.ndarray, moved_K: np.ndarray) -> State:
        """Puts the codes `moved_K` where `book_KD` has them, with a count that soon dies if nothing comes."""
        old = {name: np.asarray(value) for name, value in state["codebook"].items()}
        count = np.where(moved_K, 4 * self.config.dead_below, old["count"]).astype(np.float32)
        sums = np.where(moved_K[:, None], book_KD * count[:, None], old["sum"]).astype(np.float32)
        statistics = {"count": jnp.array(count), "sum": jnp.array(sums)}
        params = _with_codebook(state["params"], upkeep.codebook_of(statistics))
        return {**state, "params": params, "codebook": statistics}

    # ------------------------------------------------------------------------------ results

    def _encode_decode(self, params: nnx.State, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = self._model(params)
        codes = model.codes(model.latents(pixels))
        return codes, jnp.clip(model.decode(model.embed(codes)), -1, 1)

    def evaluate(self, state: State) -> tuple[dict[str, float], dict[str, bytes]]:
        """Test split: PSNR in dB, mean absolute error of 0..255, share of codes used, their perplexity."""
        counts, squared, absolute = np.zeros(self.model_config.n_embed), 0.0, 0.0
        sheet: list[np.ndarray] = []
        for start in range(0, len(self.test_set), EVALUATION_BATCH):
            pixels = self.test_set.batch(np.arange(start, min(start + EVALUATION_BATCH, len(self.test_set))))
            codes, decoded = (np.asarray(value) for value in self._round_trip(state["params"], pixels))
            counts += np.bincount(codes.reshape(-1), minlength=len(counts))
            squared += float(np.sum(np.square(pixels - decoded), dtype=np.float64))
            absolute += float(np.sum(np.abs(pixels - decoded), dtype=np.float64))
            if not sheet:
                sheet = [to_uint8(pixels), to_uint8(decoded)]
        elements = len(self.test_set) * self.model_config.resolution**2 * 3
        share = counts[counts > 0] / counts.sum()
        metrics = {
            "psnr": -10 * math.log10(max(squared / elements / 4, 1e-12)),
            "mean_absolute_error": absolute / elements * 127.5,
            "codebook_use": float(np.mean(counts > 0)),
            "perplexity": float(np.exp(-np.sum(share * np.log(share)))),
            "images": len(self.test_set),
        }
        return metrics, {"reconstructions.png": encode_png(_contact_sheet(*sheet))}

    def export(self, state: State, path_prefix: str, provenance: dict[str, Any]) -> None:
        weights = with_unit_codebook(published_state(state["params"]))
        save_weights(path_prefix, self.model_config, weights, provenance)


def _with_codebook(params: nnx.State, book_KD: jax.Array) -> nnx.State:
    flat = [
        (path, param.replace(book_KD) if path == ("quantize", "embedding", "weight") else param)
        for path, param in nnx.to_flat_state(params)
    ]
    return nnx.from_flat_state(flat)


def _contact_sheet(originals: np.ndarray, decoded: np.ndarray, rows: int = 3) -> np.ndarray:
    """Rows of originals, each with its reconstructions below: uint8 [H, W, 3]."""
    strips = []
    for start in range(0, min(len(originals), rows * SHEET_COLUMNS), SHEET_COLUMNS):
        for pictures in (originals, decoded):
            row = pictures[start : start + SHEET_COLUMNS]
            padding = ((0, SHEET_COLUMNS - len(row)), (0, 0), (0, 0), (0, 0))
            strips.append(np.concatenate(list(np.pad(row, padding)), axis=1))
    return np.concatenate(strips)
