"""The ablation's page: scores beside the paper's, losses, stability and samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from ar_omni_jax.ablation.runner import PLAN_FILE, workdir
from ar_omni_jax.ablation.summary import MODALITIES, TASKS, Run, read_runs, summarize
from ar_omni_jax.files import replace_file
from ar_omni_jax.machine import machine

MEASURES = {
    "caption": "caption attributes right",
    "t2i": "image attributes read back",
    "asr": "ASR word error",
    "tts": "TTS word error",
}
HIGHER = ("caption", "t2i")
SAMPLES = 4  # pictures of each variant


def write_page(output: Path) -> Path:
    """OUTPUT/index.html with its plots and pictures, and ablation.json; returns the page's path.

    Raises AblationError when no run is finished or one is damaged.
    """
    import jinja2

    runs = read_runs(output)
    summary = summarize(runs)
    assets = output / "page"
    assets.mkdir(parents=True, exist_ok=True)
    for key in (*(f"nll/{name}" for name in MODALITIES), "perceptual"):
        _plot(runs, key, assets / f"{key.replace('/', '-')}.png")
    record = {"plan": json.loads((output / PLAN_FILE).read_text()), "machine": machine(), "variants": summary}
    replace_file(output / "ablation.json", (json.dumps(record, indent=1) + "\n").encode())
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "page.html").read_text())
    page = template.render(
        **record,
        tasks=TASKS,
        measures=MEASURES,
        modalities=MODALITIES,
        verdicts=verdicts(summary),
        samples={name: _samples(output, name, rows[0], assets) for name, rows in runs.items()},
    )
    replace_file(output / "index.html", page.encode())
    return output / "index.html"


def verdicts(summary: dict[str, dict]) -> list[dict]:
    """For each variant and measure that the paper has too: whether leaving the part out did here what it did there.

    "says": agrees or disagrees where our interval of the difference leaves out zero, else "not told apart".
    """
    found = []
    full = summary.get("full", {}).get("paper")
    for name, row in summary.items():
        for task, ours in row["differences"].items():
            if not (full and row["paper"]):
                continue
            better = 1 if task in HIGHER else -1
            theirs = better * (row["paper"][task] - full[task])
            clear = ours["low"] > 0 or ours["high"] < 0
            same = (better * ours["mean"] > 0) == (theirs > 0)
            says = "not told apart" if not clear else "agrees" if same else "disagrees"
            paper = "worse" if theirs < 0 else "better"
            found.append({"variant": name, "task": task, "paper": paper, "says": says, **ours})
    return found


def _series(run: Run, key: str) -> dict[int, float]:
    return {r["step"]: r[key] for r in run.train if r.get(key) is not None}


def _plot(runs: dict[str, list[Run]], key: str, path: Path) -> None:
    """Training curves: mean over seeds as a line, their range as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), constrained_layout=True)
    for number, (name, rows) in enumerate(runs.items()):
        series = [found for found in (_series(run, key) for run in rows) if found]
        steps = sorted(set.intersection(*map(set, series))) if series else []
        if steps:
            values = np.array([[found[step] for step in steps] for found in series])
            color = plt.get_cmap("tab20")(number % 20)
            axes.plot(steps, values.mean(0), lw=1.2, color=color, label=name)
            axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
    perceptual = key == "perceptual"
    axes.set(xlabel="step", ylabel="squared distance, at each variant's depth" if perceptual else "nats a token")
    axes.set_title("perceptual loss in training" if perceptual else f"next-token loss of {key[4:]} in training")
    axes.set_yscale("log" if perceptual else "linear")
    if axes.lines:
        axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _samples(output: Path, variant: str, run: Run, assets: Path) -> list[dict]:
    """The first pictures that the variant's first seed drew: {"file", "text"}, copied beside the page."""
    folder = workdir(output, variant, run.seed) / "evaluation"
    examples = json.loads((folder / "evaluation.json").read_text())["systems"]["trained model"]
    found = []
    for number, example in enumerate(examples.get("t2i", {}).get("examples", [])[:SAMPLES]):
        made = sorted((folder / "t2i").glob(f"{number:03d}*.png"))
        if made:
            name = f"{variant}-{number}.png"
            shutil.copyfile(made[0], assets / name)
            found.append({"file": f"page/{name}", "text": example["truth"]})
    return found
