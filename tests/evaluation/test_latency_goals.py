"""The one command for a GPU: both kinds of weights, every goal with its figure, tried at tiny scale on a CPU."""

import copy
import json

import jax
import pytest

from ar_omni_jax.evaluation import latency, latency_goals
from ar_omni_jax.evaluation.latency_subjects import random_subject
from tests.evaluation.test_latency import tiny_codec

RECORD = {
    "batches": [{"percent_of_limit": 70.0, "first_token_ms": 40.0}],
    "speech": {"first_sound_ms": 100.0, "rtf_with_codec": 0.2},
}


@pytest.fixture(scope="module")
def subject():
    made = random_subject("tiny", dtype="float32")
    made.speech = tiny_codec
    return made


def test_one_command_measures_both_kinds_of_weights(tmp_path, capsys, monkeypatch, subject):
    monkeypatch.setattr(latency, "random_subject", lambda name, dtype: subject)
    arguments = ["--model=tiny", "--new=9", "--repeats=1", "--short_repeats=2", "--speech_codes=8", "--hf=no"]
    arguments += ["--bandwidth=10"]
    assert latency_goals.main([*arguments, f"--output={tmp_path / 'goals.json'}"]) == 0
    records = json.loads((tmp_path / "goals.json").read_text())
    assert list(records) == ["bfloat16", "int8"]
    out = capsys.readouterr().out
    for weights, record in records.items():
        assert record["weights"].endswith(f"decoded as {weights}") and record["prompt"] == 64
        assert [(row["batch"], row["first_token_repeats"]) for row in record["batches"]] == [(1, 2)]
        assert record["speech"]["repeats"] == 2
        assert latency.table(record) in out
    table = latency_goals.goals_table(records)
    assert table in out and len(table.splitlines()) == 1 + len(latency_goals.GOALS)
    for goal in latency_goals.GOALS:
        (line,) = [line for line in table.splitlines() if line.startswith(goal.name)]
        assert all(f"{goal.value(record):.3g}" in line for record in records.values())
        assert line.endswith("yes" if goal.met(records["bfloat16"]) else "NO")
    assert "The goals are for 7b on an H200; this was tiny" in out


@pytest.mark.parametrize("place", ["percent_of_limit", "first_token_ms", "first_sound_ms", "rtf_with_codec"])
def test_a_goal_is_met_at_its_bound_and_not_beyond(place):
    assert all(goal.met(RECORD) for goal in latency_goals.GOALS)
    worse = copy.deepcopy(RECORD)
    part = worse["speech"] if place in worse["speech"] else worse["batches"][0]
    part[place] *= 0.99 if place == "percent_of_limit" else 1.01
    assert sum(not goal.met(worse) for goal in latency_goals.GOALS) == 1
    assert latency_goals.goals_table({"bfloat16": worse, "int8": RECORD}).count("NO") == 1


def test_more_rows_come_after_the_one_of_the_goals(monkeypatch):
    asked = []
    monkeypatch.setattr(latency, "measure", lambda options, say: asked.append(options) or RECORD)
    latency_goals.one_weights(latency_goals.parse_arguments(["--batches=8,1,32"]), "int8")
    assert asked[0].short_repeats == latency.SHORT_REPEATS
    assert asked[0].batches == [1, 8, 32] and asked[0].model == "7b" and asked[0].weights == "int8"


def test_no_model_is_made_for_a_pytorch_without_a_gpu(monkeypatch, subject):
    """On a GPU machine: a copy of 7B for PyTorch takes minutes, and is for nothing where that has CPUs only."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(latency, "Baseline", lambda *_: pytest.fail("a model was made"))
    monkeypatch.setattr(latency, "has_gpu", lambda: False)
    baseline, why = latency.make_baseline(subject, "auto")
    assert baseline is None and "PyTorch has no GPU here" in why
