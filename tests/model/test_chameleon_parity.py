"""Logits against HF transformers' Chameleon at equal random weights, in float32."""

import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer
from tests.model.helpers import chameleon_to_state, load_state, logits_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 64


def _chameleon(swin: bool, kv_heads: int):
    codec = dict(
        embed_dim=8, num_embeddings=4, latent_channels=8, resolution=16, base_channels=32, channel_multiplier=[1, 1]
    )
    config = transformers.ChameleonConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        swin_norm=swin,
        tie_word_embeddings=False,
        vq_config=codec,
        # HF masks the logits of image ids: keep them out of the ids that are compared.
        vocabulary_map={"<image>": VOCABULARY - 1, "IMGIMGAZ": 60, "IMGIMGBZ": 61, "IMGIMGCZ": 62, "IMGIMGDZ": 63},
    )
    config._attn_implementation = "eager"
    model = transformers.ChameleonForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layernorm" in name or name.endswith("model.norm.weight"):
                p.copy_(0.8 + 0.3 * torch.randn(p.shape, generator=generator))
            elif "_norm." in name:  # q/k norms: heads of one group share their parameters
                centre = 0.8 if name.endswith("weight") else 0.0
                rows = centre + 0.3 * torch.randn((kv_heads, p.shape[1]), generator=generator)
                p.copy_(rows.repeat_interleave(p.shape[0] // kv_heads, dim=0))
            elif "embed_tokens" in name or "proj" in name or "lm_head" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("placement", ["swin", "pre"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_logits_equal_chameleon(placement, kv_heads):
    reference = _chameleon(placement == "swin", kv_heads)
    config = TransformerConfig(
        vocab_size=VOCABULARY,
        num_layers=3,
        d_model=32,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=8,
        d_ff=56,
        norm_placement=placement,
        qk_norm_groups=kv_heads,
        dtype="float32",
    )
    model = Transformer(config, rngs=nnx.Rngs(0))
    text_weights = {k: v for k, v in reference.state_dict().items() if "vqmodel" not in k}
    load_state(model, chameleon_to_state(text_weights, config))
    tokens = np.random.default_rng(0).integers(0, 60, (2, 17))
    with torch.no_grad():
        expected = reference(input_ids=torch.from_numpy(tokens)).logits.numpy()
    positions = np.tile(np.arange(17, dtype=np.int32), (2, 1))
    got = logits_of(model, tokens.astype(np.int32), positions, np.ones((2, 17), np.int32))
    assert np.std(expected[..., :60]) > 0.5
    np.testing.assert_allclose(got[..., :60], expected[..., :60], atol=1e-4)
