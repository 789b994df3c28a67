"""The one error of conversions, and how differences between two sets of tensors are told."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

SHOWN = 12  # lines of one kind in a message; the count of the rest is told


class InteropError(ValueError):
    """A file, a layout or a setting that cannot be converted; the message says which, why and what to do."""


def differences(
    needed: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()
) -> list[str]:
    """What keeps tensors of the shapes `found` from being those of the shapes `needed`, one line each.

    Missing, unexpected and wrongly shaped names are all told, each missing or unexpected one with the nearest name of
    the other side. `ignored`: names of `found` that need no counterpart. Empty: every tensor has its place.
    """
    spare = {name for name in found if name not in needed} - set(ignored)
    missing = [name for name in needed if name not in found]
    lines = _limited(
        [f"missing: {name} {_shape(needed[name])}{_near(name, spare, 'the file has')}" for name in missing]
    )
    lines += _limited(
        [f"unexpected: {name} {_shape(found[name])}{_near(name, needed, 'nearest:')}" for name in sorted(spare)]
    )
    lines += _limited(
        [
            f"wrong shape: {name} is {_shape(found[name])}, must be {_shape(shape)}"
            for name, shape in needed.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ]
    )
    return lines


def refuse(where: str, lines: list[str], remedy: str) -> None:
    """InteropError with all `lines` under a heading, unless there are none."""
    if lines:
        raise InteropError(f"{where} cannot be converted:\n  " + "\n  ".join(lines) + f"\n{remedy}")


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))


def _near(name: str, names: Iterable[str], words: str) -> str:
    # Names of one model differ by a layer number more than by anything else: compare those of like length only.
    candidates = [n for n in names if abs(len(n) - len(name)) <= 12]
    best = difflib.get_close_matches(name, candidates[:2000], 1, 0.6)
    return f" ({words} {best[0]})" if best else ""


def _limited(lines: list[str]) -> list[str]:
    if len(lines) <= SHOWN:
        return lines
    return lines[:SHOWN] + [f"{lines[0].split(':')[0]}: and {len(lines) - SHOWN} more"]
