"""WavTokenizer files: the published table, weight norm in and out, a second configuration, bad files."""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from ar_omni_jax.interop import codec_files, tokenizer_files, wavtokenizer_files
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.wavtokenizer_files import WINDOW, config_from_shapes, published_state, yaml_settings
from ar_omni_jax.tokenizers.speech import SpeechTokenizer
from ar_omni_jax.tokenizers.speech.config import (
    BackboneConfig,
    EncoderConfig,
    HeadConfig,
    SpeechCodecConfig,
    default_config,
)
from ar_omni_jax.tokenizers.speech.published import (
    CODEBOOK,
    QUANTIZER,
    fold_weight_norm,
    load_published,
    published_rules,
    published_shapes,
    split_weight_norm,
    to_published,
    translate_published,
)

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIONS = argparse.Namespace(config=None)
MODEL = "feature_extractor.encodec.encoder.model."


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "speech_codec.safetensors")


@pytest.fixture(scope="module")
def config(weights):
    return config_from_shapes({name: value.shape for name, value in weights.items()}, "golden")


@pytest.fixture(scope="module")
def full_shapes():
    return published_shapes(SpeechCodecConfig())


@pytest.fixture
def write(config, tmp_path):
    def write(tensors, settings=None):
        """codec.ckpt with the tensors, codec.yaml with the golden codec's settings beside it."""
        state = {name: torch.as_tensor(value) for name, value in tensors.items()}
        torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"sample_rate": 24000}}, tmp_path / "c.ckpt")
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"seed_everything": 1, **(settings or yaml_settings(config))}))
        return tmp_path / "c.ckpt"

    return write


def convert(source, target, path, output):
    return target.save(source.load(path, OPTIONS), output, OPTIONS)


# -- the published layout --------------------------------------------------------------------------------------
def _normed(name, outputs, inputs, kernel):
    return {f"{name}.weight_g": (outputs, 1, 1), f"{name}.weight_v": (outputs, inputs, kernel),
            f"{name}.bias": (outputs,)}  # fmt: skip


