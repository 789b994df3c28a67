"""How a judge is named on the command line: one that the project brings, or MODULE:FACTORY of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


class JudgeError(RuntimeError):
    """A judge that is not known, not installed, or cannot be loaded; the message says what to give or install."""


def make_judge(flag: str, name: str, known: Mapping[str, Callable[[str], Any]], methods: tuple[str, ...]) -> Any:
    """The judge that `name` stands for.

    Args:
      flag: the command's flag, for messages.
      name: "KIND" or "KIND:DETAIL" with KIND in `known`, whose function gets DETAIL ("" when left out); otherwise
        "MODULE:FACTORY", where the factory takes nothing and returns the judge.
      methods: attributes that the judge must have.
    Raises JudgeError.
    """
    kind, _, detail = name.partition(":")
    if kind in known:
        judge = known[kind](detail)
    elif detail:
        judge = _imported(flag, kind, detail)
    else:
        raise JudgeError(f"{flag}={name}: give {', '.join(known)} or MODULE:FACTORY, a function that returns a judge")
    missing = [method for method in methods if not hasattr(judge, method)]
    if missing:
        raise JudgeError(f"{flag}={name}: {type(judge).__name__} has no {', '.join(missing)}; a judge needs these")
    return judge


def _imported(flag: str, module: str, factory: str):
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise JudgeError(f"{flag}={module}:{factory}: no module {module} ({error}); is it on PYTHONPATH?") from error
    if not callable(getattr(found, factory, None)):
        raise JudgeError(f"{flag}={module}:{factory}: {module} has no function {factory}")
    return getattr(found, factory)()


def torch_and_transformers(why: str):
    """The two modules; JudgeError saying what to install when one is missing."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise JudgeError(f"{why} needs PyTorch and transformers ({error}): pip install 'ar_omni_jax[torch]'") from error
    return torch, transformers


def pretrained(load: Callable[[str], Any], where: str, what: str):
    """`load(where)`, its many errors as one JudgeError."""
    try:
        return load(where)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise JudgeError(
            f"{what} cannot be loaded from {where!r} ({reason}); give a folder that save_pretrained wrote, or a "
            "hub id while there is a network"
        ) from error
