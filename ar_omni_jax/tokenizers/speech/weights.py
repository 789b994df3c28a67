"""Codec <-> flat dictionary of named arrays <-> `<prefix>.safetensors` + `<prefix>.json`."""

import dataclasses
import hashlib
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file
from safetensors.numpy import save as serialize

from ar_omni_jax.files import replace_file
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig


def _name(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def flatten(codec: SpeechCodec) -> dict[str, np.ndarray]:
    """Every parameter by its dotted path, e.g. `encoder.down.0.kernel`."""
    state = nnx.state(codec, nnx.Param)
    return {_name(path): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(state)}


def assemble(config: SpeechCodecConfig, tensors: dict[str, np.ndarray]) -> SpeechCodec:
    """Codec of `config` with the given parameters (any float dtype; held as float32)."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: SpeechCodec(config, rngs=nnx.Rngs(0))))
    flat = list(nnx.to_flat_state(abstract))
    expected = {_name(path): tuple(variable.shape) for path, variable in flat}
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or surplus:
        raise ValueError(
            f"speech codec weights do not fit the config: missing {missing[:5]} ({len(missing)}), "
            f"not expected {surplus[:5]} ({len(surplus)}); check that weights and config belong together"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"speech codec weight {name!r} has shape {tuple(tensors[name].shape)}, the config needs {shape}"
            )
    filled = [(path, v.replace(jnp.asarray(tensors[_name(path)], jnp.float32))) for path, v in flat]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def fingerprint(config: SpeechCodecConfig, tensors: dict[str, np.ndarray]) -> str:
    """12 hex digits that change with any weight or any config value."""
    digest = hashlib.sha256(config.to_json().encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()[:12]


def save(prefix: str | os.PathLike, codec: SpeechCodec, provenance: dict, dtype=np.float16) -> None:
    """Write both files atomically (rename); the JSON is written last. Weights are stored as `dtype`."""
    prefix = pathlib.Path(prefix)
    tensors = {name: np.ascontiguousarray(value, dtype) for name, value in flatten(codec).items()}
    record = {
        "kind": "speech",
        "config": dataclasses.asdict(codec.config),
        "identity": fingerprint(codec.config, tensors),
        "provenance": provenance,
    }
    replace_file(prefix.with_name(prefix.name + ".safetensors"), serialize(tensors))
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    replace_file(prefix.with_name(prefix.name + ".json"), text.encode())


def load(prefix: str | os.PathLike) -> tuple[SpeechCodec, dict]:
    """(codec, record); raises when a file is missing or the pair does not belong together."""
    prefix = pathlib.Path(prefix)
    paths = [prefix.with_name(prefix.name + suffix) for suffix in (".json", ".safetensors")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"speech tokenizer: {path} does not exist; give the prefix of a .json and .safetensors pair"
            )
    record = json.loads(paths[0].read_text())
    if record.get("kind") != "speech":
        raise ValueError(f"{paths[0]}: kind is {record.get('kind')!r}, a speech tokenizer was expected")
    config, tensors = SpeechCodecConfig.from_dict(record["config"]), load_file(paths[1])
    if fingerprint(config, tensors) != record["identity"]:
        raise ValueError(
            f"{paths[1]}: weights do not match the identity {record['identity']} in {paths[0].name}; "
            "the two files come from different trainings, copy both again"
        )
    return assemble(config, tensors), record
