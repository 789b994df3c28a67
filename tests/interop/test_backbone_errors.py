"""Files that cannot be converted: one clear error each, and nothing is written."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ar_omni_jax.interop import tensor_files
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.torch_files import read_torch_file
from tests.interop import backbones

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One model in every layout; the HF one in several shards."""
    folder = tmp_path_factory.mktemp("sources")
    original = backbones.make()
    for name in ("hf", "vendored", "meta"):
        backbones.save(original, name, folder / name, max_shard_size="20KB")
    backbones.save(original, "meta", folder / "shards", model_parallel_size=2)
    return folder


def refused(capsys, path, target, **options) -> str:
    """The message of a conversion that must fail, after which no trace of an output may be left."""
    out = path.parent / "refused"
    assert backbones.run(path, out, target, **options) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    assert not out.exists() and not list(path.parent.glob(".refused*"))
    return message


def change(folder, file, edit):
    """Rewrites one safetensors file after `edit(tensors)`."""
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file)


def edit_hf(tmp_path, sources, edit):
    """A copy of the HF model in one file, its tensors edited."""
    original = backbones.load("hf", sources / "hf")
    path = backbones.save(original, "hf", tmp_path / "hf")
    change(path, "model.safetensors", edit)
    return path


Q = "model.layers.1.self_attn.q_proj.weight"


def test_missing_extra_and_misshapen_are_all_listed_with_the_nearest_name(tmp_path, sources, capsys):
    def edit(tensors):
        tensors["model.layers.1.self_attn.q_project.weight"] = tensors.pop(Q)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)
        tensors["model.layers.0.mlp.down_proj.bias"] = torch.zeros(24)

    message = refused(capsys, edit_hf(tmp_path, sources, edit), "orbax")
    assert f"missing: {Q} [24, 24] (the file has model.layers.1.self_attn.q_project.weight)" in message
    assert f"unexpected: model.layers.1.self_attn.q_project.weight [24, 24] (nearest: {Q})" in message
    assert "unexpected: model.layers.0.mlp.down_proj.bias [24] (nearest: model.layers.0.mlp.down_proj.w" in message
    assert "wrong shape: model.layers.0.mlp.up_proj.weight is [3, 4], must be [40, 24]" in message


@pytest.mark.parametrize("kind", ["int32", "float64", "float8_e4m3fn"])
def test_a_wrong_type_is_named(tmp_path, sources, capsys, kind):
    path = edit_hf(tmp_path, sources, lambda t: t.update({Q: t[Q].to(getattr(torch, kind))}))
    message = refused(capsys, path, "meta")
    assert f"wrong type: {Q} is " in message and "float32, bfloat16, float16" in message


def test_types_that_cannot_be_stacked(tmp_path, sources, capsys):
    path = edit_hf(tmp_path, sources, lambda t: t.update({Q: t[Q].bfloat16()}))
    assert "blocks.wq: bfloat16, float32" in refused(capsys, path, "orbax")
    assert backbones.run(path, tmp_path / "cast", "orbax", dtype="float32") == 0


def test_values_that_float16_cannot_hold(tmp_path, sources, capsys):
    path = edit_hf(tmp_path, sources, lambda t: t[Q].fill_(1e6))
    assert "65504" in refused(capsys, path, "meta", dtype="float16")


@pytest.mark.parametrize("cut", [4, 300, -1])
def test_a_truncated_safetensors(tmp_path, sources, capsys, cut):
    path = shutil.copytree(sources / "hf", tmp_path / "hf")
    victim = sorted(path.glob("*.safetensors"))[1]
    os.truncate(victim, victim.stat().st_size + cut if cut < 0 else cut)
    message = refused(capsys, path, "orbax")
    assert victim.name in message and "damaged" in message


def test_a_missing_shard(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "hf", tmp_path / "hf")
    gone = sorted(path.glob("*.safetensors"))[2]
    gone.unlink()
    assert f"names {gone.name}, not there" in refused(capsys, path, "orbax")
    meta = shutil.copytree(sources / "shards", tmp_path / "meta")
    (meta / "consolidated.00.pth").unlink()
    assert "lacks consolidated.00.pth" in refused(capsys, meta, "orbax")


def test_an_index_that_does_not_fit_its_files(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "hf", tmp_path / "hf")
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    index["weight_map"][Q] = last if index["weight_map"][Q] == first else first
    file.write_text(json.dumps(index))
    assert f"unexpected: {Q} in" in refused(capsys, path, "orbax")
    index["weight_map"][Q] = "../elsewhere.safetensors"
    file.write_text(json.dumps(index))
    assert "points outside its folder" in refused(capsys, path, "orbax")


