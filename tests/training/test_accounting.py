"""Useful arithmetic, memory and goodput; and a wall clock that nobody can trust."""

import re
import time

import pytest
from fake_run import lines, make_run, numbers, stop_at

from ar_omni_jax.model.config import TransformerConfig, chameleon_7b
from ar_omni_jax.training import accounting
from ar_omni_jax.training.accounting import Goodput, describe_flops, describe_mfu, memory
from ar_omni_jax.training.loop import FINISHED, train


@pytest.mark.parametrize(
    ("model", "length"),
    [(chameleon_7b(), 1300), (TransformerConfig(1000, 2, 16, 4, 2, 4, 32, tie_embeddings=True), 64)],
)
def test_the_formula_that_is_printed_gives_the_number_that_is_used(model, length):
    text = describe_flops(model, length)
    weights, layers, tokens, channels, total = (
        float(x.replace(",", ""))
        for x in re.search(
            r"6 x ([\d,.e+]+) M .* \+ 6 x (\d+) layers x (\d+) tokens x (\d+) channels .* = ([\d,.e+-]+) G;", text
        ).groups()
    )
    flops = 6 * weights * 1e6 + 6 * layers * tokens * channels
    assert flops == pytest.approx(model.flops_per_token(length), rel=1e-3)
    assert total * 1e9 == pytest.approx(model.flops_per_token(length), rel=1e-3)
    assert "causal attention, counted once" in text


def test_a_device_without_a_known_peak_is_told():
    assert "no MFU: the peak of 'cpu' is not known" in describe_mfu(None)
    assert "/ 989 TFLOP/s a device (NVIDIA H200, dense bfloat16)" in describe_mfu((989e12, "NVIDIA H200"))


def test_memory_of_devices_where_they_tell(monkeypatch):
    assert 0.01 < memory()["memory/host_peak_gib"] < 1000

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"bytes_in_use": self.peak / 2, "peak_bytes_in_use": self.peak} if self.peak else None

    monkeypatch.setattr(accounting.jax, "local_devices", lambda: [Device(2 * 2**30), Device(3 * 2**30), Device(0)])
    found = memory()
    assert (found["memory/device_in_use_gib"], found["memory/device_peak_gib"]) == (1.5, 3.0)


def test_goodput_counts_all_processes_and_only_steps_that_counted(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(accounting.time, "monotonic", lambda: clock[0])
    first = Goodput()
    clock[0] += 10
    first.add(6.0)
    assert first.share() == 0.6 and first.seconds == 10
    saved = first.to_json(1.0)
    clock[0] += 30  # and then it is killed, 40 seconds after its start, as its last log line says
    second = Goodput()
    second.resume(saved, 40.0)
    clock[0] += 10
    second.add(8.0)
    assert second.seconds == 50.0
    assert second.share() == pytest.approx(15 / 50)


def test_seconds_go_on_over_crashes_and_signals(tmp_path):
    stop, on_draw = stop_at(8)
    train(make_run(tmp_path, on_draw=on_draw), stop)
    with pytest.raises(RuntimeError):
        train(make_run(tmp_path, crash=16))
    lost = lines(tmp_path)[-1]
    assert train(make_run(tmp_path)) == FINISHED
    found = lines(tmp_path)
    assert [r["step"] for r in found] == [3, 6, 9, 12, 15, 18, 20]
    seconds = [r["run_seconds"] for r in found]
    assert seconds == sorted(seconds) and seconds[-1] > lost["run_seconds"]
    assert all(0 <= r["goodput"] <= 1 for r in found)
    assert sum(r.get("checkpoint_stall", 0.0) for r in found) > 0


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    train(make_run(tmp_path / "whole", eval_every=8))
    now = [time.time()]

    def backwards():
        now[0] -= 1000.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    stop, on_draw = stop_at(8)
    train(make_run(tmp_path / "parts", eval_every=8, on_draw=on_draw), stop)
    assert train(make_run(tmp_path / "parts", eval_every=8)) == FINISHED
    monkeypatch.undo()
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert all(0 <= r["goodput"] <= 1 and r["run_seconds"] >= 0 for r in lines(tmp_path / "parts"))
