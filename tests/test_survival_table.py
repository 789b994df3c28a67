"""docs/survival.md promises: every fault in its table has a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "survival.md"


def rows():
    """(fault, what is lost, message, tests) of every row of the fault table."""
    text = TABLE.read_text()
    lines = [line for line in text.split("## Faults", 1)[1].split("\n## ", 1)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def functions_in(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_table_is_large_enough_and_whole():
    assert len(rows()) >= 20
    assert all(len(row) == 4 and all(row) for row in rows())
    assert len({row[0] for row in rows()}) == len(rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_every_row_names_tests_that_exist(row):
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[3])
    assert named, f"no test for {row[0]!r}"
    for path, name in named:
        assert path.startswith("tests/") and name in functions_in(path), f"{path}::{name} does not exist"


def test_every_key_that_is_named_exists():
    from ar_omni_jax.config import KEYS

    named = re.findall(r"`(?:config\.)?((?:train|data|optimizer|loss|mesh|model)\.[\w.]+)`", TABLE.read_text())
    assert named and not [name for name in named if name not in KEYS]
