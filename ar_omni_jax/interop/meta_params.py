"""Meta's `params.json` and `consolidate_params.json` <-> TransformerConfig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.tensor_files import read_json
from ar_omni_jax.model.config import ConfigError, TransformerConfig

PARAMS, CONSOLIDATED = "params.json", "consolidate_params.json"
_REQUIRED = ("dim", "n_layers", "n_heads")


def read_params(folder: Path) -> tuple[TransformerConfig, tuple[str, ...], int | None]:
    """(config without the sizes that only tensors tell, notes, shards that the files announce).

    The model's settings stand under "model" or at the top; `consolidate_params.json` has the last word.
    """
    if not (folder / PARAMS).is_file():
        raise InteropError(f"{folder / PARAMS} is not there: heads and norm placement stand in it alone")
    outer = read_json(folder / PARAMS)
    last = read_json(folder / CONSOLIDATED) if (folder / CONSOLIDATED).is_file() else {}
    model = outer.get("model")
    inner = outer | (model if isinstance(model, dict) else {}) | last
    missing = [key for key in _REQUIRED if not isinstance(inner.get(key), int)]
    if missing:
        raise InteropError(f"{folder / PARAMS} lacks {', '.join(missing)}; is it the file of these weights?")
    if inner.get("qk_normalization") is False:
        raise InteropError(f"{folder / PARAMS}: qk_normalization is off; this family has query and key norms")
    assumed = []

    def value(key: str, default: Any) -> Any:
        if inner.get(key) is None:
            assumed.append(f"{key} = {default}")
            return default
        return inner[key]

    swin = value("swin_norm", False)
    try:
        config = TransformerConfig(
            vocab_size=1,
            num_layers=inner["n_layers"],
            d_model=inner["dim"],
            num_heads=inner["n_heads"],
            num_kv_heads=value("n_kv_heads", inner["n_heads"]),
            head_dim=inner["dim"] // inner["n_heads"],
            d_ff=1,
            norm_placement="swin" if swin else "pre",
            norm_eps=float(value("norm_eps", 1e-5)),
            rope_theta=float(value("rope_theta", 10_000.0)),
        )
    except (ConfigError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InteropError(f"{folder / PARAMS}: {error}") from error
    notes = (f"{folder / PARAMS} leaves out {', '.join(assumed)}: the format's defaults are taken",) if assumed else ()
    return config, notes, inner.get("model_parallel_size")


def feed_forward_width(dim: int, multiplier: float, multiple_of: int) -> int:
    """The layout's rule: two thirds of 4 dim, times the multiplier, rounded up to a multiple."""
    width = int(multiplier * int(8 * dim / 3))
    return multiple_of * -(-width // multiple_of)


def write_params(config: TransformerConfig, shards: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params.json, consolidate_params.json) of a model in `shards` files."""
    c = config
    multiplier, multiple_of = 1.0, 256
    if feed_forward_width(c.d_model, multiplier, multiple_of) != c.d_ff:
        # Any width, by the rule that a reader will apply; half a unit more keeps the truncation away from the edge.
        multiplier, multiple_of = (c.d_ff + 0.5) / int(8 * c.d_model / 3), 1
    model = {
        "dim": c.d_model,
        "n_layers": c.num_layers,
        "n_heads": c.num_heads,
        "n_kv_heads": c.num_kv_heads,
        "vocab_size": c.vocab_size,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "qk_normalization": True,
        "swin_norm": c.norm_placement == "swin",
    }
    return {"model": model, "model_parallel_size": shards}, {"model_parallel_size": shards}
