"""The benchmark of an accelerator, tried on a CPU: a point's work, its figures, and what is said of points without."""

import json

import numpy as np
import pytest

from ar_omni_jax.benchmarks import accelerator
from ar_omni_jax.benchmarks.accelerator_plan import INSTRUCT, POINTS, SIZES
from ar_omni_jax.benchmarks.accelerator_step import full_rows
from ar_omni_jax.config import load_config, model_config
from ar_omni_jax.vocabulary import chameleon_vocabulary

ANSWER = {
    "block_seconds": [2.0, 1.0, 4.0], "steps": 2, "losses": [11.0, 10.5], "skipped": 0, "useful_tokens": 900,
    "places": 1000, "flops_per_token": 10, "peak_flops": 18000.0, "compile_seconds": 3.0, "compiled_bytes": 2**31,
    "memory": {"memory/device_peak_gib": 2.5}, "attention": "cudnn", "formula": ["FLOP a token = ...", "MFU = ..."],
    "machine": {"devices": 1, "device": "NVIDIA H200 (gpu)", "processor": "P", "cores": 2, "jax": "0"},
}  # fmt: skip


def options(tmp_path, *words):
    return accelerator.parse_arguments([f"--output={tmp_path / 'record.json'}", *words])


def test_points_have_names_and_settings_that_go_together():
    assert len({point.name for point in POINTS}) == len(POINTS)
    assert {point.size for point in POINTS} == set(SIZES)
    for point in POINTS:
        config = load_config(point.spec, point.settings(devices=1))
        model = model_config(config.model, chameleon_vocabulary().size)
        assert config.data.batch_size == point.rows and config.model.packed_rows == (point.documents > 1)
        if point.size != "tiny":
            assert config.data.length == (3456 if point.spec == INSTRUCT else 1300)
            low, high = {"1b": (1.0e9, 1.2e9), "7b": (7.0e9, 7.1e9)}[point.size]
            assert low < model.parameter_count() < high
    assert load_config(POINTS[0].spec, POINTS[0].settings(8)).data.batch_size == 8 * POINTS[0].rows


@pytest.mark.parametrize(("length", "documents"), [(1300, 1), (1300, 4), (64, 3)])
def test_rows_are_full(length, documents):
    vocabulary = chameleon_vocabulary()
    batch = full_rows(vocabulary, 2, length, documents, 0)
    assert batch["tokens"].shape == (2, length) and (batch["segment_ids"] > 0).all()
    assert (batch["segment_ids"].max(1) == documents).all()
    assert (batch["loss_weights"] > 0).sum() > length  # more than one of the two rows is learned
    image = vocabulary.image
    pictures = ((batch["tokens"] >= image.start) & (batch["tokens"] < image.start + image.count)).sum()
    assert pictures == (2 * vocabulary.image_length if (length, documents) == (1300, 1) else 0)
    assert not np.array_equal(batch["tokens"], full_rows(vocabulary, 2, length, documents, 1)["tokens"])


def test_figures_follow_from_the_middle_block():
    found = accelerator.summary(ANSWER)
    assert found["step_seconds"] == 1.0 and found["tokens_per_second"] == 900.0
    assert found["mfu"] == 900 * 10 / 18000 and found["spread"] == 1.5
    assert accelerator.summary(ANSWER | {"peak_flops": None})["mfu"] is None
    for nothing in ({"skipped": 1}, {"losses": [11.0, float("nan")]}):
        with pytest.raises(accelerator.PointFailed, match="measures nothing"):
            accelerator.summary(ANSWER | nothing)


def test_a_point_that_fails_costs_itself_alone(tmp_path, monkeypatch, capsys):
    asked = []

    def ask(number, options, seconds):
        asked.append((POINTS[number].name, seconds))
        if POINTS[number].documents > 1:
            return ANSWER | {"useful_tokens": 675, "attention": "blocked"}
        if POINTS[number].rows == 8:
            raise accelerator.PointFailed("exit code 1: RESOURCE_EXHAUSTED: out of memory")
        return ANSWER

    monkeypatch.setattr(accelerator, "ask", ask)
    output = tmp_path / "record.json"
    assert accelerator.main(["--only=7b", f"--output={output}"]) == 0
    points = json.loads(output.read_text())["points"]
    assert list(points) == [point.name for point in POINTS if point.size == "7b"] == [name for name, _ in asked]
    assert all(seconds <= 180 for _, seconds in asked)
    assert "RESOURCE_EXHAUSTED" in points["7b 8 x zero_recompute, optimizer.moment_dtype=bfloat16"]["error"]
    page = capsys.readouterr().out
    assert "MFU 50.0%" in page and "FLOP a token = ..." in page and "the goal, 55% MFU, is not met" in page
    assert "packed rows win where one document a row would leave more than 25.0% padding" in page


def test_no_time_left_is_said_and_a_size_without_a_figure_is_no_success(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "ask", lambda *_: pytest.fail("there was no time"))
    assert accelerator.main(["--only=1b", "--seconds=20", f"--output={tmp_path / 'r.json'}"]) == 1
    page = capsys.readouterr().out
    assert "not begun: --seconds are over" in page and "1b: no figure" in page


def test_a_process_that_ends_badly_is_told_with_its_words(tmp_path, monkeypatch):
    from subprocess import CompletedProcess, TimeoutExpired

    words = "I0000 noise\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nW0000 end"
    monkeypatch.setattr(accelerator.subprocess, "run", lambda *_, **__: CompletedProcess([], 1, "", words))
    with pytest.raises(accelerator.PointFailed, match="exit code 1: .*RESOURCE_EXHAUSTED: Out of memory"):
        accelerator.ask(0, options(tmp_path), 5.0)

    def late(*_, **__):
        raise TimeoutExpired("", 5.0)

    monkeypatch.setattr(accelerator.subprocess, "run", late)
    with pytest.raises(accelerator.PointFailed, match="no result in 5 s"):
        accelerator.ask(0, options(tmp_path), 5.0)


@pytest.mark.parametrize("words", ["--only=2b", "--only=,", "--steps=0", "--seconds=0", "--seconds=nan"])
def test_flags_are_checked(words, capsys):
    with pytest.raises(SystemExit):
        accelerator.parse_arguments([words])
    assert "error: --" in capsys.readouterr().err


@pytest.mark.parametrize("number", [i for i, point in enumerate(POINTS) if point.size == "tiny"])
def test_a_point_trains_the_step_of_the_config(number, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")  # one that was set stands, and is taken back after the test
    answer = tmp_path / "answer.json"
    words = [f"--point={number}", f"--answer={answer}", "--steps=2", "--repeats=2"]
    assert accelerator.main(words) == 0
    found = json.loads(answer.read_text())
    assert len(found["block_seconds"]) == 2 and min(found["block_seconds"]) > 0 and found["skipped"] == 0
    assert found["useful_tokens"] == found["places"] and found["peak_flops"] is None
    assert 9 < found["losses"][0] < 13 and found["compiled_bytes"] > 4 * 3 * 65536 * 32
    assert found["attention"] == ("blocked" if POINTS[number].documents > 1 else "rowwise")
    assert "causal attention, counted once" in found["formula"][0] and accelerator.summary(found)["mfu"] is None


def test_a_cpu_does_not_measure_the_large_ones(tmp_path, capsys):
    assert accelerator.main(["--point=0", f"--answer={tmp_path / 'a.json'}"]) == 1
    assert "error: JAX has only this machine's CPU here" in capsys.readouterr().err
