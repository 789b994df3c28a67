"""HF transformers' Chameleon (4.43 and later): q/k rows permuted to half-split RoPE, norms a row a head.

The reference's vendored copy of transformers (`interop/vendored.py`) has the same names with q/k rows as in Meta's
files and one row of q/k norms; both are read and written here, told apart by `permuted`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.interop import sidecar
from ar_omni_jax.interop.arrays import byte_sizes
from ar_omni_jax.interop.backbone import (
    NORMS,
    SCALED,
    SEPARATE,
    SHARED,
    Backbone,
    Extras,
    find_groups,
    halves,
    pairs,
    reorder,
    require_publishable,
    shapes,
    tied_again,
    untied,
)
from ar_omni_jax.interop.errors import InteropError, differences, refuse
from ar_omni_jax.interop.hf_codec import image_tokenizer_extras
from ar_omni_jax.interop.hf_config import read_config, special_ids, take_compute, write_config
from ar_omni_jax.interop.hf_shards import write_shards
from ar_omni_jax.interop.hf_tokenizer import tokenizer_files, write_files
from ar_omni_jax.interop.output import check_output, staged
from ar_omni_jax.interop.registry import Layout
from ar_omni_jax.interop.tensor_files import TensorTable, first_rank, has_weights, read_json, wrong_dtypes

# Image encoder and quantizer; and a table that older transformers saved although it follows from the config.
VQ_PREFIX = "model.vqmodel."
RECOMPUTED = re.compile(r"(model\.layers\.\d+\.self_attn\.|model\.)rotary_emb\.inv_freq")
# Tokenizer and processor files that are copied from one HF folder to another.
COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.json", "chat_template.jinja"),
    "generation_config.json",
)
_NAMES = {
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "wo": "self_attn.o_proj.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "q_norm_weight": "self_attn.q_norm.weight",
    "q_norm_bias": "self_attn.q_norm.bias",
    "k_norm_weight": "self_attn.k_norm.weight",
    "k_norm_bias": "self_attn.k_norm.bias",
}
_TOP = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "output": "lm_head.weight"}


def file_name(name: str) -> str:
    """Canonical name -> name in the file."""
    if name in _TOP:
        return _TOP[name]
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}"


def file_shapes(config, tie: str, permuted: bool) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape}: the layout's key table for a model."""
    table = {}
    for name, shape in shapes(config, tie).items():
        part = name.rpartition(".")[2]
        if part in NORMS:
            heads = config.num_heads if part[0] == "q" else config.num_kv_heads
            shape = (heads, config.head_dim) if permuted else (config.head_dim,)
        table[file_name(name)] = shape
    return table


# ------------------------------------------------------------------------------------------------------ reading


def detect_rank(path: Path, rank: int) -> str | None:
    """Evidence that `path` is a folder of HF files whose q_norm has the given rank."""
    if not path.is_dir() or not (path / "config.json").is_file() or not has_weights(path):
        return None
    try:
        table = TensorTable(path)
    except InteropError:
        # A damaged file has no layout; the config tells at least which program will complain.
        vendored = "qk_layernorm" in read_json(path / "config.json")
        return "config.json of a Chameleon model; its weights are unreadable" if vendored == (rank == 1) else None
    found = first_rank(table.shapes, "self_attn.q_norm.weight")
    if found is None or found[1] != rank:
        return None
    return f"{found[0]} has shape {list(table.shapes[found[0]])}, rank {rank}"


def load(folder: Path, options: Any, *, permuted: bool = True) -> Backbone:
    """The backbone in an HF folder; only headers and q/k norms are read at once. InteropError with all faults."""
    del options
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    config, facts, notes = read_config(raw, str(folder / "config.json"))
    table = TensorTable(folder)
    tied = facts["tied"] and _TOP["output"] not in table.shapes
    needed = file_shapes(config, SHARED if tied else SEPARATE, permuted)
    extra = sorted(name for name in table.shapes if name.startswith(VQ_PREFIX))
    recomputed = [name for name in table.shapes if RECOMPUTED.fullmatch(name)]
    lines = table.damage + differences(needed, table.shapes, [*extra, *recomputed])
    lines += wrong_dtypes(table.dtypes, [*needed, *extra])
    refuse(str(folder), lines, "Check that all files are of one export and that --from names their layout")
    beside = sidecar.read(folder)
    groups = _groups(table, config, facts["groups"], permuted)
    dtype = table.dtypes[_TOP["embedding"]]
    config = take_compute(dataclasses.replace(config, qk_norm_groups=groups), beside.get("model", {}), dtype)
    if permuted and groups != facts["groups"]:
        notes += (f"query and key norms form {groups} groups (model_parallel_size said {facts['groups']})",)
    names = tuple(shapes(config, SHARED if tied else SEPARATE))
    backbone = Backbone(
        config=config,
        tie=SHARED if tied else SEPARATE,
        dtypes={name: table.dtypes[file_name(name)] for name in names},
        get=functools.partial(_read, table, config, permuted),
        order=names,
        vocabulary=beside.get("vocabulary"),
        settings=beside.get("settings", {}),
        companions=tuple(folder / name for name in COMPANIONS if (folder / name).is_file()),
        hf=raw,
        extras=_extras(table, extra, raw),
        notes=notes,
    )
    if recomputed:
        backbone = backbone.note(f"{len(recomputed)} tables of RoPE frequencies follow from the config: not kept")
    return _require_tie(tied_again(backbone, SHARED if facts["tied"] else beside.get("tie", "")), facts["tied"], folder)


