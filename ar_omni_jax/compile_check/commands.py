"""What the command does once the environment is set: one check, or a search."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ar_omni_jax.compile_check import search
from ar_omni_jax.compile_check.cache import CheckFailed
from ar_omni_jax.compile_check.program import CompileFailed
from ar_omni_jax.compile_check.report import check, page
from ar_omni_jax.compile_check.targets import Target
from ar_omni_jax.config import load_config
from ar_omni_jax.files import replace_file
from ar_omni_jax.main import FOR_PEOPLE

# What ends without an answer to "does it fit?".
NO_RESULT = (*FOR_PEOPLE, CompileFailed, CheckFailed, search.GridError)
Overrides = Sequence[tuple[str, str]]


def run_check(options: argparse.Namespace, overrides: Overrides, target: Target) -> int:
    """One check; 0 when it fits, 1 when not, 2 when there is no result."""
    try:
        result = check(load_config(options.config, overrides), target)
    except NO_RESULT as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        _write(options.json, result)
    print(page(result, target))
    return 0 if result["fits"] else 1


def run_search(options: argparse.Namespace, overrides: Overrides, target: Target) -> int:
    """A grid of checks; 0 when one of them fits, 1 when none does, 2 when there is no result."""
    try:
        policies, rows = search.read_grid(options.policies, options.rows)
        load_config(options.config, overrides)
        found = search.search(options.config, overrides, target, policies, rows, options.cache)
    except NO_RESULT as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        _write(options.json, found)
    print(search.page(found, target))
    return 0 if any(point.get("fits") for point in found) else 1


def _write(path, value) -> None:
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())
