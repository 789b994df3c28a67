"""The ablation's page: scores beside the paper's, where they disagree, losses, stability and samples."""

from __future__ import annotations

import json
from pathlib import Path

from ar_omni_jax.ablation import curves, examples
from ar_omni_jax.ablation.intervals import decided
from ar_omni_jax.ablation.results import Run, read_runs, read_yardsticks
from ar_omni_jax.ablation.runner import read_plan
from ar_omni_jax.ablation.spikes import WINDOW
from ar_omni_jax.ablation.study import ABLATION
from ar_omni_jax.ablation.summary import MODALITIES, TASKS, summarize
from ar_omni_jax.ablation.verdicts import AGREES, DISAGREES, PAPER_MEASURES, UNDECIDED, jump_verdict, missing, verdicts
from ar_omni_jax.evaluation.toy_tasks import MEASURES
from ar_omni_jax.files import replace_file
from ar_omni_jax.machine import machine

RECORD = "ablation.json"


def write_page(output: Path) -> Path:
    """OUTPUT/index.html with its plots and samples, and ablation.json; returns the page's path.

    Raises AblationError when no run is finished or one is damaged.
    """
    runs = read_runs(output, ABLATION)
    summary = summarize(runs)
    assets = output / "page"
    assets.mkdir(parents=True, exist_ok=True)
    plots = _plots(runs, assets)
    found = verdicts(summary)
    record = {
        "plan": read_plan(output),
        "machines": machines(output / RECORD, runs),
        "runs": seeds(runs),
        "steps": steps(runs),
        "record_steps": record_steps(runs),
        "variants": summary,
        "yardsticks": read_yardsticks(output, ABLATION),
        "verdicts": found,
        "missing": missing(summary),
        "jump": jump_verdict(summary),
    }
    replace_file(output / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    page = render(
        "page.html",
        **record,
        said={says: [v for v in found if v["says"] == says] for says in (DISAGREES, AGREES, UNDECIDED)},
        tasks=TASKS,
        measures={task: words for task, (words, _, _) in MEASURES.items()},
        higher=[task for task, (_, _, higher) in MEASURES.items() if higher],
        paper_measures=PAPER_MEASURES,
        modalities=MODALITIES,
        decided=decided,
        window=WINDOW,
        unjudged=WINDOW * record["record_steps"],
        plots=plots,
        samples={name: examples.collect(output, name, rows[0].seed, assets) for name, rows in runs.items()},
    )
    replace_file(output / "index.html", page.encode())
    return output / "index.html"


def seeds(runs: dict[str, list[Run]]) -> dict[str, list[int]]:
    """Variant -> seeds of its runs."""
    return {name: [run.seed for run in rows] for name, rows in runs.items()}


def machines(record: Path, runs: dict[str, list[Run]]) -> list[dict]:
    """Where the runs were made: what the last page's record says, and this machine if runs have come since.

    A page may be written again anywhere, from what was kept.
    """
    try:
        told = json.loads(record.read_text())
        known = told["machines"] if "machines" in told else [told["machine"]]
        had = told["runs"] if "runs" in told else {name: row["seeds"] for name, row in told["variants"].items()}
        came = any(set(found) - set(had.get(name, ())) for name, found in seeds(runs).items())
        return joined(known, [machine()] if came else [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or not ours: it is written anew
        return [machine()]


def joined(known: list[dict], more: list[dict]) -> list[dict]:
    """`known` and those of `more` that are no machine of it; how busy it was makes it no other machine."""
    same = [{**one, "load": None} for one in known]
    return known + [one for one in more if {**one, "load": None} not in same]


def render(template: str, **values) -> str:
    """A page of this folder's templates; jinja2.UndefinedError for a name that was not given."""
    import jinja2

    loader = jinja2.PackageLoader("ar_omni_jax.ablation", ".")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    return environment.get_template(template).render(**values)


def steps(runs: dict[str, list[Run]]) -> list[int]:
    """The different lengths of the runs, in steps, ascending."""
    return sorted({run.train[-1]["step"] for rows in runs.values() for run in rows if run.train})


def record_steps(runs: dict[str, list[Run]]) -> int:
    """How many steps one record of metrics.jsonl is the mean of."""
    return next((run.train[0]["step"] for rows in runs.values() for run in rows if run.train), 1)


def _plots(runs: dict[str, list[Run]], assets: Path) -> list[str]:
    """Draws what can be drawn; the names of the files that are the paper's figures."""
    for key in (*(f"nll/{name}" for name in MODALITIES), "perceptual"):
        curves.plot_variants(runs, key, assets / f"{key.replace('/', '-')}.png")
    drawn = []
    if "full" in runs:
        curves.plot_decomposition(runs["full"], assets / "figure-2.png")
        drawn.append("figure-2")
        if "plain" in runs:
            curves.plot_against_plain(runs["full"], runs["plain"], assets / "figure-3.png")
            drawn.append("figure-3")
    return drawn
