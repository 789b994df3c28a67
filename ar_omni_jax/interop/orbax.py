"""This project's own checkpoints, read and written one stacked array at a time.

A leaf such as `blocks.w_gate` holds all layers ([32, 4096, 11008] at 7B: 2.9 GB in bfloat16), so the largest leaf and a
copy of it are what a conversion holds at once. Only weights are read and written: the output has no optimizer state,
which `--config.train.init_from` and `generate` do not want and resuming would.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ar_omni_jax import checkpoint
from ar_omni_jax.checkpoint import MODEL_PREFIX, CheckpointError, Description
from ar_omni_jax.config import base_config, model_config
from ar_omni_jax.interop.arrays import DTYPES, byte_sizes, checksum, group_by_size, transpose_into
from ar_omni_jax.interop.backbone import LAYER, NORMS, SCALED, SEPARATE, SHARED, Backbone, shapes, tied_again, untied
from ar_omni_jax.interop.errors import InteropError, differences, refuse
from ar_omni_jax.interop.output import Progress, check_output, staged
from ar_omni_jax.interop.registry import Layout
from ar_omni_jax.interop.sidecar import SETTINGS, model_section
from ar_omni_jax.model.config import ConfigError, TransformerConfig
from ar_omni_jax.vocabulary import JointVocabulary, VocabularyError

# Section of a converted checkpoint's config: where it came from, and what the model section has no word for.
CONVERTED = "converted"
GROUP = 1 << 30  # bytes of small leaves that one call of Orbax reads or writes


def leaf_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """{leaf under `MODEL_PREFIX`: shape}, of any size without allocating it."""
    from flax import nnx

    from ar_omni_jax.model.transformer import abstract_transformer

    named = checkpoint.named_leaves(nnx.state(abstract_transformer(config)))
    return {name: tuple(leaf.shape) for name, leaf in named.items()}


def leaf_of(name: str) -> tuple[str, int | None]:
    """Canonical name -> (leaf, layer or None)."""
    if not name.startswith("layers."):
        return name, None
    _, layer, part = name.split(".")
    return f"blocks.{part}", int(layer)


# ------------------------------------------------------------------------------------------------------ reading


def detect(path: Path) -> str | None:
    """Evidence that `path` is a workdir, a checkpoints folder or one checkpoint."""
    try:
        found = checkpoint.find_checkpoint(path)
    except CheckpointError:
        return None
    return f"it holds the checkpoint {found.name}"


def load(path: Path, options: Any) -> Backbone:
    """The backbone of the newest checkpoint (or `options.step`). InteropError with all faults."""
    try:
        folder = checkpoint.find_checkpoint(path, getattr(options, "step", None))
        description = checkpoint.read_description(folder)
        stored = checkpoint.stored_arrays(folder)
        vocabulary = JointVocabulary.from_dict(description.vocabulary)
        config = model_config(description.config["model"], vocabulary.size)
    except (CheckpointError, VocabularyError, ConfigError, KeyError, TypeError) as error:
        raise InteropError(f"{path}: {error}") from error
    weights = {n.removeprefix(MODEL_PREFIX): v for n, v in stored.items() if n.startswith(MODEL_PREFIX)}
    lines = differences(leaf_shapes(config), {name: shape for name, (shape, _) in weights.items()})
    lines += [f"wrong type: {n} is {d}" for n, (_, d) in weights.items() if np.dtype(d).name not in DTYPES]
    refuse(str(folder), lines, "The checkpoint's config does not belong to its arrays")
    converted = description.config.get(CONVERTED, {})
    tie = SCALED if config.tie_embeddings else SEPARATE
    data = description.config.get("data", {})
    settings = {k: data[k] for k in ("tokenizers", "template") if k in data} | {"step": description.step}
    dtypes = {name: np.dtype(weights[leaf_of(name)[0]][1]).name for name in shapes(config, tie)}
    backbone = Backbone(
        config=config,
        tie=tie,
        dtypes=dtypes,
        get=_Leaves(folder, config, dtypes).get,
        order=_leaf_order(config, tie),
        vocabulary=vocabulary,
        settings={**{k: converted[k] for k in SETTINGS if k in converted}, **settings},
        notes=_left_behind(stored),
    )
    return tied_again(backbone, converted.get("tie", ""))


def _left_behind(stored: Mapping[str, Any]) -> tuple[str, ...]:
    projection = [name for name in stored if name.startswith("params.projection")]
    others = [n for n in stored if n not in projection and not n.startswith(MODEL_PREFIX)]
    notes = []
    if projection:
        shape = list(stored[projection[0]][0])
        notes.append(f"the perceptual projection {projection[0]} {shape} serves training alone: not exported")
    if others:
        notes.append(f"{len(others)} arrays of the optimizer and counters: not exported")
    return tuple(notes)


def _leaf_order(config: TransformerConfig, tie: str) -> tuple[str, ...]:
    """Canonical names, leaf after leaf: all layers of one leaf follow each other."""
    names = shapes(config, tie)
    return tuple(sorted(names, key=lambda n: _POSITION[n.rpartition(".")[2]]))


_POSITION = {part: i for i, part in enumerate(("embedding", *LAYER, "final_norm", "output"))}


def leaf_groups(config: TransformerConfig, dtypes: Mapping[str, str]) -> list[list[str]]:
    """Leaves that are read or written together: as many as fit `GROUP` bytes, a larger one alone.

    dtypes: by canonical name. Each call of Orbax has a fixed cost, and small leaves are many.
    """
    members = {leaf_of(name)[0]: dtype for name, dtype in dtypes.items()}
    ordered = sorted(leaf_shapes(config).items(), key=lambda item: _POSITION[item[0].rpartition(".")[2]])
    return group_by_size(byte_sizes({leaf: (shape, members[leaf]) for leaf, shape in ordered}), GROUP)


class _Leaves:
    """Canonical tensors of a checkpoint; keeps the group of leaves that it read last."""

    def __init__(self, folder: Path, config: TransformerConfig, dtypes: Mapping[str, str]):
        self._folder, self._config = folder, config
        self._groups = {leaf: group for group in leaf_groups(config, dtypes) for leaf in group}
        self._held: dict[str, np.ndarray] = {}

    def get(self, name: str) -> np.ndarray:
        leaf, layer = leaf_of(name)
        if leaf not in self._held:
            self._held = {}  # the old ones go before the new ones come
            place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
            wanted = dict.fromkeys(self._groups[leaf], place)
            try:
                arrays, _ = checkpoint.load_arrays(self._folder, MODEL_PREFIX, sharding=wanted)
            except CheckpointError as error:
                raise InteropError(str(error)) from error
            self._held = {n: np.asarray(a) for n, a in arrays.items()}
        array = self._held[leaf]
        return from_leaf(name, array if layer is None else array[layer], self._config)


def from_leaf(name: str, array: np.ndarray, config: TransformerConfig) -> np.ndarray:
    """One layer's slice of a leaf -> the canonical tensor."""
    part = name.rpartition(".")[2]
    if _is_flat(part):
        return np.array(array, order="C")
    rows = config.d_ff if part == "w_down" else config.num_heads * config.head_dim if part == "wo" else config.d_model
    matrix = array.reshape(rows, -1)
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    transpose_into(matrix, result)
    return result


