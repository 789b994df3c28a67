"""The train state and the trees it is made of: plain nested dicts of arrays, so that files need no classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer, abstract_transformer, logical_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a training step changes.

    Attributes:
      step: int32, batches seen, skipped ones included; also the place in the data order.
      params: {"model": nested dict of the Transformer's parameters, "projection": W_h or {}}.
      opt_state: of optax.
      skipped: int32, steps skipped so far because loss or gradient was not finite, or a spike.
      skipped_in_row: int32, how many of the last steps were skipped without a good one since.
      spikes: the memory of `training.spikes`; {} when it is off.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    skipped: jax.Array
    skipped_in_row: jax.Array
    spikes: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


def model_params(model: Transformer) -> dict:
    """The parameters of a Transformer as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def model_from_params(config: TransformerConfig, params: dict) -> Transformer:
    """A Transformer with the given parameters (`TrainState.params["model"]`); the inverse of `model_params`.

    Works on arrays and under a trace; nothing is allocated or copied.
    """
    graph, state = nnx.split(abstract_transformer(config))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def model_logical_axes(config: TransformerConfig) -> dict:
    """Logical axis names of every parameter, in the structure of `model_params`."""
    return nnx.to_pure_dict(logical_axes(config))
