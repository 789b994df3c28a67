"""Profiler traces of chosen steps."""

import dataclasses
import os
import signal

import pytest
from fake_run import make_run, numbers

from ar_omni_jax.training import profiler
from ar_omni_jax.training.loop import FINISHED, train
from ar_omni_jax.training.profiler import ProfileError, parse_steps


def traces(workdir):
    return sorted({path.relative_to(workdir).parts[2] for path in (workdir / "profile").rglob("*.xplane.pb")})


def test_steps_are_read():
    assert parse_steps("20:22") == (20, 22)
    assert parse_steps("1:1") == (1, 1)
    for wrong in ("20", "3:2", "0:4", "a:b", ":3", "3:", "-1:2"):
        with pytest.raises(ProfileError, match=f"--profile={wrong}: give the first and the last step"):
            parse_steps(wrong)


def test_given_steps_and_those_after_a_signal_are_traced_and_change_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(profiler, "ON_SIGNAL", 2)
    before = signal.getsignal(signal.SIGUSR1)
    train(make_run(tmp_path / "plain"))

    def ask(n):
        if n == 10:
            os.kill(os.getpid(), signal.SIGUSR1)

    run = dataclasses.replace(make_run(tmp_path / "traced", on_draw=ask), profile=(4, 5))
    assert train(run) == FINISHED
    assert traces(tmp_path / "traced") == ["step_0000004", "step_0000011"]
    told = capsys.readouterr().out
    assert "step 4  tracing to step 5" in told and "step 12  trace written" in told
    assert numbers(tmp_path / "traced") == numbers(tmp_path / "plain")
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_profiler_that_fails_does_not_end_training(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("another profiler is running")

    monkeypatch.setattr(profiler.jax.profiler, "start_trace", fail)
    assert train(dataclasses.replace(make_run(tmp_path), profile=(4, 5))) == FINISHED
    assert "no profiler trace of step 4: another profiler is running" in caplog.text
