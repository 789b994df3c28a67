"""What the loop's stopwatch and watchdog make of time, on a device that works while the loop goes on."""

import dataclasses
import threading
import time

import jax
import numpy as np
import pytest
from fake_run import lines, make_run

from ar_omni_jax.training import loop, metrics
from ar_omni_jax.training.loop import train
from ar_omni_jax.training.metrics import Idle, Stopwatch
from ar_omni_jax.training.signals import StopSignal
from ar_omni_jax.training.watchdog import Watchdog

SECONDS = 0.03  # of a step


class Later:
    """A result that the device has at a given moment."""

    def __init__(self, value, at):
        self.value, self.at = np.asarray(value), at

    def block_until_ready(self):
        time.sleep(max(0.0, self.at - time.monotonic()))
        return self

    def is_ready(self):
        return time.monotonic() >= self.at

    def __array__(self, dtype=None, copy=None):
        return self.block_until_ready().value


def on_a_device(run):
    """`run`, whose steps take SECONDS one after the other while the loop goes on; `device["loss"]` is of the last."""
    step, device = run.trainer.train_step, {"free": 0.0}

    def train_step(state, batch):
        state, found = step(state, batch)
        device["free"] = max(device["free"], time.monotonic()) + SECONDS
        found = {name: Later(value, device["free"]) for name, value in found.items()}
        device["loss"] = found["loss"]
        return state, found

    run.trainer.train_step = train_step
    return run, device


class Asking(StopSignal):
    """Several processes ask each other over the devices, which finish the step first."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def agreed(self, step, every):
        self.device["loss"].block_until_ready()
        return False


@pytest.mark.parametrize("asking", [False, True], ids=["one process", "several"])
def test_no_step_is_faster_than_the_device(tmp_path, asking):
    """Neither the first line, with its step that compiled, nor one whose processes asked each other."""
    run, device = on_a_device(make_run(tmp_path, checkpoint_every=100))
    train(run, Asking(device) if asking else None)
    rates = [record["tokens_per_second/all"] for record in lines(tmp_path)]
    assert len(rates) == 7 and max(rates) <= 1.02 * 16 / SECONDS
    assert all(r["tokens_per_second/text"] == pytest.approx(r["tokens_per_second/all"] / 2) for r in lines(tmp_path))


def test_a_pause_is_not_counted_while_it_lasts_either(monkeypatch):
    """A checkpoint that is written after a validation holds the useful seconds so far."""
    clock = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    watch = Stopwatch()
    clock[0] += 2.0
    with watch.paused():
        clock[0] += 60.0
        assert watch.seconds == 2.0
    clock[0] += 1.0
    assert watch.seconds == 3.0


def test_input_wait_is_the_time_in_which_the_device_had_nothing_to_do(monkeypatch):
    done, clock = threading.Event(), [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])

    class Result:
        def block_until_ready(self):
            done.wait(60)

    nothing, step = Idle(None), Idle(Result())
    clock[0] += 5.0
    assert (nothing.seconds(), step.seconds()) == (5.0, 0.0)
    clock[0] += 1.0
    done.set()
    while step._since is None:
        time.sleep(0.001)
    clock[0] += 0.5
    assert (nothing.seconds(), step.seconds()) == (6.5, 0.5)


# ---------------------------------------------------------------------------------------------------- the watchdog


@pytest.fixture
def dog(monkeypatch):
    """The run's watchdog once it is made, on a clock of its own; `ended` has the codes with which it ended the run."""
    made = type("Made", (), {"now": 1000.0, "ended": []})()

    def make(**options):
        made.dog = Watchdog(clock=lambda: made.now, leave=made.ended.append, **options)
        return made.dog

    monkeypatch.setattr(loop, "Watchdog", make)
    return made


def test_every_place_of_the_loop_has_a_name_and_may_be_ended(tmp_path, monkeypatch, dog):
    found = {}

    class Noting(StopSignal):
        def agreed(self, step, every):
            found["asking"] = dog.dog._at
            return False

    write = loop.Writers.scalars
    monkeypatch.setattr(loop.Writers, "scalars", lambda *a: found.update(writing=dog.dog._at) or write(*a))
    train(make_run(tmp_path, steps=6), Noting())
    assert found["asking"][0].startswith("step 6 is running on the devices") and found["asking"][2]
    assert found["writing"][0] == "between two steps" and found["writing"][2]


def test_a_long_validation_is_no_hang(tmp_path, dog):
    run = make_run(tmp_path, steps=8, eval_every=8, eval_batches=3, hang_exit_s=120.0)
    evaluate = run.trainer.eval_step

    def eval_step(state, batch):
        dog.now += 70.0
        dog.dog.look()
        return evaluate(state, batch)

    run.trainer.eval_step = eval_step
    train(run)
    assert dog.ended == [] and len(lines(tmp_path, "validation")) == 1


def test_a_validation_that_hangs_is_ended(tmp_path, dog):
    run = make_run(tmp_path, steps=16, eval_every=8, eval_batches=3, hang_exit_s=120.0)
    opened = []

    def open_loader(split, start):
        loader = run.open_loader(split, start)
        if split == "validation":
            opened.append(loader)
            loader.on_draw = hang if len(opened) == 2 else None
        return loader

    def hang(n):
        if n == 1 and not dog.ended:
            dog.now += 121.0
            dog.dog.look()

    train(dataclasses.replace(run, open_loader=open_loader))
    assert dog.ended == [75]


def test_results_that_come_later_are_results():
    assert jax.device_get({"a": Later(1.5, 0.0)})["a"] == 1.5
