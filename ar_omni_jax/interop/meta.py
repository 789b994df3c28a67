"""Meta's `consolidated*.pth` with `params.json` and `consolidate_params.json`, one shard or several.

Shard r of N holds the r-th part of every matrix: rows of wq, wk, wv, w1, w3 and output, columns of wo, w2 and
tok_embeddings (rows of the last where its width says so). RMSNorms are on every shard; query and key norms belong to
the heads of their shard. RoPE turns neighbouring channels, as here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.interop import sidecar
from ar_omni_jax.interop.arrays import byte_sizes
from ar_omni_jax.interop.backbone import (
    NORMS,
    SCALED,
    SEPARATE,
    Backbone,
    require_publishable,
    shapes,
    tied_again,
    untied,
)
from ar_omni_jax.interop.errors import SHOWN, InteropError, differences, refuse
from ar_omni_jax.interop.hf_config import take_compute
from ar_omni_jax.interop.meta_params import PARAMS, read_params, write_params
from ar_omni_jax.interop.output import Progress, check_output, staged
from ar_omni_jax.interop.registry import Layout
from ar_omni_jax.interop.tensor_files import TorchReader, wrong_dtypes
from ar_omni_jax.interop.torch_writer import TorchWriter
from ar_omni_jax.model.config import ConfigError, TransformerConfig

ROPE = "rope.freqs"
_NAMES = {
    "wq": "attention.wq.weight",
    "wk": "attention.wk.weight",
    "wv": "attention.wv.weight",
    "wo": "attention.wo.weight",
    "w_gate": "feed_forward.w1.weight",
    "w_up": "feed_forward.w3.weight",
    "w_down": "feed_forward.w2.weight",
    "attention_norm": "attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "q_norm_weight": "attention.q_normalization.weight",
    "q_norm_bias": "attention.q_normalization.bias",
    "k_norm_weight": "attention.k_normalization.weight",
    "k_norm_bias": "attention.k_normalization.bias",
}
_TOP = {"embedding": "tok_embeddings.weight", "final_norm": "norm.weight", "output": "output.weight"}
_ROWS, _COLUMNS = ("wq", "wk", "wv", "w_gate", "w_up", "output"), ("wo", "w_down", "embedding")


def file_name(name: str) -> str:
    """Canonical name -> name in the file."""
    if name in _TOP:
        return _TOP[name]
    _, layer, part = name.split(".")
    return f"layers.{layer}.{_NAMES[part]}"


def split_axis(name: str) -> int | None:
    """The axis that shards divide, None for what every shard has whole."""
    part = name.rpartition(".")[2]
    return 0 if part in _ROWS else 1 if part in _COLUMNS else None


def file_shapes(config: TransformerConfig, tie: str, shards: int) -> dict[str, tuple[int, ...]]:
    """{name in each shard: shape}: the layout's key table for a model."""
    table = {}
    for name, shape in shapes(config, tie).items():
        if name.rpartition(".")[2] in NORMS:
            shape = (config.head_dim,)
        axis = split_axis(name)
        table[file_name(name)] = tuple(n // shards if i == axis else n for i, n in enumerate(shape))
    return table


# ------------------------------------------------------------------------------------------------------ reading


def shard_files(path: Path) -> list[Path]:
    """consolidated.pth, or consolidated.00.pth, 01 ... in order; InteropError when one of them is missing."""
    if path.is_file():
        path = path.parent
    if (path / "consolidated.pth").is_file():
        return [path / "consolidated.pth"]
    found = (re.fullmatch(r"consolidated\.(\d+)\.pth", p.name) for p in path.glob("consolidated.*.pth"))
    numbers = sorted(int(match.group(1)) for match in found if match)
    if not numbers:
        raise InteropError(f"{path} has no consolidated.pth and no consolidated.00.pth")
    missing = [f"consolidated.{n:02d}.pth" for n in range(numbers[-1] + 1) if n not in numbers]
    if missing:
        raise InteropError(f"{path} lacks {', '.join(missing)}; download the missing files")
    return [path / f"consolidated.{n:02d}.pth" for n in numbers]


def detect(path: Path) -> str | None:
    """Evidence that `path` is a folder of Meta's files (or one of the files)."""
    if path.is_file():
        return f"named {path.name}" if re.fullmatch(r"consolidated(\.\d+)?\.pth", path.name) else None
    found = sorted(p.name for p in path.glob("consolidated*.pth"))
    return f"it holds {', '.join(found[:4])}" if found else None


def load(path: Path, options: Any) -> Backbone:
    """The backbone in Meta's files, shards merged as they are read. InteropError with all faults."""
    del options
    files = shard_files(Path(path))
    folder = files[0].parent
    config, notes, shards_said = read_params(folder)
    # One file that was merged from several may still tell their number; numbered files must be complete.
    if files[0].name != "consolidated.pth" and shards_said not in (None, len(files)):
        raise InteropError(
            f"{folder}: {PARAMS} or consolidate_params.json says model_parallel_size = {shards_said}, "
            f"there are {len(files)} files; are some missing?"
        )
    readers = [TorchReader(file) for file in files]
    first = readers[0]
    config = _sizes(config, first, len(files), folder)
    needed = file_shapes(config, SEPARATE, len(files))  # without output.weight a file is cut, not tied
    if first.shapes.get(_TOP["embedding"]) == (config.vocab_size // len(files), config.d_model):
        needed[_TOP["embedding"]] = (config.vocab_size // len(files), config.d_model)
    for reader in readers:
        lines = differences(needed, reader.shapes, [ROPE]) + wrong_dtypes(reader.dtypes, [*needed, ROPE])
        lines += _other_types(first, reader, needed)
        refuse(str(reader.path), lines, f"Check that {PARAMS} belongs to these files")
    _check_rope(first, config)
    beside = sidecar.read(folder)
    config = take_compute(config, beside.get("model", {}), first.dtypes[_TOP["embedding"]])
    try:
        config = dataclasses.replace(config, qk_norm_groups=len(files), max_length=_length(config, beside))
    except ConfigError as error:
        raise InteropError(f"{folder}: {len(files)} shards have a row of query and key norms each: {error}") from error
    merge = functools.partial(_merged, readers, config)
    backbone = Backbone(
        config=config,
        tie=SEPARATE,
        dtypes={name: first.dtypes[file_name(name)] for name in shapes(config)},
        get=merge,
        order=tuple(shapes(config)),
        vocabulary=beside.get("vocabulary"),
        settings=beside.get("settings", {}),
        notes=(*notes, *_untold(config, beside), *_uneven(readers, config)),
    )
    backbone = _fewer_groups(backbone, beside.get("model", {}).get("qk_norm_groups"))
    return tied_again(backbone, beside.get("tie", ""))


def _other_types(first: TorchReader, reader: TorchReader, names: Iterable[str]) -> list[str]:
    """Lines on tensors whose parts in two shards have different types and cannot be joined."""
    pairs = [(name, first.dtypes.get(name), reader.dtypes.get(name)) for name in names]
    odd = [pair for pair in pairs if None not in pair and pair[1] != pair[2]]
    return [f"wrong type: {name} is {found}, in {first.path.name} {said}" for name, said, found in odd[:SHOWN]]


def _length(config: TransformerConfig, beside: Mapping) -> int:
    # Meta's files do not say; the published models with a larger RoPE base have the longer context.
    return beside.get("model", {}).get("max_length", 16384 if config.rope_theta > 10_000 else 4096)


def _untold(config: TransformerConfig, beside: Mapping) -> tuple[str, ...]:
    said = "max_length" in beside.get("model", {})
    return () if said else (f"the files do not tell the longest row: {config.max_length} tokens are taken",)


def _sizes(config: TransformerConfig, reader: TorchReader, shards: int, folder: Path) -> TransformerConfig:
    """`config` with the vocabulary and the feed-forward width that the tensors have: the files do not tell them."""
    gate, table = reader.shapes.get("layers.0.feed_forward.w1.weight"), reader.shapes.get(_TOP["embedding"])
    if gate is None or table is None or len(gate) != 2 or len(table) != 2:
        raise InteropError(
            f"{folder}: {reader.path.name} lacks layers.0.feed_forward.w1.weight or tok_embeddings.weight; its names "
            f"begin with {', '.join(list(reader.shapes)[:3])}: is it another layout?"
        )
    rows = table[0] * (shards if table[1] == config.d_model else 1)
    return dataclasses.replace(config, d_ff=gate[0] * shards, vocab_size=rows)


def _check_rope(reader: TorchReader, config: TransformerConfig) -> None:
    if ROPE not in reader.shapes:
        return
    found = reader.get(ROPE).astype(np.float32).ravel()
    expected = rope_frequencies(config)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-2, atol=1e-6):
        theta = config.rope_theta
        raise InteropError(f"{reader.path}: rope.freqs does not follow from rope_theta = {theta}; check {PARAMS}")


def rope_frequencies(config: TransformerConfig) -> np.ndarray:
    """float32 [head_dim / 2]: theta^(-2i / head_dim)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    return (config.rope_theta**-exponents).astype(np.float32)


def _merged(readers: list[TorchReader], config: TransformerConfig, name: str) -> np.ndarray:
    parts = [reader.get(file_name(name)) for reader in readers]
    if name.rpartition(".")[2] in NORMS:
        return np.stack(parts)
    axis = split_axis(name)
    if axis is None:
        if all(part.tobytes() == parts[0].tobytes() for part in parts):
            return parts[0]
        return np.mean([part.astype(np.float32) for part in parts], axis=0).astype(parts[0].dtype)
    if name == "embedding" and parts[0].shape[1] == config.d_model:
        axis = 0
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def _uneven(readers: list[TorchReader], config: TransformerConfig) -> list[str]:
    """A note when norms that all shards should share have drifted apart."""
    names = [n for n in shapes(config) if split_axis(n) is None and n.rpartition(".")[2] not in NORMS]
    uneven = [n for n in names if len({reader.get(file_name(n)).tobytes() for reader in readers}) > 1]
    if not uneven:
        return []
    return [f"{len(uneven)} RMSNorms differ between the shards ({file_name(uneven[0])} ...): their mean is taken"]


def _fewer_groups(backbone: Backbone, groups: int | None) -> Backbone:
    """The norms in `groups` rows, as `ar_omni_jax.json` says that they were, where equal shards bear it out."""
    shards = backbone.config.qk_norm_groups
    if not groups or groups >= shards or shards % groups:
        return backbone
    names = [n for n in backbone.shapes if n.rpartition(".")[2] in NORMS]
    step = shards // groups
    for name in names:
        rows = backbone.get(name)
        if rows.tobytes() != np.repeat(rows[::step], step, axis=0).tobytes():
            return backbone
    get = backbone.get
    return backbone.replace(
        config=dataclasses.replace(backbone.config, qk_norm_groups=groups),
        get=lambda name: get(name)[::step] if name.rpartition(".")[2] in NORMS else get(name),
    )


# ------------------------------------------------------------------------------------------------------ writing


def save(backbone: Backbone, output: Path, options: Any) -> list[str]:
    """Writes consolidated.pth (or .00.pth ... for several shards), params.json and consolidate_params.json."""
    require_publishable(backbone, "meta")
    groups = backbone.config.qk_norm_groups
    shards = getattr(options, "model_parallel_size", None) or groups
    _require_divisible(backbone.config, shards)
    plan = untied(backbone)
    lines = []
    if backbone.tie != SEPARATE:
        how = "the embedding times d_model^0.5" if backbone.tie == SCALED else "twice the same"
        lines.append(f"the tied table is written as two ({how}): the layout always has output.weight")
    if backbone.extras is not None:
        lines.append(f"{len(backbone.extras.shapes)} tensors of the image encoder are left out: not in this layout")
    check_output(output, plan.size())
    with staged(output) as folder:
        written = _write_shards(folder, plan, shards)
        params, consolidated = write_params(plan.config, shards)
        (folder / PARAMS).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
        (folder / "consolidate_params.json").write_text(json.dumps(consolidated, indent=2) + "\n", encoding="utf-8")
        sidecar.write(folder, backbone)
    return [*lines, f"{written / 1e9:.2f} GB in {shards} file{'s' if shards > 1 else ''}"]


def _require_divisible(config: TransformerConfig, shards: int) -> None:
    sizes = {name: getattr(config, name) for name in ("num_kv_heads", "d_model", "d_ff", "vocab_size")}
    reasons = [f"{name} = {value} is no multiple of it" for name, value in sizes.items() if value % shards]
    groups = config.qk_norm_groups
    if shards % groups:
        reasons.append(f"query and key norms form {groups} groups and a shard has one: take a multiple of {groups}")
    if reasons:
        raise InteropError(f"--model_parallel_size={shards}: {'; '.join(reasons)}")


def _write_shards(folder: Path, plan: Backbone, shards: int) -> int:
    table = file_shapes(plan.config, SEPARATE, shards)
    specs = {file_name(name): (table[file_name(name)], plan.dtypes[name]) for name in plan.shapes}
    specs[ROPE] = ((plan.config.head_dim // 2,), "float32")
    names = ["consolidated.pth"] if shards == 1 else [f"consolidated.{i:02d}.pth" for i in range(shards)]
    writers = [TorchWriter(folder / name, specs) for name in names]
    total = shards * sum(byte_sizes(specs).values())
    progress = Progress(total)
    for name in plan.order:
        array = plan.get(name)
        for i, writer in enumerate(writers):
            part = _part(name, array, i, shards)
            writer.write(file_name(name), part)
            progress.add(part.nbytes)
    for writer in writers:
        writer.write(ROPE, rope_frequencies(plan.config))
        writer.close()
    return total


def _part(name: str, array: np.ndarray, shard: int, shards: int) -> np.ndarray:
    if name.rpartition(".")[2] in NORMS:
        return array[shard * array.shape[0] // shards]
    axis = split_axis(name)
    return array if axis is None else np.split(array, shards, axis)[shard]


LAYOUT = Layout("backbone", "Meta's consolidated.pth with params.json, one shard or several", detect, load, save)
