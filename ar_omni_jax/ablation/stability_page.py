"""The stability probe's page: a table of every arm, what the means do beside plain, and the curves."""

from __future__ import annotations

import json
from pathlib import Path

from ar_omni_jax.ablation import curves
from ar_omni_jax.ablation.arms import ARMS, GROUPS
from ar_omni_jax.ablation.page import machines, render, seeds, steps
from ar_omni_jax.ablation.probe import COMPARED, said, summarize
from ar_omni_jax.ablation.results import Run, read_runs
from ar_omni_jax.ablation.runner import read_plan
from ar_omni_jax.ablation.spikes import LOSS
from ar_omni_jax.ablation.study import STABILITY
from ar_omni_jax.ablation.summary import MODALITIES
from ar_omni_jax.files import replace_file

RECORD = "stability.json"
SMOOTH = 15  # steps of the loss curves' running median: a batch's tasks move its loss more than a step of training does


def write_page(output: Path) -> Path:
    """OUTPUT/index.html with its plots, and stability.json; returns the page's path.

    Raises AblationError when no run is finished or one is damaged.
    """
    runs = read_runs(output, STABILITY)
    assets = output / "page"
    assets.mkdir(parents=True, exist_ok=True)
    rungs = by_rate(runs)
    curves.plot_rungs(rungs, LOSS, "training loss", assets / "losses.png", SMOOTH)
    curves.plot_rungs(rungs, "grad_norm", "gradient norm", assets / "gradient-norms.png")
    record = {
        "plan": read_plan(output),
        "machines": machines(output / RECORD, runs),
        "runs": seeds(runs),
        "steps": steps(runs),
        "arms": summarize(runs),
    }
    replace_file(output / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    page = render(
        "stability.html",
        **record,
        rungs={rate: [name for name in runs if ARMS[name].rate == rate] for rate in rungs},
        groups=GROUPS,
        compared=COMPARED,
        compares=[name for name, row in record["arms"].items() if row["against_plain"]],
        said={name: said(row["against_plain"]) for name, row in record["arms"].items()},
        modalities=MODALITIES,
        smooth=SMOOTH,
    )
    replace_file(output / "index.html", page.encode())
    return output / "index.html"


def by_rate(runs: dict[str, list[Run]]) -> dict[int, dict[str, list[Run]]]:
    """Factor on the learning rates -> arm -> runs."""
    rungs: dict[int, dict[str, list[Run]]] = {}
    for name, rows in runs.items():
        rungs.setdefault(ARMS[name].rate, {})[ARMS[name].group] = rows
    return rungs
