"""This project's image tokenizer as the `model.vqmodel.*` of an HF model: encoder, codebook, 1x1 convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ar_omni_jax.interop.backbone import Extras
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.safetensors_io import SafetensorsReader
from ar_omni_jax.interop.tensor_files import read_json
from ar_omni_jax.tokenizers.image.config import VQGANConfig

# Names of the codec's settings that HF calls otherwise.
_RENAMED = {"ch": "base_channels", "ch_mult": "channel_multiplier", "z_channels": "latent_channels"}
_RENAMED |= {"double_z": "double_latent", "n_embed": "num_embeddings", "embed_dim": "embed_dim"}
_SAME = ("num_res_blocks", "attn_resolutions", "resolution", "in_channels", "dropout")


def image_tokenizer_extras(prefix: Path, key_prefix: str) -> Extras:
    """PREFIX.json and PREFIX.safetensors (a tokenizer's folder: its `image.*`) under HF's names, without the decoder.

    Raises InteropError when the files are missing or the codec is one that HF cannot build.
    """
    prefix = prefix / "image" if prefix.is_dir() else prefix.with_suffix("")
    record = read_json(prefix.with_suffix(".json"))
    try:
        config = VQGANConfig.from_dict({k: record[k] for k in ("ddconfig", "n_embed", "embed_dim")})
    except (KeyError, ValueError, TypeError) as error:
        raise InteropError(f"--image_tokenizer={prefix}.json has no usable config ({error!r})") from error
    if config.num_groups != 32:
        raise InteropError(f"--image_tokenizer={prefix}: num_groups = {config.num_groups}; HF's image encoder has 32")
    reader = SafetensorsReader(prefix.with_suffix(".safetensors"))
    names = {key_prefix + name: name for name in reader.shapes if not name.startswith("decoder.")}
    settings: dict[str, Any] = {hf: getattr(config, own) for own, hf in _RENAMED.items()}
    settings |= {name: getattr(config, name) for name in _SAME}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()} | {"attn_type": "vanilla"}
    return Extras(
        {key: reader.shapes[name] for key, name in names.items()},
        {key: reader.dtypes[name] for key, name in names.items()},
        lambda key: reader.get(names[key]),
        settings,
    )
