"""Naming what a run waits for."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ar_omni_jax.training.watchdog import HUNG, Watchdog

REPOSITORY = Path(__file__).parents[2]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make(clock, left=None, **options):
    return Watchdog(clock=clock, leave=(left if left is not None else []).append, **({"warn_s": 60.0} | options))


def test_says_what_is_waited_for_and_after_twice_as_long_again(caplog):
    clock = Clock()
    dog = make(clock)
    dog.finished(16)
    with dog.doing("waiting for batch 17 of the train loader"):
        for seconds in (59, 2, 10, 60, 100):  # told at 61 and 131 seconds
            clock.now += seconds
            dog.look()
    told = [r.getMessage() for r in caplog.records]
    assert told[:2] == [
        "process 0 of 1: waiting for batch 17 of the train loader for 61 s; last step finished: 16.",
        "process 0 of 1: waiting for batch 17 of the train loader for 131 s; last step finished: 16.",
    ]
    assert told[2:] == ["process 0 of 1: waiting for batch 17 of the train loader ended after 231 s"]


def test_progress_is_not_named(caplog):
    clock = Clock()
    dog = make(clock)
    for step in range(10):
        with dog.doing(f"step {step}"):
            clock.now += 50
            dog.look()
    assert not caplog.records


def test_ends_the_process_only_where_it_is_asked_to(capfd):
    for exit_s, patient, codes in ((0.0, False, []), (120.0, True, []), (120.0, False, [HUNG])):
        clock, left = Clock(), []
        dog = make(clock, left, exit_s=exit_s)
        with dog.doing("step 3 is running", patient=patient):
            clock.now += 121
            dog.look()
        assert left == codes
    told = capfd.readouterr().err
    assert "error: process 0 of 1: step 3 is running for 121 s; last step finished: 0." in told
    assert "the same command resumes" in told and "most recent call first" in told  # the stacks


def test_names_the_process_that_is_behind(tmp_path, caplog):
    clock = Clock()
    dogs = [make(clock, process=n, processes=3, folder=tmp_path) for n in range(3)]
    for dog, step in zip(dogs, (17, 17, 16), strict=True):
        dog.finished(step)
    with dogs[2].doing("waiting for batch 17 of the train loader"), dogs[1].doing("step 18 is running"):
        dogs[1].look()
        dogs[2].look()
        with dogs[0].doing("step 18 is running"):
            clock.now += 61
            dogs[0].look()
    behind = "Behind: process 2 (last step 16, waiting for batch 17 of the train loader)."
    assert caplog.records[0].getMessage().endswith(behind)
    caplog.clear()
    long_ago = time.time() - 600
    os.utime(tmp_path / "1.json", (long_ago, long_ago))
    with dogs[0].doing("step 18 is running"):
        clock.now += 61
        dogs[0].look()
    assert "process 1 (last step 17, step 18 is running, silent for 600 s)" in caplog.records[0].getMessage()


def test_what_a_run_of_more_processes_left_is_nobodys_place(tmp_path):
    (tmp_path / "2.json").write_text(json.dumps({"step": 3, "doing": "step 4 is running"}))
    dog = make(Clock(), process=0, processes=2, folder=tmp_path)
    dog.finished(9)
    dog.look()
    assert dog.describe("x", 1.0).endswith("last step finished: 9.")


def test_a_half_written_place_of_another_process_is_passed_over(tmp_path):
    dog = make(Clock(), process=0, processes=2, folder=tmp_path)
    (tmp_path / "1.json").write_text('{"st')
    dog.look()
    assert dog.describe("x", 1.0).endswith("last step finished: 0.")
    assert json.loads((tmp_path / "0.json").read_text()) == {"step": 0, "doing": "starting"}


RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from fake_run import make_run
from ar_omni_jax.training.loop import train
def starve(n):
    if n == 7:
        time.sleep(3600)
train(make_run({folder!r}, on_draw=starve, hang_exit_s=5.0))
"""


def test_a_starved_run_is_named_ended_with_its_own_code_and_can_resume(tmp_path):
    code = RUN.format(tests=str(REPOSITORY / "tests" / "training"), folder=str(tmp_path))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == HUNG == 75, run.stderr
    assert "waiting for batch 8 of the train loader (starved input" in run.stderr
    assert "last step finished: 6" in run.stderr or "last step finished: 7" in run.stderr
    assert "config.train.hang_exit_s = 5" in run.stderr
    assert (tmp_path / "checkpoints" / "5").is_dir()