def _require_tie(backbone: Backbone, tied: bool, folder: Path) -> Backbone:
    if tied and backbone.tie == SEPARATE:
        raise InteropError(
            f"{folder}: config.json says tie_word_embeddings, but lm_head.weight differs from "
            "model.embed_tokens.weight; set it to false if both belong to the model, or remove lm_head.weight"
        )
    return backbone


def _extras(table: TensorTable, names: list[str], raw: dict) -> Extras | None:
    if not names:
        return None
    dtypes = {name: table.dtypes[name] for name in names}
    return Extras({n: table.shapes[n] for n in names}, dtypes, table.get, raw.get("vq_config") or {})


def _groups(table: TensorTable, config, declared: int | None, permuted: bool) -> int:
    if not permuted:
        return 1
    names = [file_name(f"layers.{n}.{part}") for n in range(config.num_layers) for part in NORMS]
    return find_groups({name: table.get(name) for name in names}, config, declared)


def _read(table: TensorTable, config, permuted: bool, name: str) -> np.ndarray:
    array = table.get(file_name(name))
    part = name.rpartition(".")[2]
    if part in NORMS:
        heads = array.shape[0] if permuted else 1
        array = array.reshape(heads, config.head_dim)[:: heads // config.qk_norm_groups]
    return reorder(name, array, pairs(config.head_dim)) if permuted else array


# ------------------------------------------------------------------------------------------------------ writing


def save(backbone: Backbone, output: Path, options: Any, *, permuted: bool = True) -> list[str]:
    """Writes config.json, generation_config.json, sharded safetensors with their index, and companions."""
    layout = "hf" if permuted else "vendored"
    require_publishable(backbone, layout)
    if not permuted and backbone.config.qk_norm_groups > 1:
        raise InteropError(
            f"--to=vendored: the layout has one row of query and key norms, this model has "
            f"{backbone.config.qk_norm_groups} groups; use --to=hf or --to=meta"
        )
    lines = []
    if backbone.tie == SCALED:
        lines.append("the tied table is written as two, the embedding times d_model^0.5: HF has no word for that")
    extras = backbone.extras
    if getattr(options, "image_tokenizer", None) and permuted:
        extras = image_tokenizer_extras(Path(options.image_tokenizer), VQ_PREFIX)
        _require_codes(backbone, extras.settings["num_embeddings"], options.image_tokenizer)
    lines += _told(extras, backbone, permuted)
    extras = extras if permuted else None
    plan = backbone if backbone.tie == SHARED else untied(backbone)
    texts = tokenizer_files(str(backbone.settings.get("tokenizers", ""))) if permuted else {}
    if texts:
        plan = plan.replace(hf={"vocabulary_map": texts["tokenizer.json"]["model"]["vocab"], **plan.hf})
    record = write_config(plan, vendored=not permuted, vq_config=extras.settings if extras else None)
    if permuted and "vocabulary_map" not in record:
        raise InteropError(
            f"--to=hf: config.json needs the ids of the image codes; give --vocabulary (this model has "
            f"{backbone.config.vocab_size} ids)"
        )
    table = file_shapes(plan.config, plan.tie, permuted)
    specs = {file_name(name): (table[file_name(name)], plan.dtypes[name]) for name in plan.shapes}
    if extras:
        specs |= {name: (shape, extras.dtypes[name]) for name, shape in extras.shapes.items()}
    check_output(output, sum(byte_sizes(specs).values()))
    with staged(output) as folder:
        tensors = _written(plan, extras, permuted)
        lines.append(write_shards(folder, specs, tensors, getattr(options, "max_shard_size", 5 * 10**9)))
        (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in backbone.companions:
            shutil.copy(file, folder / file.name)
        if backbone.vocabulary is not None and not (folder / "generation_config.json").exists():
            ids = special_ids(backbone.vocabulary)
            (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        write_files(folder, texts)
        sidecar.write(folder, backbone)
    return lines


def _require_codes(backbone: Backbone, codes: int, image_tokenizer: str) -> None:
    vocabulary = backbone.vocabulary
    if vocabulary is not None and vocabulary.image.count != codes:
        raise InteropError(
            f"--image_tokenizer={image_tokenizer} has {codes} codes, vocabulary {vocabulary.name!r} of the model "
            f"{vocabulary.image.count}; give the image tokenizer that the model was trained with"
        )


def _told(extras: Extras | None, backbone: Backbone, permuted: bool) -> list[str]:
    if extras is None and permuted:
        return ["no image encoder (model.vqmodel.*): HF fills it with random numbers; --image_tokenizer gives one"]
    if extras is not None and permuted:
        return [f"{len(extras.shapes)} tensors of the image encoder ({VQ_PREFIX}*) are in the output"]
    if extras is not None:
        return [f"{len(extras.shapes)} tensors of the image encoder ({VQ_PREFIX}*) are left out: not in this layout"]
    return []


def _written(plan: Backbone, extras: Extras | None, permuted: bool):
    """(name in the file, array) of everything, in the order in which the source reads best."""
    c = plan.config
    for name in plan.order:
        array, part = plan.get(name), name.rpartition(".")[2]
        if permuted:
            array = reorder(name, array, halves(c.head_dim))
        if part in NORMS:
            heads = c.num_heads if part[0] == "q" else c.num_kv_heads
            array = np.repeat(array, heads // c.qk_norm_groups, axis=0) if permuted else array[0]
        yield file_name(name), array
    for name in extras.shapes if extras else ():
        yield name, extras.get(name)


LAYOUT = Layout(
    "backbone",
    "HF transformers 4.43 or later: ChameleonForConditionalGeneration",
    functools.partial(detect_rank, rank=2),
    load,
    save,
)
