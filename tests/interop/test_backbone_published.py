"""The published 7B layouts, key by key: shapes alone, nothing is allocated."""

import math

import jax
import pytest

from ar_omni_jax.interop import hf, meta, orbax
from ar_omni_jax.interop.backbone import SEPARATE, shapes
from ar_omni_jax.model.config import chameleon_7b
from ar_omni_jax.model.transformer import abstract_transformer
from ar_omni_jax.training.state import model_params

CONFIG = chameleon_7b()
TOTAL = 7_010_000_000  # "7.01 B"
HF_LAYER = {
    "self_attn.q_proj.weight": (4096, 4096),
    "self_attn.k_proj.weight": (4096, 4096),
    "self_attn.v_proj.weight": (4096, 4096),
    "self_attn.o_proj.weight": (4096, 4096),
    "self_attn.q_norm.weight": (32, 128),
    "self_attn.q_norm.bias": (32, 128),
    "self_attn.k_norm.weight": (32, 128),
    "self_attn.k_norm.bias": (32, 128),
    "mlp.gate_proj.weight": (11008, 4096),
    "mlp.up_proj.weight": (11008, 4096),
    "mlp.down_proj.weight": (4096, 11008),
    "input_layernorm.weight": (4096,),
    "post_attention_layernorm.weight": (4096,),
}
META_LAYER = {
    "attention.wq.weight": (4096, 4096),
    "attention.wk.weight": (4096, 4096),
    "attention.wv.weight": (4096, 4096),
    "attention.wo.weight": (4096, 4096),
    "attention.q_normalization.weight": (128,),
    "attention.q_normalization.bias": (128,),
    "attention.k_normalization.weight": (128,),
    "attention.k_normalization.bias": (128,),
    "feed_forward.w1.weight": (11008, 4096),
    "feed_forward.w3.weight": (11008, 4096),
    "feed_forward.w2.weight": (4096, 11008),
    "attention_norm.weight": (4096,),
    "ffn_norm.weight": (4096,),
}


def published(layer, top, prefix):
    return top | {f"{prefix}layers.{n}.{name}": shape for n in range(32) for name, shape in layer.items()}


def hf_table(norm):
    top = {"model.embed_tokens.weight": (65536, 4096), "model.norm.weight": (4096,), "lm_head.weight": (65536, 4096)}
    layer = {k: norm if "_norm." in k else v for k, v in HF_LAYER.items()}
    return published(layer, top, "model.")


def test_hf():
    assert hf.file_shapes(CONFIG, SEPARATE, permuted=True) == hf_table((32, 128))


def test_vendored():
    assert hf.file_shapes(CONFIG, SEPARATE, permuted=False) == hf_table((128,))


def test_meta():
    top = {"tok_embeddings.weight": (65536, 4096), "norm.weight": (4096,), "output.weight": (65536, 4096)}
    assert meta.file_shapes(CONFIG, SEPARATE, 1) == published(META_LAYER, top, "")
    halves = meta.file_shapes(CONFIG, SEPARATE, 2)
    assert halves["layers.31.attention.wk.weight"] == (2048, 4096)
    assert halves["layers.31.attention.wo.weight"] == (4096, 2048)
    assert halves["layers.31.feed_forward.w2.weight"] == (4096, 5504)
    assert halves["tok_embeddings.weight"] == (65536, 2048) and halves["output.weight"] == (32768, 4096)
    assert halves["layers.31.attention.k_normalization.bias"] == (128,)


def test_our_own_arrays_and_the_count():
    abstract = model_params(abstract_transformer(CONFIG))
    leaves = {".".join(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(abstract)}
    assert orbax.leaf_shapes(CONFIG) == {name: leaf.shape for name, leaf in leaves.items()}
    count = sum(math.prod(leaf.shape) for leaf in leaves.values())
    assert count == CONFIG.parameter_count() == sum(math.prod(s) for s in shapes(CONFIG).values())
    assert abs(count - TOTAL) < 5_000_000
    assert {orbax.leaf_of(name)[0] for name in shapes(CONFIG)} == set(leaves)


def test_hf_builds_the_same_table():
    """transformers' own model of the default (published) config, on the meta device."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.ChameleonForConditionalGeneration(transformers.ChameleonConfig(vocabulary_map={}))
    found = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.startswith(hf.VQ_PREFIX)}
    assert found == hf_table((32, 128))
    vq = sum(v.numel() for k, v in model.state_dict().items() if k.startswith(hf.VQ_PREFIX + "encoder."))
    assert round(vq / 1e6, 2) == 27.19
