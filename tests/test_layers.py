"""The walls of the house: who may import whom, what the core may never import, and how large a room may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("ar_omni_jax/**/*.py"), *ROOT.glob("data_pipelines/**/*.py")])

# Module prefix -> prefixes it must not import, at the top of a file or inside a function.
FORBIDDEN = {
    "ar_omni_jax.vocabulary": ("ar_omni_jax", "data_pipelines", "jax"),
    "ar_omni_jax.model": ("ar_omni_jax.training", "ar_omni_jax.decoding", "ar_omni_jax.evaluation", "data_pipelines"),
    "ar_omni_jax.parallel": ("ar_omni_jax.training", "ar_omni_jax.decoding", "data_pipelines"),
    "ar_omni_jax.training": ("ar_omni_jax.decoding", "ar_omni_jax.evaluation", "ar_omni_jax.main"),
    "ar_omni_jax.decoding": ("ar_omni_jax.training", "ar_omni_jax.evaluation", "data_pipelines"),
    "ar_omni_jax.tokenizers": ("ar_omni_jax.model", "ar_omni_jax.training", "ar_omni_jax.decoding"),
    "ar_omni_jax.templates": ("ar_omni_jax.model", "ar_omni_jax.training", "ar_omni_jax.decoding", "data_pipelines"),
    "data_pipelines": ("ar_omni_jax.model", "ar_omni_jax.training", "ar_omni_jax.decoding", "ar_omni_jax.evaluation"),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def imports(path: Path) -> set[str]:
    """Absolute names that a file imports anywhere, `from a import b` counting as a.b and a."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_imports_upwards(path):
    module = module_name(path)
    for owner, banned in FORBIDDEN.items():
        if within(module, owner):
            bad = {i for i in imports(path) for b in banned if within(i, b) and not within(i, owner)}
            assert not bad, f"{module} may not import {sorted(bad)}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400, "more than 400 lines: is it one concept?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"


def test_core_imports_neither_torch_nor_tensorflow():
    modules = [module_name(p) for p in SOURCES if p.name != "__main__.py"]
    code = f"""
import importlib, sys
for name in ("torch", "tensorflow", "transformers", "pocketsphinx", "espeakng_loader"):
    sys.modules[name] = None  # importing it raises ImportError
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
