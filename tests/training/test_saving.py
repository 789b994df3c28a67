"""Saves that fail: the run goes on, tries again, keeps what it has, and gives up in words."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_run import lines, make_run, numbers

from ar_omni_jax.checkpoint import SaveError, steps_in
from ar_omni_jax.training import saving
from ar_omni_jax.training.loop import FINISHED, train
from ar_omni_jax.training.saving import Saver

REPOSITORY = Path(__file__).parents[2]
ROOM = 64 * 1024  # bytes a file may have: a line of metrics fits, the state does not


class FlakyCheckpoints:
    """Saves whose start or whose end fails, by number; the others succeed."""

    def __init__(self, start=(), end=(), seconds=1.0):
        self.start, self.end, self.seconds = set(start), set(end), seconds
        self.count, self.pending, self.steps = 0, None, []

    def save(self, state, description):
        self.wait()
        self.count += 1
        if self.count in self.start:
            raise SaveError(f"saving step {description.step} failed: no space")
        self.pending = description.step, self.count in self.end

    def poll(self):
        self.wait()
        return True

    def wait(self):
        if self.pending is not None:
            (step, fails), self.pending = self.pending, None
            if fails:
                raise SaveError(f"saving step {step} failed: no space")
            self.steps.append(step)


class Place:
    def __init__(self, step):
        self.step = step


def make_saver(checkpoints):
    return Saver(checkpoints, 20, 30.0, -1)


@pytest.mark.parametrize("when", ["start", "end"])
def test_a_failed_save_is_told_and_tried_again(capsys, when):
    checkpoints = FlakyCheckpoints(**{when: [1, 2]})
    saver = make_saver(checkpoints)
    for step in range(1, 41):
        saver.look(step)
        if saver.due(step):
            saver.save(None, Place(step))
    saver.look(41)
    assert len(checkpoints.steps) == 2 and checkpoints.steps[-1] == 40 and 20 < checkpoints.steps[0] < 30
    assert saver.saved_step == 40
    told = capsys.readouterr().out
    assert told.count("Training goes on; next try after step") == 2


def test_gives_up_after_so_many_in_a_row(monkeypatch):
    monkeypatch.setattr(saving, "MAX_FAILED", 3)
    saver = make_saver(FlakyCheckpoints(start=range(100)))
    with pytest.raises(SaveError, match=r"3 saves failed in a row; last checkpoint: none. Make room"):
        for step in range(1, 100):
            if saver.due(step):
                saver.save(None, Place(step))
    assert step == 24
    saver = make_saver(FlakyCheckpoints(start=[1, 2, 4, 5]))
    for step in range(1, 100):
        saver.look(step)
        if saver.due(step):
            saver.save(None, Place(step))  # never three in a row


@pytest.mark.parametrize("when", ["start", "end"])
def test_the_last_save_is_tried_again_at_once(monkeypatch, capsys, when):
    monkeypatch.setattr(saving, "FINAL_PAUSE_S", 0.0)
    checkpoints = FlakyCheckpoints(**{when: [1, 2]})
    saver = make_saver(checkpoints)
    saver.save_and_wait(None, Place(7))
    assert checkpoints.steps == [7] and saver.saved_step == 7 and saver.is_saved(7)
    assert "trying again in 0 s, 1 more" in capsys.readouterr().out
    with pytest.raises(SaveError, match="no space"):
        make_saver(FlakyCheckpoints(**{when: [1, 2, 3]})).save_and_wait(None, Place(7))


def test_a_save_that_outlasts_the_grace_is_told_once(capsys):
    saver = make_saver(FlakyCheckpoints(seconds=41.0))
    for step in (20, 40):
        saver.save(None, Place(step))
        saver.look(step + 1)
    told = capsys.readouterr().out
    assert told.count("took 41 s, longer than the 30 s between SIGTERM and the kill") == 1


FULL_DISK = """
import os, resource, sys, time
sys.path.insert(0, {tests!r})
from fake_run import make_run
from ar_omni_jax.checkpoint import steps_in
from ar_omni_jax.training import loop, saving
saving.FINAL_PAUSE_S = 0.01
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
def run(folder, room, until, max_failed=10):
    saving.MAX_FAILED = max_failed
    def full(n):
        if n == 7:
            while os.listdir(folder + "/checkpoints") != ["5"]:  # written in the background
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        if n == until - 1:
            time.sleep(1.5)  # the save runs in the background, and must fail before there is room again
            print("kept while the disk was full:", steps_in(folder + "/checkpoints"))
        if n == until:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        print("outcome:", loop.train(make_run(folder, on_draw=full, width=100_000, keep_checkpoints=1)))
    except Exception as error:
        print("error:", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
"""


def run_on_a_full_disk(*calls):
    """What a process says that makes these calls of `run` above; the kernel refuses to write beyond the room."""
    code = FULL_DISK.format(tests=str(REPOSITORY / "tests" / "training")) + "\n".join(calls)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory):
    """(folder, stdout, stderr) of runs on a disk that takes no more state, takes nothing, and stays full."""
    folder = tmp_path_factory.mktemp("full")
    calls = [
        f"run({str(folder / 'state')!r}, {ROOM}, 14)",
        "print('----'); print('----', file=sys.stderr)",
        f"run({str(folder / 'all')!r}, 0, 14)",
        "print('----'); print('----', file=sys.stderr)",
        f"run({str(folder / 'stays')!r}, {ROOM}, 1000, 3)",
    ]
    out, err = run_on_a_full_disk(*calls)
    return folder, out.split("----"), err.split("----")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(make_run(folder, width=100_000, keep_checkpoints=1))
    return numbers(folder)


def test_a_full_disk_costs_nothing_when_there_is_room_again(full_disks, whole):
    folder, (out, *_), _ = full_disks
    assert "warning: saving step 10 under" in out and "Is the disk full" in out and "GB are free there" in out
    assert "kept while the disk was full: [5]" in out  # although one is kept: the next was never complete
    assert f"outcome: {FINISHED}" in out
    assert [p.name for p in (folder / "state" / "checkpoints").iterdir()] == ["20"]
    assert numbers(folder / "state") == whole


def test_metrics_wait_for_room(full_disks, whole):
    folder, (_, out, _), (_, err, _) = full_disks
    assert f"outcome: {FINISHED}" in out
    assert err.count("metrics.jsonl cannot be written") == 1 and "its lines wait in memory" in err
    assert "can be written again; nothing is missing in it" in err
    assert numbers(folder / "all") == whole
    assert "TensorBoard events in" in err  # those are lost, and training did not wait for them


def test_a_disk_that_stays_full_ends_the_run_with_what_was_saved(full_disks, whole):
    folder, (_, _, out), _ = full_disks
    assert "error: saving step" in out and "last checkpoint: step 5. Make room, then run the same command" in out
    left = [p.name for p in (folder / "stays" / "checkpoints").iterdir()]
    assert left == ["5"]  # no part of a failed save takes up room
    assert train(make_run(folder / "stays", width=100_000, keep_checkpoints=1)) == FINISHED
    assert numbers(folder / "stays") == whole


def test_checkpoints_deleted_under_a_run_are_made_again(tmp_path):
    def delete(n):
        if n == 12:
            shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)  # a save may be writing there

    assert train(make_run(tmp_path, on_draw=delete)) == FINISHED
    assert steps_in(tmp_path / "checkpoints")[-1] == 20
    assert [r["step"] for r in lines(tmp_path)] == [3, 6, 9, 12, 15, 18, 20]


PRINTS = """
import sys, time
sys.path.insert(0, {tests!r})
from fake_run import make_run
from ar_omni_jax.training.loop import train
train(make_run({folder!r}, on_draw=lambda n: time.sleep(0.05), log_every=1))
"""


def test_a_closed_terminal_does_not_end_a_run(tmp_path):
    code = PRINTS.format(tests=str(REPOSITORY / "tests" / "training"), folder=str(tmp_path))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.wait(timeout=300) == 0
    assert steps_in(tmp_path / "checkpoints")[-1] == 20