def published_table():
    """Every key and shape that the published 40-tokens-a-second codec is made of, written down part by part."""
    table = _normed(f"{MODEL}0.conv.conv", 32, 1, 7)
    for index, width, stride in ((1, 32, 4), (4, 64, 5), (7, 128, 5), (10, 256, 6)):
        table |= _normed(f"{MODEL}{index}.block.1.conv.conv", width // 2, width, 3)
        table |= _normed(f"{MODEL}{index}.block.3.conv.conv", width, width // 2, 1)
        table |= _normed(f"{MODEL}{index}.shortcut.conv.conv", width, width, 1)
        table |= _normed(f"{MODEL}{index + 2}.conv.conv", 2 * width, width, 2 * stride)
    for layer in (0, 1):
        for gate in ("ih", "hh"):
            table[f"{MODEL}13.lstm.weight_{gate}_l{layer}"] = (2048, 512)
            table[f"{MODEL}13.lstm.bias_{gate}_l{layer}"] = (2048,)
    table |= _normed(f"{MODEL}15.conv.conv", 512, 512, 7)
    table["feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed"] = (4096, 512)
    table |= {"backbone.embed.weight": (768, 512, 7), "backbone.embed.bias": (768,)}
    for i in (0, 1, 3, 4):
        for j in (1, 2):
            table |= {f"backbone.pos_net.{i}.norm{j}.{part}": (768,) for part in ("weight", "bias")}
            table |= {f"backbone.pos_net.{i}.conv{j}.weight": (768, 768, 3)}
            table |= {f"backbone.pos_net.{i}.conv{j}.bias": (768,)}
    for name in ("q", "k", "v", "proj_out"):
        table |= {f"backbone.pos_net.2.{name}.weight": (768, 768, 1), f"backbone.pos_net.2.{name}.bias": (768,)}
    table |= {f"backbone.pos_net.{name}.{part}": (768,) for name in ("2.norm", "5") for part in ("weight", "bias")}
    norms = ["backbone.norm"] + [f"backbone.convnext.{i}.norm" for i in range(12)]
    table |= {f"{norm}.{part}.weight": (4, 768) for norm in norms for part in ("scale", "shift")}
    for i in range(12):
        name = f"backbone.convnext.{i}"
        table |= {f"{name}.dwconv.weight": (768, 1, 7), f"{name}.dwconv.bias": (768,), f"{name}.gamma": (768,)}
        table |= {f"{name}.pwconv1.weight": (2304, 768), f"{name}.pwconv1.bias": (2304,)}
        table |= {f"{name}.pwconv2.weight": (768, 2304), f"{name}.pwconv2.bias": (768,)}
    table |= {"backbone.final_layer_norm.weight": (768,), "backbone.final_layer_norm.bias": (768,)}
    return table | {"head.out.weight": (2402, 768), "head.out.bias": (2402,)}


def test_the_published_layout_key_by_key(full_shapes):
    assert full_shapes == published_table()

    def millions(prefix):
        return round(sum(np.prod(shape) for name, shape in full_shapes.items() if name.startswith(prefix)) / 1e6, 2)

    assert (millions(MODEL), millions("backbone."), millions("head.")) == (8.30, 61.96, 1.85)


def test_shapes_of_the_published_codec_need_no_yaml(full_shapes):
    assert config_from_shapes(full_shapes, "x.ckpt") == SpeechCodecConfig()
    with pytest.raises(InteropError, match="x.ckpt is no WavTokenizer checkpoint: .*_codebook.embed is missing"):
        config_from_shapes({n: s for n, s in full_shapes.items() if n != CODEBOOK}, "x.ckpt")


def _encodec(ratios):
    """{name in the manner of EnCodec's own code: shape} of HF's EnCodec in WavTokenizer's configuration."""
    from transformers import EncodecConfig, EncodecModel

    settings = dict(upsampling_ratios=ratios, num_filters=32, hidden_size=512, codebook_size=4096, compress=2)
    settings |= dict(use_causal_conv=False, norm_type="weight_norm", pad_mode="reflect", num_lstm_layers=2)
    settings |= dict(use_conv_shortcut=True, num_residual_layers=1, sampling_rate=24000)
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig(**settings))
    names = {}
    for part in ("encoder", "decoder"):
        for name, tensor in getattr(model, part).state_dict().items():
            name = name.replace("parametrizations.weight.original0", "weight_g")
            name = name.replace("parametrizations.weight.original1", "weight_v").removeprefix("layers.")
            index = name.split(".")[0]
            transposed = part == "decoder" and index in ("3", "6", "9", "12")
            name = name.replace(".conv.", ".convtr.convtr." if transposed else ".conv.conv.")
            names[f"feature_extractor.encodec.{part}.model.{name}"] = tuple(tensor.shape)
    return names


def test_hf_encodec_has_the_same_encoder_and_the_same_unused_decoder(full_shapes):
    pytest.importorskip("transformers")
    ours = {name: shape for name, shape in full_shapes.items() if name.startswith(MODEL)}
    theirs = _encodec([6, 5, 5, 4])
    assert ours == {name: shape for name, shape in theirs.items() if ".encoder." in name}
    stand_in = wavtokenizer_files.unused_decoder()
    theirs = _encodec([8, 5, 4, 2])  # the published code builds its decoder so, whatever the encoder
    assert {n: a.shape for n, a in stand_in.items()} == {n: s for n, s in theirs.items() if ".decoder." in n}
    assert all(a.all() if n.endswith("weight_v") else not a.any() for n, a in stand_in.items())


def test_an_export_has_all_that_strict_loading_asks_for():
    small = BackboneConfig(dim=32, intermediate_dim=32, num_layers=1)
    config = SpeechCodecConfig(backbone=small)
    blank = {name: np.zeros(shape, np.float32) for name, shape in published_shapes(config).items()}
    state = published_state(codec_files.SpeechWeights(config, translate_published(blank, config), "x"))
    statistics = {f"{QUANTIZER}{name}" for name in ("inited", "cluster_size", "embed_avg")}
    assert state.keys() == blank.keys() | wavtokenizer_files.unused_decoder().keys() | statistics | {WINDOW}
    assert np.allclose(state[WINDOW], torch.hann_window(2400).numpy(), atol=1e-6)


# -- weight norm -----------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (3, 2, 5), elements=st.floats(-1e3, 1e3, width=32)))
def test_splitting_and_folding_weight_norm_changes_no_bit(w):
    g, v = split_weight_norm(w)
    assert fold_weight_norm(g, v).tobytes() == np.where(w.any((1, 2), keepdims=True), w, 0).tobytes()


def test_pytorch_folds_what_we_split_to_float32_rounding():
    w = np.random.default_rng(0).normal(size=(64, 32, 10)).astype(np.float32)
    g, v = split_weight_norm(w)
    folded = torch._weight_norm(torch.from_numpy(v), torch.from_numpy(g), 0).numpy()
    np.testing.assert_allclose(folded, w, rtol=5e-7, atol=0)


def test_both_of_pytorchs_weight_norms_are_read(weights, write):
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(1, 4, 7))
    assert {"parametrizations.weight.original0", "parametrizations.weight.original1"} <= conv.state_dict().keys()
    ends = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    newer = {f"{n[:-8]}{ends[n[-8:]]}" if n[-8:] in ends else n: value for n, value in weights.items()}
    assert newer.keys() != weights.keys()
    codecs = [wavtokenizer_files.read(write(tensors), OPTIONS) for tensors in (weights, newer)]
    assert all(np.array_equal(codecs[0].tensors[n], codecs[1].tensors[n]) for n in codecs[0].tensors)
    with pytest.raises(InteropError, match="weight_[gv] is there in both"):
        wavtokenizer_files.read(write(weights | newer), OPTIONS)


