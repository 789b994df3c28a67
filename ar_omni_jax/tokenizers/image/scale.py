"""The codebook brought to about unit variance without changing what the tokenizer computes.

Nothing in a VQGAN's training holds the scale of its latents, and the perceptual loss (paper, eq. 3) is a squared
distance in just that scale. A codec with codes a hundred times larger would need a weight ten thousand times smaller.
Dividing `quant_conv` and the codebook by s and multiplying `post_quant_conv` by s is the same codec; with s a power of
two every product is exact, so that codes and pixels stay equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def with_unit_codebook(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{published key: float32 array} -> the same codec with a codebook of standard deviation in [0.71, 1.42].

    `quant_conv.{weight,bias}` and `quantize.embedding.weight` [K, d_e] are divided, `post_quant_conv.weight` is
    multiplied. A codebook of zeros is returned as it is.
    """
    spread = float(np.std(weights["quantize.embedding.weight"]))
    if not spread:
        return dict(weights)
    scale = np.float32(2.0 ** round(np.log2(spread)))
    divided = ("quant_conv.weight", "quant_conv.bias", "quantize.embedding.weight")
    out = {key: value / scale if key in divided else value for key, value in weights.items()}
    out["post_quant_conv.weight"] = out["post_quant_conv.weight"] * scale
    return out
