"""HF `config.json` of a Chameleon model <-> TransformerConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ar_omni_jax.interop import sidecar
from ar_omni_jax.interop.backbone import SHARED, Backbone
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.model.config import ConfigError, TransformerConfig
from ar_omni_jax.vocabulary import JointVocabulary, Modality, chameleon_vocabulary

# Our field -> (key, value that a published file means when it leaves the key out).
_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 65536),
    "num_layers": ("num_hidden_layers", 32),
    "d_model": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", None),
    "d_ff": ("intermediate_size", 11008),
    "norm_eps": ("rms_norm_eps", 1e-5),
    "max_length": ("max_position_embeddings", 4096),
}
# Key -> the only value that this model can honour, and the value where the key is left out.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "qk_layernorm": True}


def read_config(raw: Mapping[str, Any], where: str) -> tuple[TransformerConfig, dict[str, Any], tuple[str, ...]]:
    """(config with one norm group, {"tied", "groups"}, notes) of a parsed config.json.

    Raises InteropError for another model type or a setting that this model does not have; all are named.
    """
    odd = {key: value for key, value in _FIXED.items() if raw.get(key, value) != value}
    wrong = [f"{key} = {raw[key]!r}, must be {value!r}" for key, value in odd.items()]
    if raw.get("model_type", "chameleon") != "chameleon":
        wrong.append(f"model_type = {raw['model_type']!r}, must be 'chameleon'")
    theta, scaling = _rope(raw)
    if scaling:
        wrong.append(f"RoPE scaling {scaling!r}, must be none")
    if wrong:
        raise InteropError(f"{where}: another kind of model: {'; '.join(wrong)}")
    values, assumed = {}, []
    for field, (key, default) in _FIELDS.items():
        value = raw.get(key)
        if value is None:
            value = values["num_heads"] if field == "num_kv_heads" else default
            assumed.append(f"{key} = {value}")
        values[field] = value
    swin = raw.get("swin_norm")
    if swin is None:
        assumed.append("swin_norm = false (pre-norm)")
    if not (raw.get("rope_theta") or (raw.get("rope_parameters") or {}).get("rope_theta")):
        assumed.append(f"rope_theta = {theta}")
    notes = (f"{where} leaves out {', '.join(assumed)}: the format's defaults are taken",) if assumed else ()
    try:
        config = TransformerConfig(
            **values,
            head_dim=values["d_model"] // values["num_heads"],
            rope_theta=float(theta),
            norm_placement="swin" if swin else "pre",
        )
    except (ConfigError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InteropError(f"{where}: {error}") from error
    return config, {"tied": bool(raw.get("tie_word_embeddings")), "groups": raw.get("model_parallel_size")}, notes


def _rope(raw: Mapping[str, Any]) -> tuple[float, Any]:
    """(theta, scaling or None): `rope_theta` and `rope_scaling`, or `rope_parameters` since transformers 5."""
    parameters = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling")
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        scaling = parameters
    if isinstance(scaling, Mapping) and scaling.get("rope_type", scaling.get("type")) == "default":
        scaling = None
    return parameters.get("rope_theta", raw.get("rope_theta") or 10_000.0), scaling


def write_config(backbone: Backbone, *, vendored: bool, vq_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """config.json of a backbone: what its input said, with what this project knows put in its place."""
    c, vocabulary = backbone.config, backbone.vocabulary
    gone = ("dtype", "rope_parameters", "rope_scaling", "transformers_version", "_name_or_path")
    record = {k: v for k, v in backbone.hf.items() if k not in gone}
    record |= {key: getattr(c, field) for field, (key, _) in _FIELDS.items()}
    record |= {
        "architectures": ["ChameleonForCausalLM" if vendored else "ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "swin_norm": c.norm_placement == "swin",
        "model_parallel_size": c.qk_norm_groups,
        "tie_word_embeddings": backbone.tie == SHARED,
        "torch_dtype": backbone.dtypes["embedding"],
        "use_cache": True,
    }
    if vendored:
        record["qk_layernorm"] = True
        record.pop("vq_config", None)
    else:
        record.pop("qk_layernorm", None)
        if vq_config is not None:
            record["vq_config"] = dict(vq_config)
    if vocabulary is not None:
        record |= special_ids(vocabulary)
        record.setdefault("vocabulary_map", vocabulary_map(vocabulary))
    return record


def special_ids(vocabulary: JointVocabulary) -> dict[str, int]:
    """The ids that HF's generation asks for."""
    return {f"{name}_token_id": vocabulary.marker(name) for name in ("bos", "eos", "pad")}


def vocabulary_map(vocabulary: JointVocabulary) -> dict[str, int]:
    """{token name: id} of what HF looks up by name: the image codes and the `<image>` placeholder.

    An image code's name is IMGIMG, its decimal digits as letters from A, and Z. The placeholder is 8711 in the
    published layout and the first reserved id elsewhere.
    """
    names = {"<s>": vocabulary.marker("bos"), "<pad>": vocabulary.marker("pad")}
    names |= {"</s>": vocabulary.marker("eos"), "<unk>": vocabulary.marker("unk")}
    codes = range(vocabulary.range_of(Modality.IMAGE).count)
    ids = vocabulary.to_ids(Modality.IMAGE, list(codes))
    for code, token in zip(codes, ids, strict=True):
        names["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"] = int(token)
    if vocabulary.fingerprint == chameleon_vocabulary(vocabulary.image_grid).fingerprint:
        return names | {"<image>": 8711}
    others = (vocabulary.modality_table == Modality.MARKER).nonzero()[0].tolist()
    reserved = set(others) - set(vocabulary.markers.values())
    return names | ({"<image>": min(reserved)} if reserved else {})


def take_compute(config: TransformerConfig, model: Mapping[str, Any], dtype: str) -> TransformerConfig:
    """`config` with the settings of computation that a sidecar's `model` section has; products follow the weights."""
    known = {k: model[k] for k in sidecar.COMPUTE if k in model}
    known.setdefault("dtype", "float32" if dtype == "float32" else "bfloat16")
    return dataclasses.replace(config, **known, param_dtype=dtype)
