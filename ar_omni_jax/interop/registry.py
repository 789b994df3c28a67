"""The layouts that `convert` knows: name -> how it is recognised, read and written.

A new layout is a `Layout` in a module of its own and one line in `LAYOUTS`. Layouts of one family hold the same
thing (a backbone, codecs), and conversion is possible within a family only.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ar_omni_jax.interop.errors import InteropError


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to store one family of weights.

    Attributes:
      family: "backbone" or "codec".
      describe: a few words for --help.
      detect: path of the input -> the evidence that it has this layout ("q_norm of rank 2"), or None. Cheap, never
        raises for a foreign input.
      load: (input path, options) -> what the family's `save`s take; may be lazy. InteropError for all that is wrong.
      save: (what `load` returned, output path, options) -> lines for the user. Writes atomically, or nothing.
    `options` is the command line (`argparse.Namespace` of ar_omni_jax.convert).
    """

    family: str
    describe: str
    detect: Callable[[Path], str | None]
    load: Callable[[Path, Any], Any]
    save: Callable[[Any, Path, Any], list[str]]


# Name on the command line -> "module:attribute" of its Layout; imported when it is asked for.
LAYOUTS: dict[str, str] = {
    "orbax": "ar_omni_jax.interop.orbax:LAYOUT",
    "hf": "ar_omni_jax.interop.hf:LAYOUT",
    "vendored": "ar_omni_jax.interop.vendored:LAYOUT",
    "meta": "ar_omni_jax.interop.meta:LAYOUT",
    "tokenizer": "ar_omni_jax.interop.tokenizer_files:LAYOUT",
    "vqgan": "ar_omni_jax.interop.vqgan_files:LAYOUT",
    "wavtokenizer": "ar_omni_jax.interop.wavtokenizer_files:LAYOUT",
}


def layout(name: str) -> Layout:
    """The layout of that name; InteropError naming all when there is none."""
    if name not in LAYOUTS:
        raise InteropError(f"there is no layout {name!r}; layouts are {', '.join(LAYOUTS)}")
    module, _, attribute = LAYOUTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def detect(path: Path) -> tuple[str, str]:
    """(name, evidence) of the one layout that the input has; InteropError when none or several fit."""
    if not path.exists():
        raise InteropError(f"--input={path} is not there")
    found = {name: evidence for name in LAYOUTS if (evidence := layout(name).detect(path))}
    if len(found) == 1:
        return next(iter(found.items()))
    told = "; ".join(f"{name}: {evidence}" for name, evidence in found.items()) or "no layout fits"
    raise InteropError(f"the layout of {path} is not clear ({told}); name it with --from={'|'.join(found or LAYOUTS)}")