def test_a_shard_of_another_split(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "shards", tmp_path / "meta")
    (path / "consolidated.01.pth").unlink()
    assert "model_parallel_size = 2, there are 1 files" in refused(capsys, path, "orbax")
    shutil.copy(sources / "meta" / "consolidated.pth", path / "consolidated.01.pth")
    message = refused(capsys, path, "orbax")
    assert "consolidated.01.pth cannot be converted" in message
    assert "wrong shape: layers.0.attention.wq.weight is [24, 24], must be [12, 24]" in message


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "bare"])
def test_a_malicious_pickle_runs_nothing(tmp_path, sources, capsys, kind):
    path, marker = shutil.copytree(sources / "meta", tmp_path / "meta"), tmp_path / "marker"
    tensors = {**torch.load(path / "consolidated.pth", weights_only=True), "evil": Evil(marker)}
    if kind == "zip":
        torch.save(tensors, path / "consolidated.pth")
    else:
        (path / "consolidated.pth").write_bytes(pickle.dumps(Evil(marker), 2))
    message = refused(capsys, path, "hf")
    assert "holds more than tensors" in message
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_pth(tmp_path, sources, capsys, content):
    path = shutil.copytree(sources / "meta", tmp_path / "meta")
    file = path / "consolidated.pth"
    file.write_bytes(file.read_bytes()[:-2000] if content is None else content)
    assert "consolidated.pth is damaged or no PyTorch file" in refused(capsys, path, "orbax")


def test_torch_files_of_all_kinds(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": tensors, "epoch": 3, "hyper": {"lr": 0.1}}, tmp_path / "lightning.ckpt")
    for name in ("old.pth", "lightning.ckpt"):
        found = read_torch_file(tmp_path / name)
        assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in found)
    torch.save({"a": tensors["a"], "n": 3}, tmp_path / "mixed.pth")
    with pytest.raises(InteropError, match="n is no tensor"):
        read_torch_file(tmp_path / "mixed.pth")
    with pytest.raises(InteropError, match="is not there"):
        read_torch_file(tmp_path / "none.pth")


def change_pth(file, edit):
    """Rewrites one .pth file after `edit(tensors)`."""
    tensors = torch.load(file, weights_only=True)
    edit(tensors)
    torch.save(tensors, file)


def test_metas_file_without_its_output_matrix_is_cut_and_not_tied(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "meta", tmp_path / "meta")
    change_pth(path / "consolidated.pth", lambda t: t.pop("output.weight"))
    assert "missing: output.weight [128, 24]" in refused(capsys, path, "orbax")


def test_shards_of_different_types(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "shards", tmp_path / "meta")
    name = "layers.1.attention.wq.weight"
    change_pth(path / "consolidated.01.pth", lambda t: t.update({name: t[name].bfloat16()}))
    message = refused(capsys, path, "hf")
    assert "consolidated.01.pth" in message
    assert f"wrong type: {name} is bfloat16, in consolidated.00.pth float32" in message


def test_anoles_file_has_a_name_without_a_tensor(tmp_path, sources, capsys):
    """Its converter writes "rope.freqs": None, for Chameleon's loader wants that name; no other may be None."""
    path = shutil.copytree(sources / "meta", tmp_path / "meta")
    change_pth(path / "consolidated.pth", lambda t: t.update({"rope.freqs": None}))
    backbones.assert_same(backbones.load("meta", path), backbones.load("meta", sources / "meta"))
    change_pth(path / "consolidated.pth", lambda t: t.update({"norm.weight": None}))
    assert "missing: norm.weight [24]" in refused(capsys, path, "orbax")


def test_rope_frequencies_of_another_type(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "meta", tmp_path / "meta")
    change_pth(path / "consolidated.pth", lambda t: t.update({"rope.freqs": t["rope.freqs"].double()}))
    assert "wrong type: rope.freqs is float64" in refused(capsys, path, "orbax")


