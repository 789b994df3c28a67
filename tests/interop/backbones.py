"""Small random backbones, and the command on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ar_omni_jax import convert
from ar_omni_jax.interop.arrays import DTYPES
from ar_omni_jax.interop.backbone import SCALED, SEPARATE, Backbone, shapes
from ar_omni_jax.interop.registry import layout
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.vocabulary import compact_vocabulary

VOCABULARY = compact_vocabulary(40, 16, 16, (2, 2), name="tiny")
CONFIG = TransformerConfig(
    vocab_size=VOCABULARY.size,
    num_layers=2,
    d_model=24,
    num_heads=4,
    num_kv_heads=4,
    head_dim=6,
    d_ff=40,
    max_length=128,
    dtype="float32",
)


def make(dtype: str = "float32", tie: str = SEPARATE, seed: int = 0, **changes) -> Backbone:
    """Random weights of a tiny model. 24 and 40: no square, so that no transposition and no scaling can hide."""
    config = dataclasses.replace(CONFIG, **changes, tie_embeddings=tie == SCALED, param_dtype=dtype)
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes(config, tie).items():
        centre = 0.8 if name.endswith("norm") or name.endswith("norm_weight") else 0.0
        arrays[name] = (centre + 0.3 * rng.standard_normal(shape)).astype(DTYPES[dtype])
    dtypes = dict.fromkeys(arrays, dtype)
    settings = {"tokenizers": "toyworld", "template": "paper", "step": 7}
    return Backbone(config, tie, dtypes, arrays.__getitem__, tuple(arrays), VOCABULARY, settings)


def save(backbone: Backbone, name: str, path: Path, **options) -> Path:
    """Writes a backbone in the layout `name`, with the command's own defaults."""
    layout(name).save(backbone, path, arguments(path, path, name, **options))
    return path


def arguments(source: Path, target: Path, to: str, **options):
    """The command line --to=TO --input=SOURCE --output=TARGET, parsed."""
    words = [f"--to={to}", f"--input={source}", f"--output={target}", *(f"--{k}={v}" for k, v in options.items())]
    return convert.parse_arguments(words)


def run(source: Path, target: Path, to: str, **options) -> int:
    """The command; returns its exit code."""
    words = [f"--to={to}", f"--input={source}", f"--output={target}", *(f"--{k}={v}" for k, v in options.items())]
    return convert.main(words)


def load(name: str, path: Path, **options) -> Backbone:
    """Reads what `path` holds in the layout `name`."""
    return layout(name).load(path, arguments(path, path, name, **options))


def assert_same(a: Backbone, b: Backbone) -> None:
    """Equal configuration, ties, types and bits."""
    assert a.config == b.config
    assert (a.tie, a.shapes) == (b.tie, b.shapes)
    assert dict(a.dtypes) == dict(b.dtypes)
    for name in a.shapes:
        x, y = a.get(name), b.get(name)
        assert x.shape == y.shape == a.shapes[name], name
        assert x.tobytes() == y.tobytes(), name
