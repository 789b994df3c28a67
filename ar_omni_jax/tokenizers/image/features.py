"""The frozen decoder as a function of codebook vectors, stopped at a chosen depth (for the perceptual loss).

    graphdef, params = tokenizer.split_decoder()          # params: an ordinary pytree of arrays
    features = decoder_features((graphdef, params), latents_BhwD, "up_1")

`decoder_features` is pure and differentiable in `latents` and in `params`: call it inside a jitted step, and
put `jax.lax.stop_gradient` on `params`, or differentiate by the latents only, to keep the decoder frozen.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.layers import Conv
from ar_omni_jax.tokenizers.image.model import VQGAN, Decoder


class ImageDecoder(nnx.Module):
    """post_quant_conv and decoder of a VQGAN: codebook vectors in, pixels out."""

    def __init__(self, config: VQGANConfig, post_quant_conv: Conv, decoder: Decoder) -> None:
        self.config = config
        self.post_quant_conv = post_quant_conv
        self.decoder = decoder


def decoder_depths(config: VQGANConfig) -> tuple[str, ...]:
    """Depths from shallow to deep, in the order they run.

    "codebook" (the vectors themselves), "mid", "up_{n-1}" ... "up_0" (each up stage with its upsampling,
    named by its index in the checkpoint: 0 is full resolution), "pixels" (before clamping).
    """
    stages = range(len(config.ch_mult) - 1, -1, -1)
    return ("codebook", "mid", *(f"up_{index}" for index in stages), "pixels")


def split_decoder(model: VQGAN) -> tuple[nnx.GraphDef, nnx.State]:
    """(static structure, parameters) of the decoder half; the parameters are a pytree of float32 arrays."""
    return nnx.split(ImageDecoder(model.config, model.post_quant_conv, model.decoder))


def decoder_features(
    decoder: ImageDecoder | tuple[nnx.GraphDef, Any], latents_BhwD: jax.Array, depth: str
) -> jax.Array:
    """Features of codebook vectors at a depth of the decoder.

    Args:
      decoder: an `ImageDecoder`, or its (graphdef, params) from `split_decoder`.
      latents_BhwD: float [B, h, w, embed_dim], codebook vectors or predictions of them.
      depth: one of `decoder_depths(config)`; static.
    Returns:
      float [B, h', w', C]: the latents themselves at "codebook", channels of the stage in between, RGB in
      about [-1, 1] at "pixels". ValueError names the known depths for any other.
    """
    module = decoder if isinstance(decoder, ImageDecoder) else nnx.merge(*decoder)
    known = decoder_depths(module.config)
    if depth not in known:
        raise ValueError(f"unknown decoder depth {depth!r}; this tokenizer has {', '.join(known)}")
    if depth == "codebook":
        return latents_BhwD
    x_BHWC = module.decoder.middle(module.post_quant_conv(latents_BhwD))
    if depth == "mid":
        return x_BHWC
    for index in range(len(module.decoder.up) - 1, -1, -1):
        x_BHWC = module.decoder.up[index](x_BHWC)
        if depth == f"up_{index}":
            return x_BHWC
    return module.decoder.output(x_BHWC)
