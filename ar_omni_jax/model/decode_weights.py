"""The weights as decoding reads them: one set of plain matrices a layer, in the type that is read.

Training keeps the layers stacked. Left to a decode loop, every step would slice and cast them again; this is
done once. Matrices that read the same input stand side by side as one (fewer, larger products), unless they
are to be split over a mesh, where the seams would not fall on the shards' borders.

Letters: D model width, H query heads, G key-value heads, K head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ar_omni_jax.model.config import ConfigError, TransformerConfig
from ar_omni_jax.model.quantized import Int8Matrix, Matrix, quantize
from ar_omni_jax.model.tiled import tile
from ar_omni_jax.model.transformer import Transformer, abstract_transformer
from ar_omni_jax.model.transposed import transpose

Columns = tuple[Matrix, ...]  # matrices with one input, whose outputs stand side by side

WEIGHT_TYPES = ("float32", "bfloat16", "float16", "int8")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerWeights:
    """One layer.

    Attributes:
      qkv: [D, (H + 2 G) K], as one matrix or three. gate_up: [D, 2 F], as one or two. out: [H K, D]. down: [F, D].
      attention_norm, mlp_norm: [D]. qk_norm: (query weight, query bias, key weight, key bias), each [groups, K];
        empty without qk-norm.
    """

    qkv: Columns
    out: Matrix
    gate_up: Columns
    down: Matrix
    attention_norm: jax.Array
    mlp_norm: jax.Array
    qk_norm: tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeWeights:
    """embedding: [V, D]; output: [D, V], None when it is the embedding; final_norm: [D]. Embeddings stay in the
    compute dtype (a token reads one row), norms in the parameters'."""

    embedding: jax.Array
    layers: tuple[LayerWeights, ...]
    final_norm: jax.Array
    output: Matrix | None


def decode_config(config: TransformerConfig, weights: str | None) -> TransformerConfig:
    """`config` with the compute dtype that weights of that type ask for (int8: the config's own)."""
    if weights is None or weights == "int8":
        return config
    if weights not in WEIGHT_TYPES:
        raise ConfigError(f"weights = {weights!r}: must be one of {', '.join(WEIGHT_TYPES)}")
    return dataclasses.replace(config, dtype=weights)


@functools.partial(jax.jit, static_argnames=("graph", "config", "int8", "joined"))
def _convert(graph, params, *, config: TransformerConfig, int8: bool, joined: bool) -> DecodeWeights:
    model = nnx.merge(graph, params)
    stacked, D = model.blocks, config.d_model

    def matrix(w):
        return quantize(w) if int8 else w.astype(config.dtype)

    def columns(*parts):
        return tuple(matrix(w) for w in ([jnp.concatenate(parts, axis=1)] if joined else parts))

    def layer(n):
        def take(name):
            return getattr(stacked, name)[...][n]

        norms = ("q_norm_weight", "q_norm_bias", "k_norm_weight", "k_norm_bias") if config.qk_norm else ()
        return LayerWeights(
            qkv=columns(*(take(name).reshape(D, -1) for name in ("wq", "wk", "wv"))),
            out=matrix(take("wo").reshape(-1, D)),
            gate_up=columns(take("w_gate"), take("w_up")),
            down=matrix(take("w_down")),
            attention_norm=take("attention_norm"),
            mlp_norm=take("mlp_norm"),
            qk_norm=tuple(take(name) for name in norms),
        )

    return DecodeWeights(
        embedding=model.embedding[...].astype(config.dtype),
        layers=tuple(layer(n) for n in range(config.num_layers)),
        final_norm=model.final_norm[...],
        output=None if config.tie_embeddings else matrix(model.output[...]),
    )


def make_decode_weights(
    model: Transformer, weights: str | None = None, *, sharded: bool = False
) -> tuple[DecodeWeights, TransformerConfig]:
    """The weights for decoding, and the configuration to compute with.

    Args:
      weights: "float32", "bfloat16" or "float16" (also the compute dtype), "int8" (weight-only), or None for
        the model's compute dtype.
      sharded: they are to be split over a mesh (`weight_axes`).
    """
    config = decode_config(model.config, weights)
    graph, params = nnx.split(model)
    return _convert(graph, params, config=config, int8=weights == "int8", joined=not sharded), config


_tiled, _transposed = jax.jit(tile), jax.jit(transpose)


def tile_weights(weights: DecodeWeights) -> DecodeWeights:
    """The same weights with every float32 matrix of the products in tiles (`model/tiled.py`). All others are
    the given arrays."""
    return _each_matrix(weights, _tiled)


def transpose_weights(weights: DecodeWeights) -> DecodeWeights:
    """The same, with these matrices by outputs (`model/transposed.py`)."""
    return _each_matrix(weights, _transposed)


def _each_matrix(weights: DecodeWeights, form: Callable[[jax.Array], Matrix]) -> DecodeWeights:
    def formed(matrix: Matrix) -> Matrix:
        plain = not isinstance(matrix, Int8Matrix) and matrix.dtype == jnp.float32
        return form(matrix) if plain else matrix

    def layer(w: LayerWeights) -> LayerWeights:
        qkv, gate_up = (tuple(map(formed, columns)) for columns in (w.qkv, w.gate_up))
        return dataclasses.replace(w, qkv=qkv, out=formed(w.out), gate_up=gate_up, down=formed(w.down))

    output = None if weights.output is None else formed(weights.output)
    return dataclasses.replace(weights, layers=tuple(map(layer, weights.layers)), output=output)


def abstract_decode_weights(
    config: TransformerConfig, weights: str | None = None
) -> tuple[DecodeWeights, TransformerConfig]:
    """As `make_decode_weights`, of ShapeDtypeStructs: shapes without memory."""
    graph, params = nnx.split(abstract_transformer(config))
    made = decode_config(config, weights)
    convert = functools.partial(_convert, graph, config=made, int8=weights == "int8", joined=True)
    return jax.eval_shape(convert, params), made


def weight_axes(config: TransformerConfig, int8: bool) -> DecodeWeights:
    """The logical axes (`parallel/sharding.py`) of every array of sharded `DecodeWeights`: a tree of tuples of
    names."""

    def matrix(*axes):
        return Int8Matrix(axes, axes[1:]) if int8 else axes

    layer = LayerWeights(
        qkv=(matrix("embed", "heads"), matrix("embed", "kv_heads"), matrix("embed", "kv_heads")),
        out=matrix("heads", "embed"),
        gate_up=(matrix("embed", "mlp"), matrix("embed", "mlp")),
        down=matrix("mlp", "embed"),
        attention_norm=("norm",),
        mlp_norm=("norm",),
        qk_norm=(("norm_groups", "head_dim"),) * (4 if config.qk_norm else 0),
    )
    output = None if config.tie_embeddings else matrix("embed", "vocab")
    return DecodeWeights(("vocab", "embed"), (layer,) * config.num_layers, ("norm",), output)
