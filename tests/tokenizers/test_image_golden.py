"""The VQGAN against golden vectors of the published family's PyTorch code, and its published sizes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from ar_omni_jax.tokenizers.image import CHAMELEON, VQGANConfig
from ar_omni_jax.tokenizers.image.model import VQGAN, nearest_codes
from ar_omni_jax.tokenizers.image.weights import model_from_published, parameter_counts, published_state

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    config = VQGANConfig.from_dict(json.loads((GOLDEN / "image_vq.json").read_text()))
    weights = load_file(GOLDEN / "image_vq.safetensors")
    return config, weights, model_from_published(config, weights), dict(np.load(GOLDEN / "image_vq.npz"))


def _nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def test_latents_codes_and_pixels_equal_the_golden(golden):
    _, _, model, arrays = golden

    @jax.jit
    def run(pixels):
        latents = model.latents(pixels)
        codes = model.codes(latents)
        return latents, codes, model.decode(model.embed(codes))

    latents, codes, pixels = run(_nhwc(arrays["pixels_nchw"]))
    np.testing.assert_allclose(latents, _nhwc(arrays["latents_nchw"]), atol=1e-4)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes.reshape(codes.shape[0], -1), arrays["codes"])
    np.testing.assert_allclose(pixels, _nhwc(arrays["decoded_nchw"]), atol=1e-4)


def test_weights_come_back_as_published(golden):
    _, weights, model, _ = golden
    back = published_state(nnx.state(model, nnx.Param))
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array)


def test_chameleon_sizes():
    counts = parameter_counts(CHAMELEON)
    assert round(counts["encoder"] / 1e6, 2) == 27.19
    assert round(counts["decoder"] / 1e6, 2) == 39.29
    assert round((counts["decoder"] + counts["quantize"] + counts["post_quant_conv"]) / 1e6, 2) == 41.46
    assert CHAMELEON.grid == (32, 32) and CHAMELEON.n_embed == 8192


def test_published_training_losses_are_ignored(golden):
    config, weights, _, _ = golden
    surplus = {**weights, "loss.discriminator.main.0.weight": np.zeros((4, 3, 4, 4), np.float32)}
    model_from_published(config, surplus)


def test_wrong_weights_are_named(golden):
    config, weights, _, _ = golden
    missing = {k: v for k, v in weights.items() if k != "encoder.conv_in.bias"}
    with pytest.raises(ValueError, match="missing keys.*encoder.conv_in.bias"):
        model_from_published(config, missing)
    with pytest.raises(ValueError, match="unknown keys.*surprise"):
        model_from_published(config, {**weights, "surprise": np.zeros(1, np.float32)})
    misshapen = {**weights, "decoder.conv_out.weight": np.zeros((3, 32, 1, 1), np.float32)}
    with pytest.raises(ValueError, match=r"conv_out.weight has shape \(3, 32, 1, 1\).*\(3, 32, 3, 3\)"):
        model_from_published(config, misshapen)


def test_attention_inside_stages_has_the_published_names():
    config = VQGANConfig(
        ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), z_channels=4, resolution=8,
        num_groups=4, n_embed=8, embed_dim=4,
    )  # fmt: skip
    model = VQGAN(config, nnx.Rngs(0))
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    names = {".".join(map(str, path)) for path, _ in flat}
    assert {"encoder.down.1.attn.0.q.weight", "decoder.up.1.attn.1.proj_out.bias"} <= names
    assert not any(name.startswith(("encoder.down.0.attn", "decoder.up.0.attn")) for name in names)
    assert jax.jit(lambda x: model.decode(model.latents(x)))(jnp.zeros((1, 8, 8, 3))).shape == (1, 8, 8, 3)


def test_nearest_code_is_the_least_distance_and_the_lowest_on_ties():
    rng = np.random.default_rng(0)
    codebook, latents = rng.normal(size=(16, 4)), rng.normal(size=(3, 5, 4))
    distances = np.square(latents[..., None, :] - codebook).sum(-1)
    found = nearest_codes(jnp.asarray(latents, jnp.float32), jnp.asarray(codebook, jnp.float32))
    np.testing.assert_array_equal(found, distances.argmin(-1))
    assert nearest_codes(jnp.ones((1, 2)), jnp.ones((4, 2)))[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch": 20}, "num_groups"),
        ({"resolution": 20}, "multiple"),
        ({"double_z": True}, "double_z"),
        ({"dropout": 0.1}, "dropout"),
        ({"ch_mult": []}, "ch_mult"),
        ({"channels": 3}, "unknown VQGAN config keys"),
    ],
)
def test_unusable_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VQGANConfig.from_dict({"ddconfig": change})
    assert VQGANConfig.from_dict(CHAMELEON.to_dict()) == CHAMELEON
