"""`ar_omni_jax.json`: what this project knows about a model that the other layouts have no words for.

It stands beside exported weights. Nothing needs it: without it a model loads as any other of its layout. With it, a
model comes back from another layout as it left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar_omni_jax.config import KEYS
from ar_omni_jax.interop.backbone import Backbone
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.tensor_files import read_json
from ar_omni_jax.vocabulary import JointVocabulary, VocabularyError

FILE = "ar_omni_jax.json"
FORMAT = "ar_omni_jax backbone 1"
# Of the run that made a model; an answer needs the first two.
SETTINGS = ("tokenizers", "template", "step", "initialized_rows", "source")
# How a model is computed, not what it is: taken from the file, where its layout does not say.
COMPUTE = ("dtype", "attention", "packed_rows", "remat", "scan_layers")


def model_section(backbone: Backbone) -> dict[str, Any]:
    """The `model` section of this project's configs for a backbone."""
    return {name.removeprefix("model."): getattr(backbone.config, name[6:]) for name in KEYS if name[:6] == "model."}


def write(folder: Path, backbone: Backbone) -> None:
    """Writes the file beside the weights in `folder`."""
    record = {"format": FORMAT, "norm_placement": backbone.config.norm_placement, "tie": backbone.tie}
    record["model"] = model_section(backbone)
    record["settings"] = {k: backbone.settings[k] for k in SETTINGS if k in backbone.settings}
    if backbone.vocabulary is not None:
        record["vocabulary"] = backbone.vocabulary.to_dict()
    (folder / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Mapping[str, Any]:
    """{"tie", "model", "settings", "vocabulary"} of the file in `folder`, {} without one."""
    path = folder / FILE
    if not path.is_file():
        return {}
    record = read_json(path)
    if record.get("format") != FORMAT:
        found = record.get("format")
        raise InteropError(f"{path} has format {found!r}, this program reads {FORMAT!r}; remove the file")
    try:
        vocabulary = JointVocabulary.from_dict(record["vocabulary"]) if "vocabulary" in record else None
    except (VocabularyError, KeyError, TypeError) as error:
        raise InteropError(f"{path}: unusable vocabulary ({error}); remove the file and give --vocabulary") from error
    return {
        "tie": record.get("tie", ""),
        "model": dict(record.get("model", {})),
        "settings": dict(record.get("settings", {})),
        "vocabulary": vocabulary,
    }
