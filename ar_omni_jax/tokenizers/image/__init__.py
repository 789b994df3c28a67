"""Image tokenizer (VQGAN): pictures to codes, codes to pictures, the decoder's features for the losses."""

from ar_omni_jax.tokenizers.image.config import CHAMELEON, VQGANConfig
from ar_omni_jax.tokenizers.image.features import ImageDecoder, decoder_depths, decoder_features
from ar_omni_jax.tokenizers.image.preprocess import ImageError, encode_png, preprocess, read_image, to_uint8
from ar_omni_jax.tokenizers.image.tokenizer import ImageTokenizer

DEPTHS = decoder_depths

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
