"""launch/run_instruct.sh as far as a shell decides it: what it needs, in which order, and with which settings.

Python itself is a script that writes down what it is asked, so that nothing is installed and nothing is trained.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$LOG"
if [ -n "$FAIL" ] && [[ $* == *$FAIL* ]]; then exit 7; fi
case "$*" in
  --version) echo "Python 3.11.0" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *--check) echo "rows: 768 tokens, 3 a step" ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """A way to run the script of a checkout whose folder has a blank; returns the process and its log of commands."""
    root, log = tmp_path / "a checkout", tmp_path / "log"
    (root / "launch").mkdir(parents=True)
    for name in ("run_instruct.sh", "environment.sh"):
        shutil.copy(LAUNCH / name, root / "launch")
    (root / "setup.py").write_text("")
    python = tmp_path / "a python" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    main_job = tmp_path / "main job"
    (main_job / "train" / "checkpoints").mkdir(parents=True)
    (main_job / "toy").mkdir()
    (main_job / "toy" / "test.jsonl").write_text("")

    def run(*arguments, **variables):
        log.write_text("")
        named = {"PYTHON": python, "VENV": tmp_path / "an environment", "LOG": log, "FAIL": ""}
        named |= {"WORKDIR": tmp_path / "a run", "FROM": main_job}
        environment = os.environ | {k: str(v) for k, v in (named | variables).items()}
        for name in {"STEPS", "SCENES", "LIMIT", "CONFIG"} - set(variables):
            environment.pop(name, None)
        command = ["bash", root / "launch" / "run_instruct.sh", *arguments]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120)
        return done, log.read_text()

    return run


def test_the_steps_and_their_settings(script, tmp_path):
    done, log = script("--config.optimizer.peak_lr=5e-4", STEPS=7, SCENES=50, LIMIT=4)
    assert done.returncode == 0, done.stderr
    run, base = tmp_path / "a run", tmp_path / "main job"
    lines = [line for line in log.splitlines() if "ar_omni_jax." in line or "data_pipelines" in line]
    training = f"-m ar_omni_jax.main --config=configs/instruct_toyworld.py --workdir={run}/train "
    training += f"--config.data.path={run}/packed --config.train.init_from={base}/train --config.train.steps=7 "
    training += "--config.optimizer.peak_lr=5e-4"
    assert lines[0] == f"{training} --check" and training in lines
    assert f"-m data_pipelines.toyworld --dialogues --output={run}/toy --size=50" in lines
    assert f"-m data_pipelines.pack_shards --input={run}/shards --output={run}/packed --length=768" in lines
    scored = [line for line in lines if "ar_omni_jax.evaluate " in line]
    assert [line.split("--output=")[1].split(" --")[0] for line in scored] == [
        f"{run}/evaluation/{name}" for name in ("dialogues", "dialogues_before", "one_shot", "one_shot_before")
    ]
    for line, checkpoint, data in zip(scored, (run, base) * 2, (run, run, base, base), strict=True):
        assert f"--checkpoint={checkpoint}/train --limit=4 " in line and f"--data={data}/toy/test.jsonl" in line
    assert lines[-1] == f"-m ar_omni_jax.evaluation.instruct_page --run={run} --output={run}/report"
    asked = next(line for line in done.stdout.splitlines() if line.startswith("ask it"))
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {asked}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert f"--checkpoint={run}/train" in words


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FROM": "/nowhere"}, "FROM=/nowhere has no train/checkpoints: run the main job first"),
        ({"LIMIT": "1"}, "LIMIT=1: give a number of at least 2"),
        ({"WORKDIR": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_installed(script, variables, message):
    done, log = script(**variables)
    assert done.returncode in (1, 2) and message in done.stderr
    assert "pip install" not in log


def test_settings_are_checked_before_data_are_made(script):
    done, log = script("--config.train.stesp=3", FAIL="--check")
    assert done.returncode == 7 and "toyworld --dialogues" not in log


def test_a_step_that_fails_ends_the_job(script):
    done, log = script(FAIL="pack_shards")
    assert done.returncode == 7
    assert "ar_omni_jax.evaluate" not in log and "page " not in done.stdout