def to_leaf(name: str, array: np.ndarray, out: np.ndarray) -> None:
    """Writes a canonical tensor into its place in a leaf, the inverse of `from_leaf`."""
    if _is_flat(name.rpartition(".")[2]):
        out.reshape(array.shape)[...] = array
    else:
        transpose_into(array, out.reshape(array.shape[::-1]))


def _is_flat(part: str) -> bool:
    """Whether leaf and canonical tensor have the same order: all but the matrices, of which the embedding is none."""
    return part in NORMS or part.endswith("_norm") or part == "embedding"


# ------------------------------------------------------------------------------------------------------ writing


def save(backbone: Backbone, output: Path, options: Any) -> list[str]:
    """Writes OUTPUT/checkpoints/STEP; `train.init_from` and `generate --checkpoint` take OUTPUT."""
    if backbone.vocabulary is None:
        raise InteropError(
            f"--to=orbax: what do the {backbone.config.vocab_size} ids mean? Give --vocabulary=chameleon, a tokenizers "
            "folder or a vocabulary.json"
        )
    lines, tie = [], backbone.tie
    if tie == SHARED:
        lines.append("the shared table is written as two: this project's tied models scale it at the input")
        backbone = untied(backbone)
    if backbone.extras is not None:
        lines.append(
            f"{len(backbone.extras.shapes)} tensors of the image encoder are none of the backbone and left out; the "
            "image tokenizer comes from vqgan.ckpt"
        )
    _require_one_type(backbone)
    check_output(output, backbone.size())
    step = int(backbone.settings.get("step", 0))
    with staged(output) as folder:
        target = folder / "checkpoints" / str(step)
        target.parent.mkdir(parents=True)
        sums = _write_arrays(target.with_name("arrays"), backbone)
        description = _describe(backbone, tie, step, sums)
        items = {checkpoint.DESCRIPTION: checkpoint.to_fields(description), checkpoint.STATE: {"none": np.zeros(1)}}
        with checkpoint.orbax_context():
            ocp.save_checkpointables(target, items)
        # Orbax has no call that adds arrays to a checkpoint of several parts; a part is a folder of its own.
        shutil.rmtree(target / checkpoint.STATE)
        (target.with_name("arrays") / checkpoint.STATE).rename(target / checkpoint.STATE)
        shutil.rmtree(target.with_name("arrays"))
        if set(checkpoint.stored_arrays(target)) != {MODEL_PREFIX + name for name in leaf_shapes(backbone.config)}:
            raise InteropError("Orbax did not keep all arrays; this is a fault of the program: please report it")
    return [*lines, f"{len(sums)} arrays, {backbone.size() / 1e9:.2f} GB, as checkpoint {step}"]


