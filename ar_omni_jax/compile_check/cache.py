"""Checks that were made before, in a file of one JSON line each, so that long lists of them can be resumed."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.compile_check.report import versions
from ar_omni_jax.compile_check.targets import Target
from ar_omni_jax.config import flatten, load_config

PACKAGE = Path(__file__).resolve().parent.parent
# What a compiled step is made of: a change in one of these makes old results worthless.
_SOURCES = ("model", "training", "parallel", "compile_check")
# Settings of a run that the compiled step does not depend on; and one among them that it does.
_IDLE = ("train.", "data.mixture.", "data.path", "data.prepare", "data.stop", "data.template", "seed")
_STEP = ("train.skip_spikes",)


class CheckFailed(RuntimeError):
    """A check in another process ended without a result; the message is its last words."""


def cached_check(spec: str, overrides: Sequence[tuple[str, str]], target: Target, cache: Path) -> tuple[dict, bool]:
    """(the result of `report.check`, was it in the cache?). A new one is made in a process of its own, so that neither
    a compiler's crash nor its memory stays, and is in the file before this returns.

    Raises ConfigError for the settings, CheckFailed when the process ends without a result.
    """
    name = key(spec, overrides, target)
    if name in (known := read(cache)):
        return known[name], True
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "result.json"
        command = [sys.executable, "-m", "ar_omni_jax.compile_check", f"--config={spec}", f"--target={target.name}"]
        command += [f"--json={answer}", *(f"--config.{setting}={text}" for setting, text in overrides)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not answer.is_file():
            raise CheckFailed(f"{' '.join(command[1:])} ended with {done.returncode}: {_last_words(done.stderr)}")
        result = json.loads(answer.read_text())
    append(cache, {"key": name, "result": result})
    return result, False


def _last_words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:") or "Error" in line]
    return (errors or lines or ["no message"])[-1][:500]


def key(spec: str, overrides: Sequence[tuple[str, str]], target: Target) -> str:
    """Of settings, target, compiler and source code, so that a result is never taken for another's."""
    settings = flatten(load_config(spec, overrides).to_dict())
    settings = {name: value for name, value in settings.items() if name in _STEP or not name.startswith(_IDLE)}
    what = [settings, target.chip_name, target.shape, target.slices, versions(target), source_digest()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


@functools.cache
def source_digest() -> str:
    """Of the files that a compiled step is made of."""
    digest = hashlib.sha256()
    for path in sorted(path for room in _SOURCES for path in (PACKAGE / room).rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def read(cache: Path) -> dict[str, dict[str, Any]]:
    """{key: result}; a line that a crash cut short is left out, no file is an empty one."""
    found = {}
    for line in cache.read_text().splitlines() if cache.is_file() else ():
        try:
            entry = json.loads(line)
            found[entry["key"]] = entry["result"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def append(cache: Path, entry: dict[str, Any]) -> None:
    """Adds a line. The newline comes first where the last line was cut short."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    whole = not cache.is_file() or not cache.stat().st_size or cache.read_bytes().endswith(b"\n")
    with open(cache, "a") as file:
        file.write(("" if whole else "\n") + json.dumps(entry) + "\n")
