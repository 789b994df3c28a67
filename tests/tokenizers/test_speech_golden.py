"""The port against the published PyTorch code, on a tiny random instance under published key names."""

import flax.nnx as nnx
import jax
import numpy as np
import pytest
from golden_speech import GOLDEN, golden_config
from safetensors.numpy import load_file

from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig, published_config
from ar_omni_jax.tokenizers.speech.published import fold_weight_norm, load_published


@pytest.fixture(scope="module")
def config():
    return golden_config()


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "speech_codec.safetensors")


@pytest.fixture(scope="module")
def codec(config, weights):
    return load_published(weights, config)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "speech_codec.npz"))


def test_encoder_and_codes(codec, golden):
    embeddings = codec.embed(golden["wav"])
    np.testing.assert_allclose(embeddings.swapaxes(1, 2), golden["embeddings_bct"], atol=1e-4)
    np.testing.assert_array_equal(codec.encode(golden["wav"]), golden["codes"])


def test_decoder_stages(codec, golden):
    features = codec.codebook.lookup(golden["codes"])
    np.testing.assert_allclose(features.swapaxes(1, 2), golden["features_bct"], atol=1e-4)
    hidden = codec.backbone(features, row=0)
    np.testing.assert_allclose(hidden, golden["backbone_btd"], atol=1e-4)
    np.testing.assert_allclose(codec.head(hidden), golden["audio"], atol=1e-4)


def test_codes_to_audio(codec, golden):
    audio = codec.decode(golden["codes"])
    assert audio.shape == golden["audio"].shape
    np.testing.assert_allclose(audio, golden["audio"], atol=1e-4)


def test_other_bandwidth_rows_are_used(codec, golden):
    assert np.abs(np.asarray(codec.decode(golden["codes"], row=1)) - golden["audio"]).max() > 1e-4


def test_published_configuration_has_published_sizes():
    model = nnx.eval_shape(lambda: SpeechCodec(published_config(), rngs=nnx.Rngs(0)))

    def millions(module):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))) / 1e6

    assert millions(model.encoder) == pytest.approx(8.30, abs=0.02)
    assert millions(model.backbone) == pytest.approx(61.96, abs=0.005)
    assert millions(model.head) == pytest.approx(1.85, abs=0.005)
    assert model.codebook.embed.shape == (4096, 512)
    assert (model.config.hop_length, model.config.tokens_per_second) == (600, 40.0)


def test_weight_norm_folding_matches_torch():
    torch = pytest.importorskip("torch")
    conv = torch.nn.utils.weight_norm(torch.nn.Conv1d(3, 5, 7))
    with torch.no_grad():
        conv.weight_g.mul_(torch.linspace(0.5, 2.0, 5)[:, None, None])
        conv(torch.zeros(1, 3, 7))  # recomputes conv.weight
    folded = fold_weight_norm(conv.weight_g.detach().numpy(), conv.weight_v.detach().numpy())
    np.testing.assert_allclose(folded, conv.weight.detach().numpy(), atol=1e-6)


def test_missing_published_key_is_named(config, weights):
    weights = {k: v for k, v in weights.items() if k != "head.out.bias"}
    with pytest.raises(KeyError, match="head.out.bias"):
        load_published(weights, config)


def test_published_codec_refuses_to_stream(codec):
    with pytest.raises(ValueError, match="not causal"):
        codec.init_stream(1)


def test_sizes_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match="one code every 600 samples"):
        SpeechCodecConfig.from_dict({"head": {"n_fft": 400, "hop_length": 100}})