# -- there and back --------------------------------------------------------------------------------------------
def test_round_trip(weights, write, tmp_path):
    judges = {"multiperioddisc.a.weight_g": np.zeros(2), "dac.b": np.zeros(2), "melspec_loss.mel_spec.fb": np.zeros(2)}
    unused = {"feature_extractor.encodec.decoder.model.0.conv.conv.bias": np.zeros(512, np.float32)}
    path = write(weights | judges | unused)
    assert wavtokenizer_files.detect(path)
    lines = convert(wavtokenizer_files, tokenizer_files, path, tmp_path / "tokenizer")
    for words in ("1 multiperioddisc.*, 1 dac.*, 1 melspec_loss.*", "1 feature_extractor.encodec.decoder.*",
                  "133 tensors of a WavTokenizer, each used once", f"{WINDOW} is the Hann window"):  # fmt: skip
        assert any(words in line for line in lines), (words, lines)
    tokenizer = SpeechTokenizer.load(tmp_path / "tokenizer/speech")
    golden = np.load(GOLDEN / "speech_codec.npz")
    np.testing.assert_array_equal(tokenizer.encode_batch(list(golden["wav"])), golden["codes"])

    lines = convert(tokenizer_files, wavtokenizer_files, tmp_path / "tokenizer", tmp_path / "out")
    assert any("WARNING the published code fixes n_filters 32, dimension 512" in line for line in lines)
    state = torch.load(tmp_path / "out/wavtokenizer.ckpt", weights_only=True)["state_dict"]
    assert {n: (tuple(t.shape), t.dtype) for n, t in state.items()} == {
        n: (a.shape, torch.float32) for n, a in weights.items()
    }
    convert(wavtokenizer_files, tokenizer_files, tmp_path / "out/wavtokenizer.ckpt", tmp_path / "again")
    assert SpeechTokenizer.load(tmp_path / "again/speech").identity == tokenizer.identity  # equal to the bit
    with pytest.raises(InteropError, match="holds no image codec"):
        from ar_omni_jax.interop import vqgan_files

        convert(tokenizer_files, vqgan_files, tmp_path / "tokenizer", tmp_path / "image")


def test_a_codec_of_another_make_is_not_exported(tmp_path):
    rules = {rule.own for rule in published_rules(SpeechCodecConfig())}
    assert rules  # the layout itself is complete; what it lacks is named below
    weights = codec_files.SpeechWeights(default_config(), {}, "assets/speech")
    with pytest.raises(InteropError) as error:
        published_state(weights)
    for name in ("causal", "lookahead", "normalize", "position_net", "upsample", "source_filter"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="no place for backbone.expand"):
        published_shapes(default_config())


# -- a second configuration, against PyTorch --------------------------------------------------------------------
SECOND = SpeechCodecConfig(
    EncoderConfig(n_filters=6, dimension=10, ratios=(2, 4, 3), kernel_size=5, last_kernel_size=3,
                  residual_kernel_size=5, compress=3, lstm_layers=1),
    BackboneConfig(dim=64, intermediate_dim=48, num_layers=3, adanorm_num_embeddings=2),
    HeadConfig(n_fft=72, hop_length=24), codebook_size=50, sample_rate=8000,
)  # fmt: skip


