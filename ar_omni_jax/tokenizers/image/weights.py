"""Weights in and out under the published key names (taming-transformers' `vqgan.ckpt`, without `loss.*`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.model import VQGAN

IGNORED_PREFIXES = ("loss.",)  # discriminator and perceptual network of the published training


def _key(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)


def _to_published(array: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW for convolutions, everything else as it is."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


def _from_published(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def published_state(params: nnx.State) -> dict[str, np.ndarray]:
    """Parameters (of `nnx.state(model, nnx.Param)`) as {published key: float32 array}, convolutions OIHW."""
    return {_key(path): _to_published(np.asarray(p[...])) for path, p in nnx.to_flat_state(params)}


def abstract_model(config: VQGANConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's structure and shapes; allocates nothing."""
    return nnx.split(nnx.eval_shape(lambda: VQGAN(config, nnx.Rngs(0))), nnx.Param)


def model_from_published(config: VQGANConfig, weights: Mapping[str, np.ndarray], source: str = "weights") -> VQGAN:
    """Builds the model from {published key: array}; ValueError names missing, surplus and misshapen keys."""
    graphdef, shapes = abstract_model(config)
    weights = {k: v for k, v in weights.items() if not k.startswith(IGNORED_PREFIXES)}
    expected = {_key(path): p for path, p in nnx.to_flat_state(shapes)}
    missing, surplus = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or surplus:
        parts = [f"{len(k)} {n} keys ({', '.join(k[:3])}{' ...' if len(k) > 3 else ''})"
                 for n, k in (("missing", missing), ("unknown", surplus)) if k]
        raise ValueError(f"{source} does not fit the config: {' and '.join(parts)}; check ddconfig")

    def fill(path: tuple[Any, ...], param: Any) -> Any:
        name = _key(path)
        array = _from_published(np.asarray(weights[name], np.float32))
        if array.shape != param.shape:
            found, needed = tuple(weights[name].shape), _published_shape(param.shape)
            raise ValueError(f"{source}: {name} has shape {found}, the config needs {needed}")
        return param.replace(jax.numpy.array(array))

    return nnx.merge(graphdef, nnx.from_flat_state([(p, fill(p, v)) for p, v in nnx.to_flat_state(shapes)]))


def _published_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else tuple(shape)


def parameter_counts(config: VQGANConfig) -> dict[str, int]:
    """Number of parameters of each top-level part, from shapes alone."""
    counts: dict[str, int] = {}
    for path, param in nnx.to_flat_state(abstract_model(config)[1]):
        counts[str(path[0])] = counts.get(str(path[0]), 0) + int(np.prod(param.shape))
    return counts
