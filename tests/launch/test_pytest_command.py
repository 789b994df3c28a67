"""The tests that the documentation names are run as it writes them: by `pytest`, which has no checkout in its path."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pytest_finds_the_packages_that_folders_of_tests_are_named_after():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # As the console script starts it: without the folder it is called in.
    script = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    words = [
        sys.executable,
        "-c",
        script,
        "--collect-only",
        "-q",
        "tests/data_pipelines/toyworld/test_toyworld_scene.py",
    ]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
