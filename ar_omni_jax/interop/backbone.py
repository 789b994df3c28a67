"""The backbone between layouts: one name, shape and channel order for every tensor, read one at a time.

Tensors are as `torch.nn.Linear` keeps them, [out, in]; RoPE turns neighbouring channels (2i, 2i + 1) of a head, so the
rows of `wq` and `wk` and the channels of the query and key norms are in Meta's order, which is this project's too.

    embedding [V, D]   output [V, D]   final_norm [D]
    layers.{n}.wq [H K, D]   wk, wv [G K, D]   wo [D, H K]   w_gate, w_up [F, D]   w_down [D, F]
    layers.{n}.attention_norm, mlp_norm [D]   {q,k}_norm_{weight,bias} [groups, K]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.interop.arrays import byte_sizes, cast
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.vocabulary import JointVocabulary

# How the output matrix relates to the embedding table.
SEPARATE = "separate"  # two tables
SHARED = "shared"  # one table, used as it is at both ends: HF's tie_word_embeddings
SCALED = "scaled"  # one table, multiplied by d_model^0.5 at the input: this project's tie_embeddings

NORMS = tuple(f"{letter}_norm_{kind}" for letter in "qk" for kind in ("weight", "bias"))
LAYER = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down", "attention_norm", "mlp_norm", *NORMS)


@dataclasses.dataclass(frozen=True)
class Extras:
    """Tensors that came with a backbone and are none of it, such as HF's image encoder (`model.vqmodel.*`).

    shapes, dtypes: by name. get: name -> array. settings: their part of the file's config.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    get: Callable[[str], np.ndarray]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A decoder's weights and what is known about them.

    Attributes:
      config: the shape and numerics; `tie_embeddings` only where `tie` is SCALED.
      tie: SEPARATE, SHARED or SCALED; "output" exists only for SEPARATE.
      dtypes: {canonical name: "float32" | "bfloat16" | "float16"}.
      get: canonical name -> array of that type and of `shapes(config, tie)`.
      order: canonical names in the order in which they are cheapest to read.
      vocabulary: what the ids mean, where it is known. settings: {"tokenizers", "template", "step", ...}, where known.
      companions: files of the input to copy into an output of the same kind. hf: the input's HF config.
      extras: other tensors. notes: what a user must be told.
    """

    config: TransformerConfig
    tie: str
    dtypes: Mapping[str, str]
    get: Callable[[str], np.ndarray]
    order: tuple[str, ...]
    vocabulary: JointVocabulary | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    companions: tuple[Path, ...] = ()
    hf: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extras: Extras | None = None
    notes: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes(self.config, self.tie)

    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(byte_sizes({name: (shape, self.dtypes[name]) for name, shape in self.shapes.items()}).values())

    def replace(self, **changes) -> Backbone:
        return dataclasses.replace(self, **changes)

    def note(self, *lines: str) -> Backbone:
        return self.replace(notes=(*self.notes, *lines))


def shapes(config: TransformerConfig, tie: str = SEPARATE) -> dict[str, tuple[int, ...]]:
    """{canonical name: shape} of a model, layer by layer."""
    c = config
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    layer = {"wq": (heads, c.d_model), "wk": (kv_heads, c.d_model), "wv": (kv_heads, c.d_model)}
    layer |= {"wo": (c.d_model, heads), "w_gate": (c.d_ff, c.d_model), "w_up": (c.d_ff, c.d_model)}
    layer |= {"w_down": (c.d_model, c.d_ff), "attention_norm": (c.d_model,), "mlp_norm": (c.d_model,)}
    if c.qk_norm:
        layer |= {name: (c.qk_norm_groups, c.head_dim) for name in NORMS}
    result = {"embedding": (c.vocab_size, c.d_model)}
    result |= {f"layers.{n}.{name}": shape for n in range(c.num_layers) for name, shape in layer.items()}
    result["final_norm"] = (c.d_model,)
    return result | ({"output": (c.vocab_size, c.d_model)} if tie == SEPARATE else {})


def with_dtype(backbone: Backbone, dtype: np.dtype | None) -> Backbone:
    """The same weights in another type; None keeps each tensor's own."""
    if dtype is None:
        return backbone
    get = backbone.get
    names = dict.fromkeys(backbone.dtypes, dtype.name)
    return backbone.replace(dtypes=names, get=lambda name: cast(get(name), dtype, name))


# ------------------------------------------------------------------------------------------------- shared tables


