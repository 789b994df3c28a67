"""The decoder stopped at every depth, as the perceptual loss uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.tokenizers.image import ImageTokenizer, VQGANConfig, decoder_depths, decoder_features
from ar_omni_jax.tokenizers.image.model import VQGAN

CONFIG = VQGANConfig(
    ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=6, resolution=16, num_groups=4, n_embed=16,
    embed_dim=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return ImageTokenizer(VQGAN(CONFIG, nnx.Rngs(0)))


def _latents(seed=0):
    return jax.random.normal(jax.random.key(seed), (2, 4, 4, CONFIG.embed_dim))


def test_depths_run_from_codebook_to_pixels(tokenizer):
    assert decoder_depths(CONFIG) == tokenizer.depths == ("codebook", "mid", "up_2", "up_1", "up_0", "pixels")
    decoder = tokenizer.split_decoder()
    shapes = [
        jax.eval_shape(lambda x, d=depth: decoder_features(decoder, x, d), _latents()).shape[1:]
        for depth in tokenizer.depths
    ]
    assert shapes == [(4, 4, 5), (4, 4, 16), (8, 8, 16), (16, 16, 16), (16, 16, 8), (16, 16, 3)]


def test_codebook_depth_is_the_identity(tokenizer):
    features = decoder_features(tokenizer.split_decoder(), _latents(), "codebook")
    np.testing.assert_array_equal(features, _latents())


def test_pixels_depth_is_decode_before_rounding(tokenizer):
    codes = np.random.default_rng(0).integers(0, CONFIG.n_embed, (2, 16))
    latents = jnp.asarray(tokenizer.codebook[codes].reshape(2, 4, 4, -1))
    graphdef, params = tokenizer.split_decoder()
    pixels = np.asarray(jax.jit(lambda p, x: decoder_features((graphdef, p), x, "pixels"))(params, latents))
    expected = tokenizer.decode(codes).astype(np.float64)
    assert np.abs(np.clip((pixels + 1) * 127.5, 0, 255) - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("depth", ["codebook", "up_2", "pixels"])
def test_gradients_reach_latents_and_not_the_frozen_decoder_inside_jit(tokenizer, depth):
    graphdef, params = tokenizer.split_decoder()

    @jax.jit
    def gradients(params, latents, target):
        def loss(latents, params):
            frozen = jax.lax.stop_gradient(params)
            both = decoder_features((graphdef, frozen), jnp.concatenate([latents, target]), depth)
            return jnp.mean(jnp.square(both[:2] - both[2:]))

        return jax.grad(loss, argnums=(0, 1))(latents, params)

    by_latents, by_params = gradients(params, _latents(0), _latents(1))
    assert np.isfinite(by_latents).all() and (np.abs(by_latents).sum(axis=(1, 2, 3)) > 0).all()
    assert all(not leaf.any() for leaf in jax.tree.leaves(by_params))


def test_unknown_depth_is_named(tokenizer):
    with pytest.raises(ValueError, match="unknown decoder depth 'up_7'.*codebook, mid, up_2"):
        decoder_features(tokenizer.split_decoder(), _latents(), "up_7")
