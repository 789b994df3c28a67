"""The launch scripts as far as a shell decides it: folders with blanks, interruptions, settings checked first.

Python itself is a script that writes down what it is asked, so that nothing is installed and nothing is trained.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
PYTHON = """#!/usr/bin/env bash
here=$(dirname "$0")
printf '%s\\n' "$*" >>"$LOG"
if [ -n "$FAIL" ] && [[ $* == *$FAIL* ]]; then exit 7; fi
case "$*" in
  "-c import pip") [ -e "$here/pip" ] ;;
  "-c "*) exit 0 ;;
  --version) echo "Python 3.11.0" ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    if [ -n "${INTERRUPT:-}" ]; then exit 130; fi
    touch "$3/bin/pip"
    ;;
  *--check) echo "rows: 640 tokens, 4 a step" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with a blank, its log of commands and a way to start its main job."""
    root = tmp_path / "a checkout"
    (root / "launch").mkdir(parents=True)
    for script in LAUNCH.glob("*.sh"):
        shutil.copy(script, root / "launch")
    (root / "setup.py").write_text("")
    python = tmp_path / "a python" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments, **variables):
        log.write_text("")
        named = {"PYTHON": python, "VENV": tmp_path / "an environment", "WORKDIR": tmp_path / "a run", "LOG": log}
        environment = os.environ | {k: str(v) for k, v in (named | {"FAIL": ""} | variables).items()}
        for name in {"STEPS", "SCENES", "SPOKEN", "LIMIT", "CONFIG"} - set(variables):
            environment.pop(name, None)
        command = ["bash", root / "launch" / "run_local.sh", *arguments]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120)
        return done, log.read_text()

    return run


def test_every_folder_may_have_blanks_in_its_name(checkout, tmp_path):
    done, log = checkout("--config.train.init_from=an other", STEPS=5)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "a run"
    training = f"--workdir={run}/train --config.data.path={run}/packed --config.train.steps=5 "
    training += "--config.train.init_from=an other"
    assert f"-m pip install --quiet --disable-pip-version-check --editable {tmp_path}/a checkout[demo]\n" in log
    assert f"-m ar_omni_jax.main --config=configs/toyworld.py {training}\n" in log
    assert f"-m data_pipelines.pack_shards --input={run}/shards --output={run}/packed --length=640\n" in log
    assert f"--editable {tmp_path}" not in checkout()[1], "installed twice"
    asked = next(line for line in done.stdout.splitlines() if line.startswith("ask it"))
    split = ["bash", "-c", f"printf '%s\\n' {asked}"]
    words = subprocess.run(split, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[2] == f"{tmp_path}/an environment/bin/python" and f"--checkpoint={run}/train" in words


def test_settings_are_checked_before_data_are_made(checkout):
    done, log = checkout("--config.train.stesp=3", FAIL="--check")
    assert done.returncode == 7
    assert "--config.train.stesp=3 --check" in log
    assert "toyworld --output" not in log


def test_an_environment_whose_making_was_interrupted_is_made_again(checkout):
    done, log = checkout(INTERRUPT=1)
    assert done.returncode == 130 and "pip install" not in log
    done, log = checkout()
    assert done.returncode == 0 and "-m venv" in log and "pip install" in log


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYTHON": "/no/such python"}, "No Python >= 3.11 among: /no/such python."),
        ({"WORKDIR": "/proc/nowhere"}, "/proc/nowhere"),
        ({"LIMIT": "1"}, "LIMIT=1: give a number of at least 2"),
        ({"LIMIT": "some"}, "LIMIT=some: give a number of at least 2"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_installed(checkout, variables, message):
    done, log = checkout(**variables)
    assert done.returncode in (1, 2) and message in done.stderr
    assert "pip install" not in log


def test_a_step_that_fails_ends_the_job(checkout):
    done, log = checkout(FAIL="pack_shards")
    assert done.returncode == 7
    assert "ar_omni_jax.evaluate" not in log and "report " not in done.stdout