def test_second_configuration_equals_pytorch(tmp_path):
    from tests.interop import torch_codecs as reference
    from tests.interop.test_vqgan import random_weights

    weights = random_weights(published_shapes(SECOND), 3)
    weights |= {n: 0.5 + np.abs(w) for n, w in weights.items() if n.endswith("weight_g")}
    weights["head.out.weight"] *= 0.3
    sd = {n: torch.from_numpy(w) for n, w in weights.items()}
    wav = np.random.default_rng(4).normal(size=(2, 24 * 13 + 7)).astype(np.float32)
    with torch.no_grad():
        embeddings = reference.speech_embeddings(sd, torch.from_numpy(wav), SECOND.encoder.strides, 1)
    # A codebook where the embeddings are, so that many codes are used.
    sd[CODEBOOK] = sd[CODEBOOK] * embeddings.std((0, 2)) + embeddings.mean((0, 2))
    torch.save({"state_dict": sd}, tmp_path / "c.ckpt")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(yaml_settings(SECOND)))
    loaded = wavtokenizer_files.read(tmp_path / "c.ckpt", OPTIONS)
    assert loaded.config == SECOND
    codec = load_published(to_published(loaded.tensors, SECOND), SECOND)
    with torch.no_grad():
        codes = reference.speech_codes(sd, embeddings)
        features = reference.speech_backbone(sd, codes, 3, row=1)
        audio = reference.speech_audio(sd, features, 72, 24)

    @jax.jit
    def run(wav, codes):
        hidden = codec.backbone(codec.codebook.lookup(codes), 1)
        return codec.embed(wav), codec.encode(wav), hidden, codec.head(hidden)

    found = run(wav, np.asarray(codes, np.int32))
    assert len(np.unique(codes)) > 8 and codes.shape == (2, 14) and np.std(audio.numpy()) > 1e-2
    np.testing.assert_allclose(found[0], embeddings.transpose(1, 2).numpy(), atol=1e-4)
    np.testing.assert_array_equal(found[1], codes.numpy())
    np.testing.assert_allclose(found[2], features.numpy(), atol=1e-4)
    np.testing.assert_allclose(found[3], audio.numpy(), atol=1e-4)


# -- what cannot be read ----------------------------------------------------------------------------------------
def test_malicious_and_truncated_files(weights, write, tmp_path):
    from tests.interop.test_vqgan import Malicious

    path = write(weights)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InteropError, match="c.ckpt is damaged"):
        wavtokenizer_files.load(path, OPTIONS)
    torch.save({"state_dict": {"a": Malicious(tmp_path / "harm")}}, path)
    with pytest.raises(InteropError, match="c.ckpt"):
        wavtokenizer_files.load(path, OPTIONS)
    assert not (tmp_path / "harm").exists() and wavtokenizer_files.detect(path) is None


def test_all_that_does_not_fit_is_named_and_nothing_is_written(weights, write, tmp_path):
    wrong = dict(weights)
    wrong["backbone.convnext.0.gama"] = wrong.pop("backbone.convnext.0.gamma")
    wrong["head.out.bias"] = np.zeros(7, np.float32)
    with pytest.raises(InteropError) as error:
        convert(wavtokenizer_files, tokenizer_files, write(wrong), tmp_path / "out")
    text = str(error.value)
    assert "missing: backbone.convnext.0.gamma [32] (the file has backbone.convnext.0.gama)" in text
    assert "unexpected: backbone.convnext.0.gama [32] (nearest: backbone.convnext.0.gamma)" in text
    assert "wrong shape: head.out.bias is [7], must be [2402]" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.out.bias": torch.zeros(2402, dtype=torch.int64)}, "wrong dtype: head.out.bias is int64"),
        ({WINDOW: torch.ones(2400)}, "head.istft.window .* is not the periodic Hann window"),
        ({f"{QUANTIZER}embed": torch.zeros(32, 16, 1)}, r"_codebook.embed is \[32, 16, 1\], must be \[32, 16\]"),
        ({CODEBOOK.replace("layers.0", "layers.1"): torch.zeros(32, 16)}, "unexpected: .*layers.1._codebook.embed"),
    ],
)
def test_tensors_that_do_not_fit_are_named(weights, write, change, message):
    with pytest.raises(InteropError, match=message):
        wavtokenizer_files.load(write(weights | change), OPTIONS)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("feature_extractor", {"num_quantizers": 2}, "num_quantizers is 2, must be 1"),
        ("feature_extractor", {"dowmsamples": [5, 6, 5, 4]}, "wrong shape: .*model.9.conv.conv.weight_v"),
        ("feature_extractor", {"downsamples": [1]}, r"unknown key: downsamples \(nearest: dowmsamples\)"),
        ("feature_extractor", {"vq_bins": None}, "missing setting: feature_extractor.vq_bins"),
        ("backbone", {"adanorm_num_embeddings": None}, "missing setting: backbone.adanorm_num_embeddings"),
        ("backbone", {"num_layers": 3}, "missing: backbone.convnext.2"),
        ("head", {"padding": "center"}, "head.padding is 'center', must be 'same'"),
        ("head", {"hop_length": 320}, "one code every 600 samples"),
    ],
)
def test_settings_that_do_not_fit_are_named(weights, write, config, part, change, message):
    values = json.loads(json.dumps(yaml_settings(config)))
    values["model"]["init_args"][part]["init_args"].update(change)
    with pytest.raises(InteropError, match=message):
        wavtokenizer_files.load(write(weights, values), OPTIONS)


def test_without_yaml_the_sample_rate_is_asked_for(weights, write):
    path = write(weights)
    path.with_suffix(".yaml").unlink()
    with pytest.raises(InteropError, match="sample rate does not show.*--config=FILE.yaml"):
        wavtokenizer_files.load(path, OPTIONS)