def untied(backbone: Backbone) -> Backbone:
    """The same function with two tables, for layouts that know no other way."""
    if backbone.tie == SEPARATE:
        return backbone
    get, scale, scaled = backbone.get, _scale(backbone.config), backbone.tie == SCALED

    def table(name: str) -> np.ndarray:
        if name == "output":
            return get("embedding")
        array = get(name)
        return scale(array) if name == "embedding" and scaled else array

    return backbone.replace(
        tie=SEPARATE,
        config=dataclasses.replace(backbone.config, tie_embeddings=False),
        get=table,
        dtypes={**backbone.dtypes, "output": backbone.dtypes["embedding"]},
        order=(*backbone.order, "output"),
    )


def tied_again(backbone: Backbone, tie: str) -> Backbone:
    """Undoes `untied` where the two tables still belong together to the bit; else two tables, and a note."""
    if tie not in (SHARED, SCALED) or backbone.tie != SEPARATE:
        return backbone
    get, scale = backbone.get, _scale(backbone.config)
    table = get("output")
    expected = scale(table) if tie == SCALED else table
    same = backbone.dtypes["embedding"] == backbone.dtypes["output"]
    if not same or expected.tobytes() != get("embedding").tobytes():
        return backbone.note("the file says that both tables were one; they differ by now and are kept as two")
    return backbone.replace(
        tie=tie,
        config=dataclasses.replace(backbone.config, tie_embeddings=tie == SCALED),
        get=lambda name: get("output" if name == "embedding" else name),
        dtypes={k: v for k, v in backbone.dtypes.items() if k != "output"},
        order=tuple(name for name in backbone.order if name != "output"),
    )


def _scale(config: TransformerConfig) -> Callable[[np.ndarray], np.ndarray]:
    factor = np.float32(math.sqrt(config.d_model))
    return lambda table: (table.astype(np.float32) * factor).astype(table.dtype)


# ---------------------------------------------------------------------------------------------------- channel order


def halves(head_dim: int) -> np.ndarray:
    """Indices that take RoPE's pairs (2i, 2i + 1) to (i, i + K/2)."""
    return np.arange(head_dim).reshape(-1, 2).T.ravel()


def pairs(head_dim: int) -> np.ndarray:
    """The inverse of `halves`."""
    return np.arange(head_dim).reshape(2, -1).T.ravel()


def reorder(name: str, array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The channels of every head in another order: rows of `wq`, `wk` [heads K, D], columns of norms [groups, K]."""
    last = name.rpartition(".")[2]
    if last in NORMS:
        return np.ascontiguousarray(array[:, order])
    if last not in ("wq", "wk"):
        return array
    return array.reshape(-1, len(order), array.shape[-1])[:, order].reshape(array.shape)


def find_groups(rows: Mapping[str, np.ndarray], config: TransformerConfig, declared: int | None) -> int:
    """The number of groups of heads that share their query and key norms.

    rows: {name: [heads, head_dim]} of all layers' norms. The declared number is taken where neighbouring heads bear it
    out, else the smallest that does. InteropError when key heads that serve one group of queries do not fit.
    """
    possible = [n for n in range(1, config.num_kv_heads + 1) if config.num_kv_heads % n == 0]
    candidates = ([declared] if declared in possible else []) + possible
    for groups in candidates:
        if all(_constant_in_groups(array, groups) for array in rows.values()):
            return groups
    raise InteropError(
        f"the query norms differ among the query heads that share one of the {config.num_kv_heads} key heads; this "
        "model has no place for that"
    )


def _constant_in_groups(array: np.ndarray, groups: int) -> bool:
    split = array.reshape(groups, array.shape[0] // groups, -1)
    split = split.view(np.uint16 if split.dtype.itemsize == 2 else np.uint32)  # to the bit: also -0 and NaN
    return bool((split == split[:, :1]).all())


def require_publishable(backbone: Backbone, layout: str) -> None:
    """InteropError, all reasons named, when the Chameleon family's layouts have no place for the model."""
    c, reasons = backbone.config, []
    if not c.qk_norm:
        reasons.append("qk_norm is off; the layout always has query and key norms")
    if c.num_heads * c.head_dim != c.d_model:
        reasons.append(f"num_heads * head_dim = {c.num_heads * c.head_dim}, d_model = {c.d_model}; they must be equal")
    if reasons:
        raise InteropError(f"--to={layout}: this model cannot be written: {'; '.join(reasons)}")
