"""Settings given on a command line. Imports no JAX: compile_check sets JAX's environment after reading its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def split_overrides(words: Sequence[str], refuse: Callable[[str], Any]) -> list[tuple[str, str]]:
    """Words of a command line -> overrides (key, text) for `config.load_config`.

    "--config.key=value" and "--config.key value" are the same. refuse: is told what is wrong, and does not return
    (`ArgumentParser.error`).
    """
    rest, overrides = list(words), []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--config."):
            refuse(f"unexpected argument {word!r}; settings are given as --config.key=value")
        name, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                refuse(f"{word} needs a value: {word}=VALUE")
            text = rest.pop(0)
        overrides.append((name, text))
    return overrides
