"""Weights in and out under the published key names (taming-transformers' `vqgan.ckpt`, without `loss.*`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ar_omni_jax.files import replace_file
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.model import VQGAN

FORMAT = "ar_omni_jax image VQGAN 1"
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
        parts = [
            f"{len(k)} {n} keys ({', '.join(k[:3])}{' ...' if len(k) > 3 else ''})"
            for n, k in (("missing", missing), ("unknown", surplus))
            if k
        ]
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


def weights_identity(config: VQGANConfig, weights: Mapping[str, np.ndarray]) -> str:
    """12 hex digits that change when the config or any weight does: same identity, same codes."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], np.float32)
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def save_tokenizer(path_prefix: str, config: VQGANConfig, params: nnx.State, provenance: dict[str, Any]) -> None:
    """Writes the model's parameters as PREFIX.safetensors and PREFIX.json, see `save_weights`."""
    save_weights(path_prefix, config, published_state(params), provenance)


def save_weights(
    path_prefix: str, config: VQGANConfig, weights: Mapping[str, np.ndarray], provenance: dict[str, Any]
) -> None:
    """Writes PREFIX.safetensors (published keys) and PREFIX.json (format, config, identity, provenance)."""
    identity = weights_identity(config, weights)
    description = {"format": FORMAT, "identity": identity, **config.to_dict(), "provenance": provenance}
    replace_file(f"{path_prefix}.safetensors", save(dict(weights), metadata={"format": FORMAT, "identity": identity}))
    replace_file(f"{path_prefix}.json", (json.dumps(description, indent=1) + "\n").encode())


def load_tokenizer(path_prefix: str) -> tuple[VQGAN, str]:
    """Reads (model, identity) from PREFIX.safetensors and PREFIX.json; errors name the file."""
    json_path, weights_path = Path(f"{path_prefix}.json"), Path(f"{path_prefix}.safetensors")
    for path in (json_path, weights_path):
        if not path.is_file():
            raise FileNotFoundError(f"image tokenizer: {path} does not exist; give the path without its extension")
    try:
        values = json.loads(json_path.read_text())
        config = VQGANConfig.from_dict({k: values[k] for k in ("ddconfig", "n_embed", "embed_dim")})
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"image tokenizer: {json_path} is not usable ({error})") from error
    try:
        weights = load_file(weights_path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"image tokenizer: {weights_path} is damaged ({error})") from error
    identity = weights_identity(config, weights)
    if values.get("identity", identity) != identity:
        raise ValueError(
            f"image tokenizer: {weights_path} has identity {identity}, but {json_path} is about "
            f"{values['identity']}; the two files belong to different exports"
        )
    return model_from_published(config, weights, str(weights_path)), identity
