"""Several real processes over gloo run the training command as a pod would, and give what one process gives."""

import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from hosts import STEPS, Hosts, learning, make_inputs, records

from ar_omni_jax.checkpoint import load_for_inference, steps_in

FOR_EVER = "--config.train.steps=1000000"
EXACT = ("step", "kind", "learning_rate", "skipped", "skipped_in_row", "tokens")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """The workdir of one process with two devices that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    with Hosts(inputs, workdir, 1, devices=2) as hosts:
        assert hosts.wait() == [0], hosts.told("failed")
    return workdir


def same_learning(workdir, reference):
    for kind in ("train", "validation"):
        assert learning(workdir, kind) == learning(reference, kind)


def test_a_signal_to_one_saves_on_all_and_one_process_goes_on(inputs, alone, tmp_path):
    """Two processes train, validate and save; SIGTERM comes to the second alone; one process restores the state.
    Sums of two terms have no order, so every number is equal to the bit."""
    workdir = tmp_path / "run"
    with Hosts(inputs, workdir, 2, slurm=True) as hosts:
        hosts.wait_for_step(44)
        hosts.processes[1].send_signal(signal.SIGTERM)
        assert hosts.wait() == [143, 143], hosts.told("codes differ")
        saved = steps_in(workdir / "checkpoints")[-1]
        assert 40 < saved < STEPS, hosts.told("it was over before the signal")
        assert f"saved step {saved}" in hosts.output(0) and "saved step" not in hosts.output(1)
    once = [r["step"] for r in records(workdir)]
    assert once == sorted(set(once)), "each line is written once, by the first process"
    with Hosts(inputs, workdir, 1, devices=2) as hosts:
        assert hosts.wait() == [0], hosts.told("failed")
        assert f"resuming after step {saved}" in hosts.output(0)
    same_learning(workdir, alone)


def test_two_processes_go_on_from_what_one_saved(inputs, alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    for step in steps_in(alone / "checkpoints")[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    with Hosts(inputs, workdir, 2) as hosts:
        assert hosts.wait() == [0, 0], hosts.told("failed")
        assert "resuming after step 40" in hosts.output(0) and "resuming" not in hosts.output(1)
    same_learning(workdir, alone)
    ours, theirs = load_for_inference(workdir), load_for_inference(alone)
    assert ours.step == theirs.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.slow
def test_four_processes_save_and_two_go_on(inputs, alone, tmp_path):
    """Four processes with a device each train, validate and save when the last of them is told to stop; two with two
    devices each restore the state. Sums of four terms have an order, so losses agree to rounding with those of two
    devices; whatever is counted is equal."""
    workdir = tmp_path / "run"
    with Hosts(inputs, workdir, 4) as hosts:
        hosts.wait_for_step(44)
        hosts.processes[3].send_signal(signal.SIGTERM)
        assert hosts.wait() == [143] * 4, hosts.told("codes differ")
        saved = steps_in(workdir / "checkpoints")[-1]
        assert 40 < saved < STEPS, hosts.told("it was over before the signal")
    with Hosts(inputs, workdir, 2, devices=2) as hosts:
        assert hosts.wait() == [0, 0], hosts.told("failed")
        assert f"resuming after step {saved}" in hosts.output(0)
    for kind in ("train", "validation"):
        found, expected = learning(workdir, kind), learning(alone, kind)
        assert [r["step"] for r in found] == [r["step"] for r in expected], "each line once, by the first process"
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                assert ours[name] == (value if name in EXACT else pytest.approx(value, rel=1e-3)), (name, theirs)
    assert load_for_inference(workdir).step == STEPS


def test_without_the_first_process_the_others_end_and_name_its_host(inputs, tmp_path):
    with Hosts(inputs, tmp_path / "run", 2, FOR_EVER) as hosts:
        hosts.wait_for_step(8)
        hosts.processes[0].kill()
        start = time.monotonic()
        codes = hosts.wait()
        assert codes[1] not in (0, 1), codes
        assert time.monotonic() - start < 60
        assert f"lost process 0 of 2 ({os.uname().nodename}, pid {hosts.processes[0].pid})" in hosts.output(1)


def test_an_error_of_one_ends_all_with_its_words(inputs, tmp_path):
    own = {1: (f"--config.data.path={tmp_path / 'nowhere'}",)}
    with Hosts(inputs, tmp_path / "run", 2, own=own, lost_seconds=30) as hosts:
        assert hosts.wait() == [1, 1], hosts.told("codes differ")
        assert "error: no packed data in" in hosts.output(1)
        assert "process 1 of 2" in hosts.output(0) and "failed: no packed data in" in hosts.output(0)


def test_a_lost_process_is_named_by_the_first(inputs, tmp_path):
    with Hosts(inputs, tmp_path / "run", 2, FOR_EVER) as hosts:
        hosts.wait_for_step(8)
        hosts.processes[1].kill()
        start = time.monotonic()
        assert hosts.wait() == [75, -signal.SIGKILL], hosts.told("codes differ")
        assert time.monotonic() - start < 100
        who = f"lost process 1 of 2 ({os.uname().nodename}, pid {hosts.processes[1].pid}): no sign of life for 20 s"
        assert who in hosts.output(0), hosts.told("not named")
        assert "the same command resumes from the last checkpoint" in hosts.output(0)
