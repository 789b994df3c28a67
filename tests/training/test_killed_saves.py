"""kill -9 in the middle of a save: at many moments of it, the run goes on as if nothing had happened."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_run import make_run, numbers

from ar_omni_jax.checkpoint import steps_in
from ar_omni_jax.training.loop import FINISHED, train

REPOSITORY = Path(__file__).parents[2]
WIDTH = 100_000


def run_killed(folder, *moments):
    """What killed_saves.py says about runs that were killed at `moments`."""
    paths = (REPOSITORY, REPOSITORY / "tests" / "training")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, str(paths[1] / "killed_saves.py"), str(folder), str(WIDTH), *moments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(make_run(folder, width=WIDTH, keep_checkpoints=1))
    return numbers(folder)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_of_a_save_goes_on_bitwise(tmp_path, whole, caplog, capsys):
    told = run_killed(tmp_path / "count")
    events = int(re.search(r"(\d+) events", told)[1])
    assert events > 20, told
    names = [str(1 + k * (events - 1) // 6) for k in range(7)] + ["0.01s"]
    told = run_killed(tmp_path, *names)
    assert told.count(": killed") >= 5, told
    newest = set()
    for name in names:
        if f"moment {name}: lived" in told:  # that save took fewer steps or less time
            continue
        checkpoints = tmp_path / name / "checkpoints"
        assert steps_in(checkpoints)[-1] in (5, 10)
        newest.add(steps_in(checkpoints)[-1])
        assert train(make_run(tmp_path / name, width=WIDTH, keep_checkpoints=1)) == FINISHED
        assert numbers(tmp_path / name) == whole, name
        left = [p.name for p in checkpoints.iterdir()]
        assert left == ["20"], name  # no leftover takes up room
    assert newest == {5, 10}  # before and after the moment at which the save counts
    assert "set aside" not in caplog.text  # what a kill leaves behind is no damage