def _require_one_type(backbone: Backbone) -> None:
    types: dict[str, set[str]] = {}
    for name, dtype in backbone.dtypes.items():
        types.setdefault(leaf_of(name)[0], set()).add(dtype)
    mixed = [f"{leaf}: {', '.join(sorted(found))}" for leaf, found in types.items() if len(found) > 1]
    if mixed:
        raise InteropError(f"layers of different types cannot be stacked ({'; '.join(mixed[:5])}); choose one --dtype")


def _write_arrays(path: Path, backbone: Backbone) -> dict[str, int]:
    """Writes every leaf; returns their checksums by full name."""
    sums: dict[str, int] = {}
    progress = Progress(backbone.size())
    members: dict[str, list[str]] = {}
    for name in _leaf_order(backbone.config, backbone.tie):
        members.setdefault(leaf_of(name)[0], []).append(name)
    sizes = leaf_shapes(backbone.config)
    for group in leaf_groups(backbone.config, backbone.dtypes):
        stacks = {}
        for leaf in group:
            stack = np.empty(sizes[leaf], DTYPES[backbone.dtypes[members[leaf][0]]])
            for name in members[leaf]:
                layer = leaf_of(name)[1]
                to_leaf(name, backbone.get(name), stack if layer is None else stack[layer])
                progress.add(stack.nbytes // len(members[leaf]))
            sums[MODEL_PREFIX + leaf] = checksum(stack)
            stacks[MODEL_PREFIX + leaf] = stack
        ocp.partial.save(path, stacks)
    ocp.partial.finalize(path)
    return sums


def _describe(backbone: Backbone, tie: str, step: int, sums: Mapping[str, int]) -> Description:
    config = base_config().to_dict()
    config["model"] = model_section(backbone)
    for name in ("tokenizers", "template"):
        config["data"][name] = backbone.settings.get(name, config["data"][name])
    kept = {k: v for k, v in backbone.settings.items() if k in SETTINGS}
    config[CONVERTED] = {**kept, "tie": tie, "norm_placement": backbone.config.norm_placement}
    vocabulary = backbone.vocabulary
    return Description(step, step, config, vocabulary.to_dict(), vocabulary.fingerprint, checksums=sums)


LAYOUT = Layout(
    "backbone",
    "this project's checkpoint (a workdir, its checkpoints folder or one of them)",
    detect,
    load,
    save,
)
