"""Converted files in HF transformers: it loads them whole, computes the same logits and generates the same ids."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.checkpoint import load_for_inference
from ar_omni_jax.interop.backbone import SCALED, SEPARATE
from ar_omni_jax.model.cache import decode, logits_of, prefill
from ar_omni_jax.model.decode_weights import make_decode_weights
from ar_omni_jax.model.transformer import abstract_transformer
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.model import VQGAN
from ar_omni_jax.tokenizers.image.weights import save_tokenizer
from ar_omni_jax.vocabulary import Modality
from tests.interop import backbones

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny products: more threads only wait for each other

CODEC = VQGANConfig(
    ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, resolution=16, n_embed=16, embed_dim=8, num_groups=32
)
# HF never lets a model write pictures: it puts the logits of image ids at the type's lowest value.
SEEN = ~backbones.VOCABULARY.mask(Modality.IMAGE)
MODELS = {
    "MHA, swin": dict(norm_placement="swin"),
    "GQA, pre, two groups": dict(norm_placement="pre", num_kv_heads=2, qk_norm_groups=2, rope_theta=500.0),
    "MQA, swin, scaled table": dict(norm_placement="swin", num_kv_heads=1, tie=SCALED),
}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """An image tokenizer of HF's family, by the path that --image_tokenizer takes."""
    folder = tmp_path_factory.mktemp("codec")
    save_tokenizer(str(folder / "image"), CODEC, nnx.state(VQGAN(CODEC, nnx.Rngs(0)), nnx.Param), {})
    return folder


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory, codec):
    """(ours from a checkpoint, HF's from the folder that the command made of it)."""
    folder = tmp_path_factory.mktemp("both")
    original = backbones.make(**({"tie": SEPARATE} | MODELS[request.param]))
    # Larger weights: attention that looks at something, and logits that stand apart.
    louder = original.replace(get=lambda name: original.get(name) * (1 if "norm" in name else 2))
    backbones.save(louder, "orbax", folder / "run")
    assert backbones.run(folder / "run", folder / "hf", "hf", image_tokenizer=codec) == 0
    trained = load_for_inference(folder / "run")
    model = nnx.merge(nnx.graphdef(abstract_transformer(trained.model_config)), trained.params)
    theirs, info = transformers.ChameleonForConditionalGeneration.from_pretrained(
        folder / "hf", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model, theirs.eval(), folder


def test_hf_loads_float32_and_the_ids(both):
    _, theirs, _ = both
    vocabulary = backbones.VOCABULARY
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == vocabulary.marker("eos")
    assert theirs.config.pad_token_id == vocabulary.marker("pad")
    found = theirs.model.vocabulary_mapping.img2bpe
    assert found == {c: int(vocabulary.to_ids(Modality.IMAGE, c)) for c in range(16)}


def test_logits_are_equal(both):
    model, theirs, _ = both
    tokens = np.random.default_rng(0).choice(np.flatnonzero(SEEN), (2, 40)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    positions = np.tile(np.arange(40, dtype=np.int32), (2, 1))
    got = np.asarray(model.logits(model(tokens, positions, np.ones_like(tokens))))
    assert np.std(expected[..., SEEN]) > 0.5
    np.testing.assert_allclose(got[..., SEEN], expected[..., SEEN], atol=1e-4)


def test_greedy_generation_is_equal_for_64_tokens(both):
    model, theirs, _ = both
    text = np.flatnonzero(backbones.VOCABULARY.mask(Modality.TEXT))
    prompt = np.random.default_rng(1).choice(text, (1, 9)).astype(np.int32)
    others = [i for i in range(backbones.VOCABULARY.size) if i not in set(text.tolist())]
    expected = theirs.generate(
        torch.from_numpy(prompt).long(), do_sample=False, max_new_tokens=64, suppress_tokens=others
    )[0, 9:].numpy()
    allowed = jnp.asarray(backbones.VOCABULARY.mask(Modality.TEXT))

    weights, config = make_decode_weights(model)

    def pick(hidden):
        return jnp.argmax(jnp.where(allowed, logits_of(weights, hidden), -jnp.inf), -1).astype(jnp.int32)

    hidden, cache = prefill(weights, config, prompt, np.array([9], np.int32), 80)
    token, got = pick(hidden), []
    step = jax.jit(functools.partial(decode, weights, config))
    for _ in range(64):
        got.append(int(token[0]))
        hidden, cache = step(token[:, None], cache)
        token = pick(hidden[:, 0])
    # A fresh model whose output table is its input table repeats what it reads; the others must not.
    assert model.config.tie_embeddings or len(set(got)) > 5
    np.testing.assert_array_equal(got, expected)


def test_what_hf_saves_comes_back(both, tmp_path):
    """transformers' own files, written by its `save_pretrained`, with the image encoder named and left out."""
    _, theirs, folder = both
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="40KB")
    assert not (tmp_path / "saved" / "ar_omni_jax.json").exists()
    source, saved = backbones.load("hf", folder / "hf"), backbones.load("hf", tmp_path / "saved")
    assert saved.extras.shapes == source.extras.shapes
    for name in source.extras.shapes:
        assert saved.extras.get(name).tobytes() == source.extras.get(name).tobytes(), name
    fields = ("norm_placement", "rope_theta", "num_kv_heads", "qk_norm_groups", "norm_eps", "d_ff", "max_length")
    for field in fields:
        assert getattr(saved.config, field) == getattr(source.config, field), field
    for name in saved.shapes:
        expected = source.get("embedding" if name == "output" and source.tie == SCALED else name)
        if name == "embedding" and source.tie == SCALED:
            expected = expected * np.float32(np.sqrt(source.config.d_model))
        assert saved.get(name).tobytes() == expected.tobytes(), name


def test_hf_ties_are_kept_and_checked(tmp_path, codec, capsys):
    shared = backbones.make(tie="shared")
    path = backbones.save(shared, "hf", tmp_path / "hf", image_tokenizer=codec)
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is True
    theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(path)
    np.testing.assert_array_equal(theirs.lm_head.weight.detach().numpy(), shared.get("embedding"))
    assert backbones.run(path, tmp_path / "ours", "orbax") == 0
    out = capsys.readouterr().out
    assert "written as two" in out
    count = len(backbones.load("hf", path).extras.shapes)
    assert f"{count} tensors of the image encoder are none of the backbone" in out
    assert not load_for_inference(tmp_path / "ours").model_config.tie_embeddings


def test_an_image_tokenizer_of_other_codes_is_refused(tmp_path, capsys):
    fewer = dataclasses.replace(CODEC, n_embed=8)
    save_tokenizer(str(tmp_path / "image"), fewer, nnx.state(VQGAN(fewer, nnx.Rngs(0)), nnx.Param), {})
    path = backbones.save(backbones.make(), "orbax", tmp_path / "run")
    assert backbones.run(path, tmp_path / "hf", "hf", image_tokenizer=tmp_path) == 1
    assert "has 8 codes, vocabulary 'tiny' of the model 16" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_no_image_encoder_is_said(tmp_path, capsys):
    path = backbones.save(backbones.make(), "orbax", tmp_path / "run")
    assert backbones.run(path, tmp_path / "hf", "hf") == 0
    assert "no image encoder" in capsys.readouterr().out


def test_the_text_tokenizer_comes_along(tmp_path, codec):
    """A tokenizers folder with Chameleon's JSON: HF's tokenizer files, with <image> where HF wants it."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<reserved08707>": 12, "a": 90, "b": 91, "ab": 92}
    names |= {"IMGIMG" + "".join("ABCDEFGHIJ"[int(d)] for d in str(c)) + "Z": 16 + c for c in range(16)}
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    added = [{"id": names[n], "content": n, **special} for n in ("<s>", "<reserved08707>")]
    model = {"type": "BPE", "vocab": names, "merges": ["a b"], "unk_token": "<unk>"}
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / "text_tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": added, "model": model})
    )
    base = backbones.make().replace(settings={"tokenizers": str(tmp_path / "tokenizers"), "template": "released"})
    path = backbones.save(base, "hf", tmp_path / "hf", image_tokenizer=codec)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer("<s><image>ab", add_special_tokens=False).input_ids == [0, 12, 92]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1)
    config = json.loads((path / "config.json").read_text())
    assert config["vocabulary_map"]["<image>"] == 12 and "<reserved08707>" not in config["vocabulary_map"]
    assert backbones.run(path, tmp_path / "again", "hf") == 0
    again = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    assert again == json.loads((path / "tokenizer.json").read_text())
