"""ImageTokenizer: pictures to codes and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.features import decoder_depths, split_decoder
from ar_omni_jax.tokenizers.image.model import VQGAN
from ar_omni_jax.tokenizers.image.preprocess import to_uint8
from ar_omni_jax.tokenizers.image.weights import load_tokenizer, published_state, weights_identity

PIXELS_PER_CALL = 64 * 64 * 64
"""Pictures run through the network together hold at most this many pixels (64 pictures of 64x64)."""


@nnx.jit
def _encode(model: VQGAN, pixels_BHWC: jax.Array) -> jax.Array:
    return model.codes(model.latents(pixels_BHWC))


@nnx.jit
def _decode(model: VQGAN, codes_Bhw: jax.Array) -> jax.Array:
    return model.decode(model.embed(codes_Bhw))


class ImageTokenizer:
    """A frozen VQGAN. One picture [size, size, 3] is h * w codes in raster order."""

    def __init__(self, model: VQGAN, identity: str | None = None) -> None:
        self.model = model
        self.config: VQGANConfig = model.config
        if identity is None:
            identity = weights_identity(self.config, published_state(nnx.state(model, nnx.Param)))
        self.identity: str = identity
        self.codebook: np.ndarray = np.asarray(model.quantize.embedding.weight[...], np.float32)

    @classmethod
    def load(cls, path_prefix: str | os.PathLike) -> ImageTokenizer:
        """Reads PREFIX.safetensors and PREFIX.json. FileNotFoundError, or ValueError for damaged files."""
        return cls(*load_tokenizer(os.fspath(path_prefix)))

    @property
    def image_size(self) -> int:
        """Side of a picture, pixels."""
        return self.config.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
        return self.config.grid

    @property
    def codebook_size(self) -> int:
        """Number of codes; codes are 0 .. codebook_size - 1."""
        return self.config.n_embed

    @property
    def depths(self) -> tuple[str, ...]:
        """Depths that `decoder_features` knows for this tokenizer."""
        return decoder_depths(self.config)

    def split_decoder(self) -> tuple[nnx.GraphDef, nnx.State]:
        """(static structure, parameter pytree) of the decoder, for `decoder_features`."""
        return split_decoder(self.model)

    def encode(self, pixels: np.ndarray | jax.Array) -> np.ndarray:
        """float32 [B, H, W, 3] in [-1, 1], H = W = image_size, to int32 [B, h * w], in full float32."""
        pixels = np.asarray(pixels, np.float32)
        if pixels.ndim != 4 or pixels.shape[1:] != (self.image_size, self.image_size, 3):
            expected = f"[B, {self.image_size}, {self.image_size}, 3]"
            raise ValueError(f"encode: pixels have shape {list(pixels.shape)}, need {expected} (see read_image)")
        codes = self._in_chunks(_encode, pixels, (*self.grid,), np.int32)
        return codes.reshape(len(pixels), self.grid[0] * self.grid[1])

    def decode(self, codes: np.ndarray | jax.Array) -> np.ndarray:
        """int [B, h * w] in raster order to uint8 [B, H, W, 3]. ValueError for a wrong shape or code."""
        codes = np.asarray(codes)
        rows, columns = self.grid
        if codes.ndim != 2 or codes.shape[1] != rows * columns or not np.issubdtype(codes.dtype, np.integer):
            found = f"{codes.dtype}{list(codes.shape)}"
            raise ValueError(f"decode: codes are {found}, need integers [B, {rows * columns}]")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codebook_size:
            raise ValueError(f"decode: codes span {codes.min()}..{codes.max()}, known are 0..{self.codebook_size - 1}")
        codes = codes.astype(np.int32).reshape(-1, rows, columns)
        size = self.image_size
        return to_uint8(self._in_chunks(_decode, codes, (size, size, 3), np.float32))

    def _in_chunks(
        self,
        function: Callable[[VQGAN, jax.Array], jax.Array],
        rows: np.ndarray,
        shape: tuple[int, ...],
        dtype: Any,
    ) -> np.ndarray:
        """function(model, rows) a chunk at a time, padded to powers of two: few shapes are compiled."""
        limit = max(1, PIXELS_PER_CALL // self.image_size**2)
        outputs = [np.zeros((0, *shape), dtype)]
        for start in range(0, len(rows), limit):
            chunk = rows[start : start + limit]
            padded = min(limit, 1 << (len(chunk) - 1).bit_length())
            filled = np.pad(chunk, ((0, padded - len(chunk)), *((0, 0),) * (chunk.ndim - 1)))
            outputs.append(np.asarray(function(self.model, jnp.asarray(filled)))[: len(chunk)])
        return np.concatenate(outputs)
