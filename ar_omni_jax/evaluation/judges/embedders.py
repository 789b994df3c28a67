"""Who says how alike a picture and a text are: CLIP by transformers, or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ar_omni_jax.evaluation.judges.plugins import make_judge, pretrained, torch_and_transformers

DEFAULT_CLIP = "openai/clip-vit-large-patch14"


class PictureTextEmbedder(Protocol):
    """Pictures and texts to one space. `name` stands in the results, and a run under another name is another run."""

    name: str

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, D] of pictures uint8 [H, W, 3], of any sizes."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D]."""
        ...


class Clip:
    """CLIP by transformers; texts are cut at the length that the model was trained with.

    Args: where: a folder that save_pretrained wrote, or a hub id (the paper's judge: openai/clip-vit-large-patch14).
    Raises JudgeError when PyTorch or transformers is not installed, or the model cannot be loaded.
    """

    def __init__(self, where: str = DEFAULT_CLIP):
        torch, transformers = torch_and_transformers("the CLIP score")
        self.name = f"clip:{where}"
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._processor = pretrained(transformers.CLIPProcessor.from_pretrained, where, "CLIP's processor")
        self._model = pretrained(transformers.CLIPModel.from_pretrained, where, "CLIP").to(self._device).eval()
        self._longest = self._model.config.text_config.max_position_embeddings

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See `PictureTextEmbedder`."""
        from PIL import Image

        pictures = [Image.fromarray(image) for image in images]
        inputs = self._processor(images=pictures, return_tensors="pt").to(self._device)
        with self._torch.inference_mode():
            return _array(self._model.get_image_features(pixel_values=inputs.pixel_values))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `PictureTextEmbedder`."""
        inputs = self._processor(
            text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self._longest
        ).to(self._device)
        with self._torch.inference_mode():
            return _array(
                self._model.get_text_features(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
            )


def _array(features) -> np.ndarray:
    """transformers 4 returns the tensor, 5 an output that holds it."""
    features = getattr(features, "pooler_output", features)
    return features.float().cpu().numpy()


def load_embedder(name: str) -> PictureTextEmbedder:
    """ "clip", "clip:FOLDER_OR_HUB_ID", or "MODULE:FACTORY" of an own one. Raises JudgeError."""
    known = {"clip": lambda where: Clip(where or DEFAULT_CLIP)}
    return make_judge("--clip", name, known, ("name", "embed_images", "embed_texts"))
