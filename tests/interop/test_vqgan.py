"""VQGAN files: the published table, conversion to the bit in both directions, a second configuration, bad files."""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file, save_file

from ar_omni_jax.interop import tokenizer_files, vqgan_files
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.vqgan_files import published_shapes
from ar_omni_jax.tokenizers.image import CHAMELEON, ImageTokenizer, VQGANConfig
from ar_omni_jax.tokenizers.image.model import VQGAN
from ar_omni_jax.tokenizers.image.weights import model_from_published, save_tokenizer

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIONS = argparse.Namespace(config=None)


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "image_vq.safetensors")


def write(folder, tensors, **extra):
    """vqgan.ckpt with the tensors, and the golden codec's vqgan.yaml beside it."""
    folder.mkdir(exist_ok=True)
    state = {name: torch.as_tensor(value) for name, value in tensors.items()}
    torch.save({"state_dict": state, **extra}, folder / "vqgan.ckpt")
    settings = json.loads((GOLDEN / "image_vq.json").read_text())
    lossconfig = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
    params = {**settings, "lossconfig": lossconfig, "ckpt_path": None}
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": params, "target": "x.VQModel"}}))
    return folder / "vqgan.ckpt"


def convert(source, target, path, output, options=OPTIONS):
    return target.save(source.load(path, options), output, options)


