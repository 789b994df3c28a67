"""Weighted next-token loss, with the logits of a few tokens at a time, and its sums by modality and task.

Letters: B rows, L positions, D model width, V vocabulary, C positions of a chunk, N chunks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ar_omni_jax.documents import TASKS, split_token_class
from ar_omni_jax.training.settings import from_settings
from ar_omni_jax.vocabulary import MODALITY_NAMES

NORMALIZATIONS = ("weights", "tokens")
ALIGNMENTS = ("predicting", "reference")
SCOPES = ("all", "response")


class LossError(ValueError):
    """A setting of the losses that cannot be used; the message names the key."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Settings of L = L_wNTP + perceptual_weight * L_perc + z_loss * mean(log^2 Z).

    Attributes:
      normalize: divide the weighted sum by the global sum of weights ("weights"), or by the number of positions
        with a weight ("tokens", eq. 2 of the paper).
      z_loss: coefficient of log^2 Z, averaged like the nll; 0 = off, which is the paper.
      chunk: tokens of one device whose logits exist at one time; 0 = all at once.
      perceptual_*: see `training/perceptual.py`. perceptual_bias: W_h has a bias.
    """

    normalize: str = "weights"
    z_loss: float = 0.0
    chunk: int = 1024
    perceptual_weight: float = 0.0
    perceptual_depth: str = "codebook"
    perceptual_alignment: str = "predicting"
    perceptual_scope: str = "all"
    perceptual_images: int = 4
    perceptual_bias: bool = True

    def __post_init__(self):
        for name, allowed in (
            ("normalize", NORMALIZATIONS),
            ("perceptual_alignment", ALIGNMENTS),
            ("perceptual_scope", SCOPES),
        ):
            if getattr(self, name) not in allowed:
                raise LossError(f"loss.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        for name in ("z_loss", "chunk", "perceptual_weight"):
            if getattr(self, name) < 0:
                raise LossError(f"loss.{name} = {getattr(self, name)!r}: must be at least 0")
        if self.perceptual_images < 1:
            raise LossError(f"loss.perceptual_images = {self.perceptual_images!r}: must be at least 1")

    @classmethod
    def of(cls, settings: Mapping | LossConfig) -> LossConfig:
        """From a mapping (the config's `loss` section); unknown keys raise LossError."""
        return from_settings(cls, settings, "loss", LossError)


class TokenLosses(NamedTuple):
    """objective: float32 scalar, sum of w (nll + z_loss log^2 Z), the only part with a gradient. nll, log_z: [B, L]
    float32, unweighted."""

    objective: jax.Array
    nll: jax.Array
    log_z: jax.Array


def plain_token_losses(hidden_BLD, unembedding_DV, targets_BL, weights_BL, z_loss: float = 0.0) -> TokenLosses:
    """The definition, with all logits at once; `token_losses` must equal it in value and gradient."""
    logits = jnp.matmul(hidden_BLD, unembedding_DV.astype(hidden_BLD.dtype), preferred_element_type=jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - jnp.take_along_axis(logits, targets_BL[..., None], axis=-1)[..., 0]
    objective = jnp.sum(weights_BL * (nll + z_loss * jnp.square(log_z)))
    return TokenLosses(objective, *jax.lax.stop_gradient((nll, log_z)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_losses(hidden_BLD, unembedding_DV, targets_BL, weights_BL, z_loss: float = 0.0, chunk: int = 0):
    """`plain_token_losses` with the logits of about `chunk` tokens at a time (0: all at once).

    The gradient is taken in the forward pass, while a chunk's logits exist: three products in all, where
    recomputing the logits in the backward pass would make four. Gradients flow from `objective` to
    `hidden` and `unembedding` only.

    Args:
      hidden_BLD: final hidden states, the dtype of the product; it is accumulated in float32.
      unembedding_DV: output matrix, any float dtype; its gradient has that dtype, summed in float32.
      targets_BL: int32 ids. weights_BL: float32; where 0 a position adds nothing to objective or gradient.
    """
    return _forward(hidden_BLD, unembedding_DV, targets_BL, weights_BL, z_loss, chunk, gradients=False)[0]


def _split_positions(x, chunks: int):
    """[B, L, ...] -> [N, B, C, ...], chunk n holding positions n, n + N, ...; zeros fill L up to C * N.

    Strided, so that every chunk has rows and positions of every device when B or L is split over a mesh.
    """
    pad = -x.shape[1] % chunks
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunks, *x.shape[2:]), 2, 0)


def _join_positions(x, length: int):
    """Inverse of `_split_positions`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _forward(hidden, unembedding, targets, weights, z_loss, chunk, gradients: bool):
    batch, length, width = hidden.shape
    chunks = -(-batch * length // chunk) if chunk else 1
    chunks = min(chunks, length)
    matrix = unembedding.astype(hidden.dtype)
    ids = jax.lax.broadcasted_iota(jnp.int32, (1, 1, matrix.shape[1]), 2)

    def one(carry, inputs):
        h_BCD, y_BC, w_BC = inputs
        logits = jnp.matmul(h_BCD, matrix, preferred_element_type=jnp.float32)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        hit = ids == y_BC[..., None]
        nll = log_z - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
        if not gradients:
            return carry, (nll, log_z, jnp.zeros((), hidden.dtype))
        scale = w_BC * (1.0 + 2.0 * z_loss * log_z)
        d_logits = scale[..., None] * jnp.exp(logits - log_z[..., None]) - jnp.where(hit, w_BC[..., None], 0.0)
        d_logits = d_logits.astype(hidden.dtype)
        d_matrix = jnp.einsum("bcd,bcv->dv", h_BCD, d_logits, preferred_element_type=jnp.float32)
        return carry + d_matrix, (nll, log_z, jnp.einsum("bcv,dv->bcd", d_logits, matrix))

    carry = jnp.zeros(matrix.shape if gradients else (), jnp.float32)
    inputs = [_split_positions(x, chunks) for x in (hidden, targets, weights)]
    d_matrix, (nll, log_z, d_hidden) = jax.lax.scan(one, carry, inputs)
    nll, log_z = _join_positions(nll, length), _join_positions(log_z, length)
    objective = jnp.sum(jnp.where(weights > 0, weights * (nll + z_loss * jnp.square(log_z)), 0.0))
    saved = (_join_positions(d_hidden, length), d_matrix.astype(unembedding.dtype)) if gradients else None
    return TokenLosses(objective, nll, log_z), saved


def _token_losses_forward(hidden, unembedding, targets, weights, z_loss, chunk):
    return _forward(hidden, unembedding, targets, weights, z_loss, chunk, gradients=True)


def _token_losses_backward(z_loss, chunk, saved, cotangent):
    d_hidden, d_matrix = saved
    g = cotangent.objective
    return g.astype(d_hidden.dtype) * d_hidden, g.astype(d_matrix.dtype) * d_matrix, None, None


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def denominator(weights_BL, normalize: str):
    """What the weighted sum is divided by: the sum of weights, or the number of positions with one. At least the
    smallest normal float, so that a batch without weights has loss 0."""
    counted = weights_BL if normalize == "weights" else (weights_BL > 0).astype(jnp.float32)
    return jnp.maximum(jnp.sum(counted), jnp.finfo(jnp.float32).tiny)


def class_sums(nll_BL, weights_BL, target_class_BL) -> dict[str, jax.Array]:
    """Sums of the unweighted nll and counts of the positions with a weight, by modality and task of the target.

    Keys: nll/{modality}, count/{modality}, nll_task/{task}, count_task/{task}; float32 scalars.
    """
    task, _, modality = split_token_class(target_class_BL.astype(jnp.int32))
    counted = (weights_BL > 0).astype(jnp.float32)
    nll = jnp.where(weights_BL > 0, nll_BL, 0.0)
    out = {}
    for suffix, index, names in (("", modality, MODALITY_NAMES), ("_task", task, TASKS)):
        member = (index[None] == jnp.arange(len(names))[:, None, None]).astype(jnp.float32)
        for what, values in (("nll", nll), ("count", counted)):
            sums = jnp.einsum("kbl,bl->k", member, values, precision=jax.lax.Precision.HIGHEST)
            out |= {f"{what}{suffix}/{name}": sums[i] for i, name in enumerate(names)}
    return out