def test_consolidate_params_has_the_last_word(tmp_path, sources, capsys):
    """As in Chameleon's own loader: {**params, **params["model"], **consolidate_params}."""
    path = shutil.copytree(sources / "meta", tmp_path / "meta")
    params = json.loads((path / "params.json").read_text())
    params["model"] |= {"swin_norm": False, "model_parallel_size": 4}
    (path / "params.json").write_text(json.dumps(params))
    assert backbones.load("meta", path).config.norm_placement == "pre"
    (path / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": 1, "swin_norm": True}))
    assert backbones.load("meta", path).config.norm_placement == "swin"


def test_a_header_of_words(tmp_path, sources, capsys):
    path = backbones.save(backbones.load("hf", sources / "hf"), "hf", tmp_path / "hf")
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[Q]["data_offsets"] = ["here", "there"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert f"the entry of {Q} is malformed" in refused(capsys, path, "orbax")


def test_files_that_cannot_be_mapped_are_read_once(tmp_path, monkeypatch):
    """A mapping is renewed so that its pages leave memory; a bare pickle would be held twice meanwhile."""
    tensors, reads = {"a": torch.ones(3), "b": torch.zeros(3)}, []
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors, tmp_path / "new.pth")
    monkeypatch.setattr(tensor_files, "_REMAP", 0)
    monkeypatch.setattr(tensor_files, "read_torch_file", lambda path: reads.append(path.name) or read_torch_file(path))
    for name in ("old.pth", "new.pth"):
        reader = tensor_files.TorchReader(tmp_path / name)
        assert [reader.get(n)[0] for n in "ab"] == [1.0, 0.0]
    assert reads == ["old.pth", "new.pth", "new.pth", "new.pth"]


def test_other_kinds_of_model_are_refused(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "hf", tmp_path / "hf")
    config = json.loads((path / "config.json").read_text())
    config |= {"attention_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}, "hidden_act": "gelu"}
    (path / "config.json").write_text(json.dumps(config))
    message = refused(capsys, path, "orbax")
    assert all(word in message for word in ("attention_bias = True", "RoPE scaling", "hidden_act = 'gelu'"))


def test_query_norms_that_no_groups_describe(tmp_path, capsys):
    original = backbones.make(num_kv_heads=2, qk_norm_groups=2)
    path = backbones.save(original, "hf", tmp_path / "hf")
    change(path, "model.safetensors", lambda t: t["model.layers.0.self_attn.q_norm.bias"][1].add_(1.0))
    assert "share one of the 2 key heads" in refused(capsys, path, "orbax")


def test_what_a_layout_has_no_place_for(tmp_path, capsys):
    groups = backbones.save(backbones.make(qk_norm_groups=2), "hf", tmp_path / "groups")
    assert "one row of query and key norms" in refused(capsys, groups, "vendored")
    assert "take a multiple of 2" in refused(capsys, groups, "meta", model_parallel_size=1)
    assert "num_kv_heads = 4 is no multiple" in refused(capsys, groups, "meta", model_parallel_size=3)
    wide = backbones.save(backbones.make(head_dim=8), "orbax", tmp_path / "wide")
    assert "num_heads * head_dim = 32, d_model = 24" in refused(capsys, wide, "hf")


def test_the_wrong_layout_by_name(sources, tmp_path, capsys):
    path = shutil.copytree(sources / "vendored", tmp_path / "vendored")
    message = refused(capsys, path, "orbax", **{"from": "hf"})
    assert "wrong shape: model.layers.0.self_attn.q_norm.weight is [6], must be [4, 6]" in message


def test_an_unclear_input_and_a_taken_output(sources, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no layout fits" in refused(capsys, tmp_path / "empty", "hf")
    assert "is not there" in refused(capsys, tmp_path / "absent", "hf")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    assert backbones.run(sources / "hf", tmp_path / "taken", "meta") == 1
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["file"]


def test_a_lost_shared_table(tmp_path, capsys):
    path = backbones.save(backbones.make(tie="shared"), "hf", tmp_path / "hf")
    zeros = torch.zeros(backbones.CONFIG.vocab_size, 24)
    change(path, "model.safetensors", lambda t: t.update({"lm_head.weight": zeros}))
    assert "config.json says tie_word_embeddings" in refused(capsys, path, "orbax")


def test_rope_frequencies_must_belong_to_the_config(tmp_path, sources, capsys):
    path = shutil.copytree(sources / "meta", tmp_path / "meta")
    params = json.loads((path / "params.json").read_text())
    params["model"]["rope_theta"] = 500.0
    (path / "params.json").write_text(json.dumps(params))
    assert "rope.freqs does not follow from rope_theta = 500" in refused(capsys, path, "orbax")
    assert np.allclose(read_torch_file(path / "consolidated.pth")["rope.freqs"][0], 1.0)
