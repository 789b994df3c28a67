"""Perceptual alignment: the hidden state that predicts an image code should project onto that code's embedding.

Eq. 3 of the paper: L_perc = (1/|T|) sum over t in T of ||W_h h_t - E[y_t]||^2, where T are the positions whose
target is an image code, E the frozen codebook and W_h a trained projection. `depth` carries the comparison on
through the first stages of the frozen image decoder, after eq. 3 at "codebook".

Letters: B rows, L positions, D model width, E codebook width, N images compared, h w the grid of codes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.documents import Role, split_token_class, task_index
from ar_omni_jax.training.losses import LossConfig, LossError
from ar_omni_jax.vocabulary import JointVocabulary, Modality

SCALE_PICTURES = 4  # pairs that `depth_scale` compares


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["codebook", "decoder"], meta_fields=["features", "depths", "scale"]
)
@dataclasses.dataclass(frozen=True)
class FrozenImageDecoder:
    """What the perceptual loss needs of an image tokenizer; nothing of it is ever trained.

    Attributes:
      codebook: float32 [K, E].
      features: (decoder, latents [N, h, w, E], depth) -> float32 [N, h', w', C], pure and differentiable in the
        latents.
      decoder: its first argument, any pytree of arrays (an NNX module is one).
      depths: names that `features` knows, "codebook" left out.
      scale: of squared differences at the depth in use, if that is not "codebook": `depth_scale`.
    """

    codebook: Any
    features: Callable[[Any, jax.Array, str], jax.Array] | None = None
    decoder: Any = None
    depths: tuple[str, ...] = ()
    scale: float = 1.0


def depth_scale(frozen: FrozenImageDecoder, depth: str, grid: tuple[int, int]) -> float:
    """By what a mean squared difference of features at `depth` is multiplied to be on the scale of the codebook's.

    Pictures of random codes are then as far apart at every depth, and one weight serves all: the decoder's own
    activations may be a hundred times larger than its codes. Rounded to three digits, so that hosts agree on it.
    1 at "codebook". LossError when the features of random codes do not differ, or not by a number.
    """
    if depth == "codebook":
        return 1.0
    codes = np.random.default_rng(0).integers(len(frozen.codebook), size=(2, SCALE_PICTURES, *grid))
    pictures = jnp.asarray(frozen.codebook, jnp.float32)[codes]

    def apart(features) -> float:
        return float(jnp.mean(jnp.square(features(pictures[0]) - features(pictures[1]))))

    scale = apart(lambda z: z) / max(apart(lambda z: frozen.features(frozen.decoder, z, depth)), 1e-30)
    if not 0 < scale < 1e20:
        raise LossError(f"loss.perceptual_depth = {depth!r}: this image decoder makes the same of all codes there")
    return float(f"{scale:.3g}")


class PerceptualSums(NamedTuple):
    """total: float32 scalar, sum of squared distances (with the gradient); count: float32 scalar, the positions
    ("codebook") or images (deeper) it was taken over. total / count over all micro-batches is L_perc."""

    total: jax.Array
    count: jax.Array


def check_depth(config: LossConfig, frozen: FrozenImageDecoder | None, vocabulary: JointVocabulary) -> None:
    """LossError when the settings ask for what `frozen` or `vocabulary` cannot give."""
    if not config.perceptual_weight:
        return
    if frozen is None:
        raise LossError(
            f"loss.perceptual_weight = {config.perceptual_weight} needs the image tokenizer's codebook, and this run "
            "has no image tokenizer; name one in data.tokenizers or set the weight to 0"
        )
    depths = ("codebook", *frozen.depths)
    if config.perceptual_depth not in depths:
        raise LossError(f"loss.perceptual_depth = {config.perceptual_depth!r}: must be one of {', '.join(depths)}")
    if len(frozen.codebook) != vocabulary.image.count:
        raise LossError(
            f"the image codebook has {len(frozen.codebook)} codes, vocabulary {vocabulary.name!r} has "
            f"{vocabulary.image.count} image ids; they belong to different tokenizers"
        )


def init_projection(key: jax.Array, width: int, channels: int, bias: bool = True) -> dict[str, jax.Array]:
    """W_h: {"kernel": [D, E], "bias": [E]} float32. Standard deviation D^-0.5: the last norm's states give
    projections of unit variance."""
    params = {"kernel": jax.random.normal(key, (width, channels), jnp.float32) * width**-0.5}
    return params | ({"bias": jnp.zeros((channels,), jnp.float32)} if bias else {})


def project(projection: Mapping[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """W_h h: [..., D] -> float32 [..., E]."""
    kernel = projection["kernel"].astype(hidden.dtype)
    out = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return out + projection["bias"] if "bias" in projection else out


def image_positions(batch: Mapping[str, jax.Array], config: LossConfig, vocabulary: JointVocabulary) -> jax.Array:
    """bool [B, L]: T, the positions whose target is an image code of the same document and in scope.

    Scope "response" leaves out images that the user gave. The reference's alignment, made for parity, further
    keeps only the task t2i.
    """
    targets, segments = batch["targets"], batch["segment_ids"]
    ids = vocabulary.range_of(Modality.IMAGE)
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    found = (targets >= ids.start) & (targets < ids.stop) & (segments > 0) & (segments == following)
    task, role, _ = split_token_class(batch["target_class"].astype(jnp.int32))
    if config.perceptual_scope == "response":
        found &= role == Role.RESPONSE
    if config.perceptual_alignment == "reference":
        found &= task == task_index("t2i")
    return found


def choose_images(found_BL: jax.Array, length: int, limit: int, step: jax.Array | int = 0) -> jax.Array:
    """bool [B, L]: the first position of at most `limit` complete images (runs of `length` codes), drawn by `step`.

    The draw is a pure function of the positions and `step`; with no more than `limit` images all are chosen.
    """
    batch, positions = found_BL.shape
    if positions < length:
        return jnp.zeros_like(found_BL)
    before = jnp.pad(found_BL[:, :-1], ((0, 0), (1, 0)))
    sums = jnp.pad(jnp.cumsum(found_BL.astype(jnp.int32), axis=1), ((0, 0), (1, 0)))
    complete = jnp.pad(sums[:, length:] - sums[:, :-length] == length, ((0, 0), (0, length - 1)))
    starts = (found_BL & ~before & complete).reshape(-1)
    draw = jax.random.uniform(jax.random.fold_in(jax.random.key(0), step), starts.shape)
    priority = jnp.where(starts, 1.0 + draw, 0.0)
    values, places = jax.lax.top_k(priority, min(limit, priority.size))
    return jnp.zeros_like(starts).at[places].set(values > 0).reshape(batch, positions)


def perceptual_sums(
    projection: Mapping[str, jax.Array],
    hidden_BLD: jax.Array,
    batch: Mapping[str, jax.Array],
    marks_BL: jax.Array,
    frozen: FrozenImageDecoder,
    config: LossConfig,
    vocabulary: JointVocabulary,
) -> PerceptualSums:
    """The term of one (micro-)batch, before it is divided by the count of the whole batch.

    Args:
      marks_BL: at depth "codebook" `image_positions`; deeper `choose_images` of it. The latter is chosen over all
        micro-batches before they are split, so that the loss does not depend on the split.

    With no marks both sums are exactly 0, and so is every gradient.
    """
    if config.perceptual_alignment == "reference":
        # h at the code's own position, which has seen the code: it is solved by copying. Kept for parity.
        hidden_BLD = jnp.pad(hidden_BLD[:, 1:], ((0, 0), (0, 1), (0, 0)))
    if config.perceptual_depth == "codebook":
        return _codebook_sums(projection, hidden_BLD, batch["targets"], marks_BL, frozen, config, vocabulary)
    return _decoder_sums(projection, hidden_BLD, batch["targets"], marks_BL, frozen, config, vocabulary)


def _codes(targets, vocabulary: JointVocabulary):
    """Image codes of targets; anything for other ids (they are masked)."""
    return jnp.clip(targets - vocabulary.image.start, 0, vocabulary.image.count - 1)


def _codebook_sums(projection, hidden, targets, marks, frozen, config, vocabulary) -> PerceptualSums:
    """Eq. 3: squared norms over the channels. The reference's alignment takes their mean over the channels."""
    codebook = jax.lax.stop_gradient(jnp.asarray(frozen.codebook, jnp.float32))
    error = project(projection, hidden) - codebook[_codes(targets, vocabulary)]
    distance = jnp.sum(jnp.square(error), axis=-1)
    if config.perceptual_alignment == "reference":
        distance = distance / codebook.shape[-1]
    return PerceptualSums(jnp.sum(jnp.where(marks, distance, 0.0)), jnp.sum(marks.astype(jnp.float32)))


