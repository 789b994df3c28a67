"""Windows of metrics, speed and the files of numbers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ar_omni_jax.training import metrics
from ar_omni_jax.training.metrics import Stopwatch, Window, means_of_sums, speed
from ar_omni_jax.training.progress import progress_line
from ar_omni_jax.training.writers import Writers, kept_lines


def step(nll, count, loss, skipped=0.0, in_row=0.0):
    values = {"nll/text": nll, "count/text": count, "nll_task/asr": nll, "count_task/asr": count, "loss": loss}
    values |= {"tokens": 2 * count, "weight": count, "weighted_nll": nll, "learning_rate": loss / 10}
    values |= {"skipped": skipped, "skipped_in_row": in_row}
    return {name: jnp.float32(value) for name, value in values.items()}


def test_means_weigh_steps_by_their_tokens():
    window = Window()
    window.add(step(nll=6.0, count=2, loss=3.0))
    window.add(step(nll=4.0, count=8, loss=0.5))
    means = window.means()
    assert means["nll/text"] == means["nll_task/asr"] == 1.0
    assert means["loss"] == 1.75  # of steps, as they were taken
    assert means["learning_rate"] == pytest.approx(0.05)  # the last one
    assert window.tokens == {"all": 20.0, "text": 10.0}


def test_the_perceptual_loss_is_the_mean_over_images_not_over_steps():
    """Half of the steps may have no image: they say nothing about it."""
    window = Window()
    for total, count in ((6.0, 3.0), (0.0, 0.0), (4.0, 1.0)):
        values = {"perceptual_sum": total, "perceptual_count": count, "perceptual": total / max(count, 1.0)}
        window.add(step(nll=1.0, count=2, loss=1.0) | {name: jnp.float32(x) for name, x in values.items()})
    assert window.means()["perceptual"] == 2.5


def test_skipped_steps_count_and_nothing_else():
    window = Window()
    window.add(step(nll=6.0, count=2, loss=3.0))
    window.add(step(nll=0.0, count=0, loss=float("nan"), skipped=1.0, in_row=1.0))
    means = window.means()
    assert means["loss"] == 3.0
    assert means["skipped"] == 1.0
    assert window.skipped_in_row == 1


def test_a_window_goes_on_after_json_as_if_nothing_had_happened():
    rng = np.random.default_rng(0)
    steps = [step(*rng.uniform(1, 2, 3)) for _ in range(7)]
    whole = Window()
    for each in steps:
        whole.add(each)
    first = Window()
    for each in steps[:4]:
        first.add(each)
    second = Window(json.loads(json.dumps(first.to_json())))
    for each in steps[4:]:
        second.add(each)
    assert second.means() == whole.means()
    assert second.steps == 7


def test_sums_without_tokens_give_no_mean():
    assert means_of_sums({"nll/text": 0.0, "count/text": 0.0, "tokens": 3.0}) == {}
    assert means_of_sums({"perceptual_sum": 6.0, "perceptual_count": 4.0}) == {"perceptual": 1.5}


def test_mfu_is_useful_work_by_possible_work(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    watch, window = Stopwatch(), Window()
    window.add(step(nll=1.0, count=50, loss=1.0))
    clock[0] += 2.0
    with watch.paused():
        clock[0] += 98.0  # a validation
    rates = speed(window, watch, flops_per_token=10.0, peak=1000.0 / metrics.jax.device_count())
    assert rates["tokens_per_second/all"] == 50.0
    assert rates["tokens_per_second/text"] == rates["tokens_per_second_task/asr"] == 25.0
    assert rates["flops_per_second"] == 500.0
    assert rates["mfu"] == 0.5
    assert "mfu" not in speed(window, watch, 10.0, None)


def test_peaks_are_matched_to_the_most_specific_kind(monkeypatch):
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    def peak(kind):
        monkeypatch.setattr(metrics.jax, "devices", lambda: [Device(kind)])
        found = metrics.peak_flops()
        return found and found[0]

    assert peak("NVIDIA H100 PCIe") == 756e12
    assert peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("TPU v5 lite") == 197e12
    assert peak("TPU v5") == 459e12
    assert peak("TPU v9") is peak("cpu") is None


def test_progress_line_says_what_matters():
    values = {"loss": 1.5, "nll/text": 2.0, "perceptual": 0.125, "grad_norm": 0.25, "skipped": 1.0}
    rates = {"tokens_per_second/all": 1000.0, "tokens_per_second/text": 400.0, "input_wait": 0.1}
    rates |= {"flops_per_second": 2e9, "mfu": 0.5}
    line = progress_line(3, 10, values, rates, 3725)
    for words in ("step 3/10", "loss 1.5", "text 2.0", "perceptual 0.125", "|g| 0.25", "SKIPPED 1"):
        assert words in line
    assert "1,000 tokens/s (text 400)" in line
    assert line.endswith("MFU 50.0%  input wait 10%  1h02m left")
    del rates["mfu"]
    assert "2 GFLOP/s  input wait" in progress_line(3, 10, values, rates, 1)
    assert "left" not in progress_line(1, 10, values, {}, None)


def test_kept_lines_end_at_the_restored_step():
    text = '{"step": 1}\n{"step": 2}\nrubbish\n{"step": 3}\n{"kind": "train"}\n{"step": 2, "kind'
    assert kept_lines(text, 2) == ['{"step": 1}', '{"step": 2}']


def test_numbers_that_are_none_are_null(tmp_path):
    writers = Writers(tmp_path, 0)
    writers.scalars(1, "train", {"loss": float("nan"), "tokens": 3.0})
    writers.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "kind": "train",
        "loss": None,
        "tokens": 3.0,
    }


def test_other_processes_write_nothing(tmp_path):
    writers = Writers(tmp_path, 0, primary=False)
    writers.scalars(1, "train", {"loss": 1.0})
    writers.samples(1, [])
    writers.close()
    assert list(tmp_path.iterdir()) == []
