"""docs/results and the tables of docs/ablation.md: every number follows from the runs that are kept."""

import json
import re
from pathlib import Path

import pytest

from ar_omni_jax.ablation import probe
from ar_omni_jax.ablation.intervals import decided
from ar_omni_jax.ablation.results import read_runs
from ar_omni_jax.ablation.study import ABLATION, STABILITY
from ar_omni_jax.ablation.summary import MODALITIES, TASKS, summarize
from ar_omni_jax.ablation.verdicts import jump_verdict, verdicts

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "results" / "ablation"


@pytest.fixture(scope="module")
def summary():
    return json.loads(json.dumps(summarize(read_runs(KEPT, ABLATION))))


def numbers(found):
    """All of a tree, by place."""
    if isinstance(found, dict | list):
        items = found.items() if isinstance(found, dict) else enumerate(found)
        return {f"{key}/{place}": x for key, value in items for place, x in numbers(value).items()}
    return {"": found}


def assert_same(found, told):
    ours, theirs = numbers(found), numbers(told)
    assert ours.keys() == theirs.keys()
    for place, value in ours.items():
        same = pytest.approx(theirs[place], rel=1e-9, abs=1e-9) if isinstance(value, float) else theirs[place]
        assert value == same, place


def test_the_record_is_that_of_the_runs(summary):
    record = json.loads((KEPT / "ablation.json").read_text())
    assert_same(summary, record["variants"])
    assert_same(verdicts(summary), record["verdicts"])
    assert jump_verdict(summary).items() >= record["jump"].items()


def test_the_tables_of_the_documentation_are_those_of_the_record(summary):
    scores = differences = 0
    for line in (ROOT / "docs" / "ablation.md").read_text().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if name not in summary or len(cells) != len(TASKS) + len(MODALITIES):
            continue
        row, told = summary[name], [[float(x) for x in re.findall(r"[+-]?\d+\.\d+", cell)] for cell in cells]
        of_full = cells[0].lstrip("*")[0] in "+-"
        for task, cell, said in zip(TASKS, cells, told, strict=False):
            part = row["differences" if of_full else "scores"][task]
            assert said == pytest.approx([part["mean"], part["low"], part["high"]], abs=0.0501), (name, task)
            assert cell.startswith("**") == (of_full and decided(part)), (name, task)
        for modality, cell, said in zip(MODALITIES, cells[len(TASKS) :], told[len(TASKS) :], strict=True):
            losses, part = row["losses"][modality], row["loss_differences"].get(modality)
            expected = [part["mean"], part["low"], part["high"]] if of_full else [sum(losses) / len(losses)]
            assert said == pytest.approx(expected, abs=0.000501), (name, modality)
            assert cell.startswith("**") == (of_full and decided(part)), (name, modality)
        scores, differences = scores + (not of_full), differences + of_full
    assert (scores, differences) == (len(summary), len(summary) - 1)


def test_the_scales_of_the_perceptual_loss_are_those_of_the_runs():
    text = " ".join((ROOT / "docs" / "ablation.md").read_text().split())
    told = re.search(r"Its mean over the first 20 steps \(and the seeds\) is then (.*?)\. ", text)[1]
    values = {
        name: int(value) for value, name in re.findall(r"(\d+) (?:at|on the) `?(mid|up_\d|pixels|codebook)", told)
    }
    assert len(values) == 7
    for depth, value in values.items():
        variant = "full" if depth == "codebook" else f"perceptual_{depth}"
        runs = [json.loads(file.read_text().splitlines()[0]) for file in KEPT.glob(f"runs/{variant}/*/metrics.jsonl")]
        assert {run["step"] for run in runs} == {20} and len(runs) == 3
        assert value == pytest.approx(sum(run["perceptual"] for run in runs) / 3, abs=0.501), depth


def test_the_longer_probe_is_that_of_its_runs():
    kept = KEPT.with_name("stability_long")
    arms = json.loads(json.dumps(probe.summarize(read_runs(kept, STABILITY))))
    assert_same(arms, json.loads((kept / "stability.json").read_text())["arms"])
    text = " ".join((ROOT / "docs" / "ablation.md").read_text().split())
    for name, words in (
        ("plain_x10", "{spikes} spikes, largest norm {largest:.0f})"),
        ("guarded_x10", "goes on to {held_out:.2f}"),
    ):
        assert words.format(**arms[name]["runs"][0]) in text


def test_the_probe_is_that_of_its_runs_and_the_documentation_has_its_numbers():
    kept = KEPT.with_name("stability")
    arms = json.loads(json.dumps(probe.summarize(read_runs(kept, STABILITY))))
    assert_same(arms, json.loads((kept / "stability.json").read_text())["arms"])
    rows = {f"{arm['group']} ×{arm['rate']}": arm for arm in arms.values()}
    told = 0
    for line in (ROOT / "docs" / "ablation.md").read_text().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if name not in rows or len(cells) != 4 + len(MODALITIES):
            continue
        arm, told = rows[name], told + 1
        runs, ended = arm["runs"], arm["held_out"]
        assert [int(cells[0]), int(cells[1])] == [len(runs), sum(run["spikes"] for run in runs)]
        assert float(cells[2]) == pytest.approx(max(run["largest"] for run in runs), rel=0.005)
        losses = [ended["mean"], min(ended["seeds"]), max(ended["seeds"])]
        assert [float(x) for x in re.findall(r"\d+\.\d+", cells[3])] == pytest.approx(losses, abs=0.000501)
        for modality, cell in zip(MODALITIES, cells[4:], strict=True):
            mean = sum(run["by_modality"][modality] for run in runs) / len(runs)
            assert float(cell) == pytest.approx(mean, abs=0.000501), (name, modality)
    assert told == len(arms)