def _decoder_sums(projection, hidden, targets, marks, frozen, config, vocabulary) -> PerceptualSums:
    """Squared distances of decoder features, for images gathered into `perceptual_images` slots.

    For each image: the mean over positions and channels of the squared difference, times E and `frozen.scale`. So
    every depth is on the scale of eq. 3, a sum over E channels, and "codebook" would be eq. 3 for these images.
    """
    rows, columns = vocabulary.image_grid
    length = hidden.shape[1]
    codebook = jnp.asarray(frozen.codebook, jnp.float32)
    (places,) = jnp.nonzero(marks.reshape(-1), size=config.perceptual_images, fill_value=-1)
    used = places >= 0
    row, start = jnp.maximum(places, 0) // length, jnp.maximum(places, 0) % length
    index = jnp.minimum(start[:, None] + jnp.arange(rows * columns), length - 1)
    predicted = project(projection, hidden[row[:, None], index])
    target = codebook[_codes(targets[row[:, None], index], vocabulary)]
    grid = (-1, rows, columns, codebook.shape[-1])
    decoder = jax.lax.stop_gradient(frozen.decoder)
    ours = frozen.features(decoder, predicted.reshape(grid), config.perceptual_depth)
    theirs = jax.lax.stop_gradient(frozen.features(decoder, target.reshape(grid), config.perceptual_depth))
    distance = jnp.mean(jnp.square(ours - theirs), axis=(1, 2, 3)) * (codebook.shape[-1] * frozen.scale)
    return PerceptualSums(jnp.sum(jnp.where(used, distance, 0.0)), jnp.sum(used.astype(jnp.float32)))
