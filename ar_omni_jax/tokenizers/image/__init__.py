"""Image tokenizer (VQGAN): pictures to codes, codes to pictures, the decoder's features for the losses.

Reading pictures needs no JAX, so what does is imported when it is asked for: processes that only decode start fast.
"""

import importlib
from typing import Any

from ar_omni_jax.tokenizers.image.preprocess import ImageError, encode_png, preprocess, read_image, to_uint8

_ELSEWHERE = {  # name: (module, its name there)
    "CHAMELEON": ("config", "CHAMELEON"),
    "DEPTHS": ("features", "decoder_depths"),
    "ImageDecoder": ("features", "ImageDecoder"),
    "ImageTokenizer": ("tokenizer", "ImageTokenizer"),
    "VQGANConfig": ("config", "VQGANConfig"),
    "decoder_depths": ("features", "decoder_depths"),
    "decoder_features": ("features", "decoder_features"),
}

__all__ = [
    "CHAMELEON",
    "DEPTHS",
    "ImageDecoder",
    "ImageError",
    "ImageTokenizer",
    "VQGANConfig",
    "decoder_depths",
    "decoder_features",
    "encode_png",
    "preprocess",
    "read_image",
    "to_uint8",
]


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _ELSEWHERE[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
