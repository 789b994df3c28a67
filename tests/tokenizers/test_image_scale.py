"""Rescaling the codebook changes no code and no pixel."""

import numpy as np
from flax import nnx

from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.model import VQGAN
from ar_omni_jax.tokenizers.image.scale import with_unit_codebook
from ar_omni_jax.tokenizers.image.weights import model_from_published, published_state

CONFIG = VQGANConfig.from_dict(
    {
        "ddconfig": {
            **{"ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 4},
            **{"resolution": 8, "in_channels": 3, "out_ch": 3, "double_z": False, "dropout": 0.0, "num_groups": 2},
        },
        "n_embed": 16,
        "embed_dim": 4,
    }
)


def test_the_same_codec_in_another_unit():
    weights = published_state(nnx.state(VQGAN(CONFIG, nnx.Rngs(0)), nnx.Param))
    weights["quantize.embedding.weight"] = weights["quantize.embedding.weight"] * np.float32(300)
    weights["quant_conv.weight"] = weights["quant_conv.weight"] * np.float32(300)
    scaled = with_unit_codebook(weights)
    assert np.std(weights["quantize.embedding.weight"]) > 4
    assert 0.7 < np.std(scaled["quantize.embedding.weight"]) < 1.42

    before, after = (model_from_published(CONFIG, w) for w in (weights, scaled))
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    codes = before.codes(before.latents(pixels))
    assert len(np.unique(codes)) > 1
    np.testing.assert_array_equal(codes, after.codes(after.latents(pixels)))
    np.testing.assert_array_equal(before.decode(before.embed(codes)), after.decode(after.embed(codes)))


def test_a_codebook_of_zeros_stays():
    weights = {"quantize.embedding.weight": np.zeros((2, 2), np.float32)}
    assert with_unit_codebook(weights).keys() == weights.keys()
