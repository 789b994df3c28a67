"""docs/results/ablation and the tables of docs/ablation.md: every number follows from the runs that are kept."""

import json
import re
from pathlib import Path

import pytest

from ar_omni_jax.ablation.intervals import decided
from ar_omni_jax.ablation.results import read_runs
from ar_omni_jax.ablation.study import ABLATION
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


def test_the_record_is_that_of_the_runs(summary):
    record = json.loads((KEPT / "ablation.json").read_text())
    for name, found in (("variants", summary), ("verdicts", verdicts(summary))):
        ours, theirs = numbers(found), numbers(record[name])
        assert ours.keys() == theirs.keys()
        for place, value in ours.items():
            same = pytest.approx(theirs[place], rel=1e-9, abs=1e-9) if isinstance(value, float) else theirs[place]
            assert value == same, place
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