# -- the published layout --------------------------------------------------------------------------------------
def _conv(name, outputs, inputs, kernel):
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _block(name, inputs, outputs):
    table = _norm(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", outputs, inputs, 3)
    table |= _norm(f"{name}.norm2", outputs) | _conv(f"{name}.conv2", outputs, outputs, 3)
    return table | (_conv(f"{name}.nin_shortcut", outputs, inputs, 1) if inputs != outputs else {})


def _middle(name):
    table = _block(f"{name}.block_1", 512, 512) | _block(f"{name}.block_2", 512, 512)
    table |= _norm(f"{name}.attn_1.norm", 512)
    for part in ("q", "k", "v", "proj_out"):
        table |= _conv(f"{name}.attn_1.{part}", 512, 512, 1)
    return table


def chameleon_table():
    """Every key and shape of Chameleon's vqgan.ckpt, written down stage by stage."""
    table = _conv("encoder.conv_in", 128, 3, 3)
    for i, (inputs, outputs) in enumerate([(128, 128), (128, 128), (128, 256), (256, 256), (256, 512)]):
        table |= _block(f"encoder.down.{i}.block.0", inputs, outputs)
        table |= _block(f"encoder.down.{i}.block.1", outputs, outputs)
        table |= _conv(f"encoder.down.{i}.downsample.conv", outputs, outputs, 3) if i < 4 else {}
    table |= _middle("encoder.mid") | _norm("encoder.norm_out", 512) | _conv("encoder.conv_out", 256, 512, 3)
    table |= _conv("quant_conv", 256, 256, 1) | _conv("post_quant_conv", 256, 256, 1)
    table |= {"quantize.embedding.weight": (8192, 256)}
    table |= _conv("decoder.conv_in", 512, 256, 3) | _middle("decoder.mid")
    for i, (inputs, outputs) in enumerate([(128, 128), (256, 128), (256, 256), (512, 256), (512, 512)]):
        table |= _block(f"decoder.up.{i}.block.0", inputs, outputs)
        table |= _block(f"decoder.up.{i}.block.1", outputs, outputs)
        table |= _block(f"decoder.up.{i}.block.2", outputs, outputs)
        table |= _conv(f"decoder.up.{i}.upsample.conv", outputs, outputs, 3) if i else {}
    return table | _norm("decoder.norm_out", 128) | _conv("decoder.conv_out", 3, 128, 3)


def test_chameleons_layout_key_by_key():
    shapes = published_shapes(CHAMELEON)
    assert shapes == chameleon_table()
    millions = {}
    for name, shape in shapes.items():
        part = name.split(".")[0]
        millions[part] = millions.get(part, 0) + np.prod(shape) / 1e6
    assert round(millions["encoder"], 2) == 27.19 and round(millions["decoder"], 2) == 39.29
    assert round(millions["decoder"] + millions["quantize"] + millions["post_quant_conv"], 2) == 41.46


def test_hf_transformers_has_the_same_names_and_shapes():
    transformers = pytest.importorskip("transformers")
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    with torch.device("meta"):
        model = ChameleonVQVAE(transformers.ChameleonVQVAEConfig())
    theirs = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert theirs == {n: s for n, s in published_shapes(CHAMELEON).items() if not n.startswith("decoder.")}


def test_shapes_of_chameleons_codec_need_no_yaml():
    notes = []
    shapes = published_shapes(CHAMELEON)
    assert vqgan_files.config_from_shapes(shapes, "x.ckpt", notes) == CHAMELEON
    assert "resolution 512" in notes[0]
    with pytest.raises(InteropError, match=r"ch_mult \(1, 1, 2, 2, 4\).*n_embed 4096.*--config=FILE.yaml"):
        vqgan_files.config_from_shapes(shapes | {"quantize.embedding.weight": (4096, 256)}, "x.ckpt", notes)
    with pytest.raises(InteropError, match="x.ckpt holds no VQGAN"):
        vqgan_files.config_from_shapes({"weight": (1,)}, "x.ckpt", notes)


# -- there and back --------------------------------------------------------------------------------------------
def test_round_trip_is_equal_to_the_bit_and_loads_as_weights_only(weights, tmp_path):
    path = write(tmp_path / "in", weights, global_step=7)
    assert vqgan_files.detect(path)
    lines = convert(vqgan_files, tokenizer_files, path, tmp_path / "tokenizer")
    assert any("125 tensors of a VQGAN, each used once" in line for line in lines)
    tokenizer = ImageTokenizer.load(tmp_path / "tokenizer/image")
    arrays = np.load(GOLDEN / "image_vq.npz")
    codes = tokenizer.encode(arrays["pixels_nchw"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(codes, arrays["codes"])

    assert tokenizer_files.detect(tmp_path / "tokenizer") == "image codec image.json"
    convert(tokenizer_files, vqgan_files, tmp_path / "tokenizer", tmp_path / "out")
    state = torch.load(tmp_path / "out/vqgan.ckpt", weights_only=True)["state_dict"]
    assert {n: t.numpy().tobytes() for n, t in state.items()} == {n: a.tobytes() for n, a in weights.items()}
    assert {n: tuple(t.shape) for n, t in state.items()} == {n: a.shape for n, a in weights.items()}
    settings = yaml.safe_load((tmp_path / "out/vqgan.yaml").read_text())["model"]["params"]
    golden = json.loads((GOLDEN / "image_vq.json").read_text())
    assert settings["ddconfig"] == golden["ddconfig"] and settings["n_embed"] == 32 and settings["embed_dim"] == 8
    again = vqgan_files.read(tmp_path / "out/vqgan.ckpt", OPTIONS)
    assert again.config == tokenizer.config
    with pytest.raises(InteropError, match="image.json and .*image.safetensors would be replaced"):
        convert(vqgan_files, tokenizer_files, path, tmp_path / "tokenizer")


def test_an_export_needs_no_torch(weights, tmp_path, monkeypatch):
    convert(vqgan_files, tokenizer_files, write(tmp_path / "in", weights), tmp_path / "tokenizer")
    monkeypatch.setitem(sys.modules, "torch", None)
    convert(tokenizer_files, vqgan_files, tmp_path / "tokenizer", tmp_path / "out")
    with pytest.raises(InteropError, match="needs PyTorch"):
        vqgan_files.read(tmp_path / "out/vqgan.ckpt", OPTIONS)


def test_what_is_not_the_codec_is_left_out_and_counted(weights, tmp_path):
    extra = {f"loss.discriminator.main.{i}.weight": np.zeros(2, np.float32) for i in range(3)}
    codec = vqgan_files.read(write(tmp_path, weights | extra), OPTIONS)
    assert any("discriminator" in note and "3 loss.*" in note for note in codec.notes)
    assert codec.tensors.keys() == weights.keys()


def test_hf_names_in_safetensors(weights, tmp_path):
    inside = {f"model.vqmodel.{name}": value for name, value in weights.items()}
    path = write(tmp_path, {})
    save_file(inside | {"lm_head.weight": np.zeros((2, 2), np.float32)}, tmp_path / "vqgan.safetensors")
    codec = vqgan_files.read(path.with_suffix(".safetensors"), OPTIONS)
    assert all(np.array_equal(codec.tensors[name], value) for name, value in weights.items())
    assert any("language model around the codec: 1 tensors" in note for note in codec.notes)
    encoder = {name: value for name, value in inside.items() if ".decoder." not in name}
    save_file(encoder, tmp_path / "vqgan.safetensors")
    with pytest.raises(InteropError, match="missing: decoder.conv_in.weight(.|\n)*keeps the encoder alone"):
        vqgan_files.read(path.with_suffix(".safetensors"), OPTIONS)


def test_half_precision_is_widened_with_a_warning(weights, tmp_path):
    half = {name: torch.from_numpy(value).bfloat16() for name, value in weights.items()}
    codec = vqgan_files.read(write(tmp_path, half), OPTIONS)
    assert all(np.array_equal(codec.tensors[name], value.float().numpy()) for name, value in half.items())
    assert any("WARNING 125 tensors are bfloat16" in note for note in codec.notes)


# -- a second configuration, against PyTorch --------------------------------------------------------------------
SECOND = VQGANConfig(
    ch=32, ch_mult=(1, 3, 2), num_res_blocks=2, attn_resolutions=(16,), z_channels=12, resolution=32, n_embed=40,
    embed_dim=6,
)  # fmt: skip


def random_weights(shapes, seed):
    """Weights that keep activations near 1, with every norm and bias away from its neutral value."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes.items():
        spread, centre = (0.2, 1.0) if len(shape) == 1 and "norm" in name and name.endswith("weight") else (0.1, 0.0)
        if len(shape) > 1:
            spread = 1.0 if "embed" in name and len(shape) == 2 else np.prod(shape[1:]) ** -0.5
        out[name] = (centre + spread * rng.normal(size=shape)).astype(np.float32)
    return out


def test_second_configuration_equals_pytorch(tmp_path):
    from tests.interop import torch_codecs as reference

    shapes = published_shapes(SECOND)
    assert {"encoder.down.1.attn.1.q.weight", "decoder.up.1.attn.2.q.weight"} <= shapes.keys()
    weights = random_weights(shapes, 0)
    torch.save({"state_dict": {n: torch.from_numpy(w) for n, w in weights.items()}}, tmp_path / "a.ckpt")
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(vqgan_files.yaml_settings(SECOND)))
    codec = vqgan_files.read(tmp_path / "a.ckpt", argparse.Namespace(config=tmp_path / "b.yaml"))
    model = model_from_published(codec.config, codec.tensors)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        sd = {n: torch.from_numpy(w) for n, w in weights.items()}
        latents = reference.vqgan_latents(sd, torch.from_numpy(pixels.transpose(0, 3, 1, 2)), 3)
        codes = reference.vqgan_codes(sd, latents)
        drawn = reference.vqgan_pixels(sd, codes, 3)

    @jax.jit
    def run(x):
        z = model.latents(x)
        return z, model.codes(z), model.decode(model.embed(model.codes(z)))

    z, found, out = run(pixels)
    assert len(np.unique(codes)) > 10
    np.testing.assert_array_equal(found, codes.numpy())
    np.testing.assert_allclose(z, latents.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    np.testing.assert_allclose(out, drawn.permute(0, 2, 3, 1).numpy(), atol=1e-4)


# -- what cannot be read ----------------------------------------------------------------------------------------
class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def test_a_malicious_checkpoint_runs_nothing(weights, tmp_path):
    path = write(tmp_path, weights)
    torch.save({"state_dict": {}, "callbacks": Malicious(tmp_path / "harm")}, path)
    with pytest.raises(InteropError, match="vqgan.ckpt"):
        vqgan_files.load(path, OPTIONS)
    assert not (tmp_path / "harm").exists() and vqgan_files.detect(path) is None


def test_truncated_and_absent_files(weights, tmp_path):
    path = write(tmp_path, weights)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InteropError, match="vqgan.ckpt is damaged"):
        vqgan_files.load(path, OPTIONS)
    save_file(weights, path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").write_bytes(path.with_suffix(".safetensors").read_bytes()[:-10])
    with pytest.raises(InteropError, match="vqgan.safetensors is damaged"):
        vqgan_files.load(path.with_suffix(".safetensors"), OPTIONS)
    with pytest.raises(InteropError, match="none.ckpt is not there"):
        vqgan_files.load(tmp_path / "none.ckpt", OPTIONS)


def test_all_that_does_not_fit_is_named_and_nothing_is_written(weights, tmp_path):
    wrong = dict(weights)
    wrong["encoder.conv_in.wieght"] = wrong.pop("encoder.conv_in.weight")
    wrong["decoder.conv_out.bias"] = np.zeros(4, np.float32)
    with pytest.raises(InteropError) as error:
        convert(vqgan_files, tokenizer_files, write(tmp_path / "in", wrong), tmp_path / "out")
    text = str(error.value)
    assert "missing: encoder.conv_in.weight [32, 3, 3, 3] (the file has encoder.conv_in.wieght)" in text
    assert "unexpected: encoder.conv_in.wieght" in text and "nearest: encoder.conv_in.weight" in text
    assert "wrong shape: decoder.conv_out.bias is [4], must be [3]" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, dtype=torch.int32), "wrong dtype: decoder.conv_out.bias is int32, must be float32"),
        (torch.zeros(3, dtype=torch.float64), "wrong dtype: decoder.conv_out.bias is float64"),
        (torch.full((3,), float("nan")), "not finite: decoder.conv_out.bias"),
    ],
)
def test_wrong_dtypes_and_values_are_named(weights, tmp_path, value, message):
    path = write(tmp_path, weights | {"decoder.conv_out.bias": value})
    with pytest.raises(InteropError, match=message):
        vqgan_files.load(path, OPTIONS)


def _change(path, change):
    settings = yaml.safe_load(path.read_text())
    change(settings["model"]["params"])
    path.write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(remap="file.npy"), "remap renumbers the codes"),
        (lambda p: p.update(n_embd=3), r"unknown key: n_embd \(nearest: n_embed\)"),
        (lambda p: p["ddconfig"].update(chanels=3), "unknown VQGAN config keys.*chanels"),
        (lambda p: p["ddconfig"].pop("resolution"), "missing setting: ddconfig.resolution"),
        (lambda p: p["ddconfig"].update(ch_mult=[1, 1]), r"conv_in.weight is \[64, 8, 3, 3\], must be \[32, 8, 3, 3\]"),
        (lambda p: p.update(n_embed=64), r"quantize.embedding.weight is \[32, 8\], must be \[64, 8\]"),
        (lambda p: p.pop("ddconfig"), "ddconfig is missing"),
    ],
)
def test_settings_that_do_not_fit_are_named(weights, tmp_path, change, message):
    path = write(tmp_path, weights)
    _change(path.with_suffix(".yaml"), change)
    with pytest.raises(InteropError, match=message):
        vqgan_files.load(path, OPTIONS)


def test_yaml_holds_data_only_and_dropout_is_inert(weights, tmp_path):
    path = write(tmp_path, weights)
    _change(path.with_suffix(".yaml"), lambda p: p["ddconfig"].update(dropout=0.1))
    codec = vqgan_files.read(path, OPTIONS)
    assert codec.config.dropout == 0.0 and any("dropout 0.1" in note for note in codec.notes)
    path.with_suffix(".yaml").write_text("model: !!python/object/apply:os.system ['true']")
    with pytest.raises(InteropError, match="no plain YAML"):
        vqgan_files.read(path, OPTIONS)
    path.with_suffix(".yaml").unlink()
    with pytest.raises(InteropError, match="--config=FILE.yaml"):
        vqgan_files.read(path, OPTIONS)
    with pytest.raises(InteropError, match="--config=none.yaml is not there"):
        vqgan_files.read(path, argparse.Namespace(config="none.yaml"))


def test_a_codec_of_other_groups_is_not_exported(tmp_path):
    config = VQGANConfig(ch=8, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, resolution=8, num_groups=4, n_embed=4,
                         embed_dim=4)  # fmt: skip
    save_tokenizer(str(tmp_path / "image"), config, nnx.state(VQGAN(config, nnx.Rngs(0)), nnx.Param), {})
    with pytest.raises(InteropError, match="normalizes in 4 groups"):
        convert(tokenizer_files, vqgan_files, tmp_path, tmp_path / "out")
    with pytest.raises(InteropError, match="holds no codec of this project"):
        tokenizer_files.load(tmp_path / "nothing", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_command(weights, tmp_path, capsys):
    from ar_omni_jax import convert as command

    path = write(tmp_path / "in", weights | {"loss.logvar": np.zeros(1, np.float32)})
    assert command.main(["--to=tokenizer", f"--input={path}", f"--output={tmp_path / 'tokenizers'}"]) == 0
    said = capsys.readouterr().out
    assert "input: vqgan (quantize.embedding.weight" in said and "1 loss.*" in said
    back = [f"--input={tmp_path / 'tokenizers'}", f"--output={tmp_path / 'out'}"]
    assert command.main(["--from=tokenizer", "--to=vqgan", *back]) == 0
    assert (tmp_path / "out/vqgan.ckpt").is_file()
    assert command.main(["--from=vqgan", "--to=wavtokenizer", f"--input={path}", f"--output={tmp_path / 'no'}"]) == 1
    assert "holds no speech codec" in capsys.readouterr().err and not (tmp_path / "no").exists()
