"""The page at the end of the main job: scores, losses beside the unigram baseline, plots and samples.

  python -m ar_omni_jax.evaluation.report --run=runs/toyworld --output=runs/toyworld/report

Reads what the other commands wrote under --run (train/, evaluation/, packed/, toy/) and computes nothing but the
baseline. Every number on the page stands in report.json too. The folder may have been moved since.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.config import derived, model_config
from ar_omni_jax.files import replace_file
from ar_omni_jax.machine import machine
from ar_omni_jax.model.config import ConfigError
from ar_omni_jax.vocabulary import VocabularyError
from data_pipelines.schema import SchemaError

COLORS = {"text": "#1b6ca8", "image": "#c2571a", "speech": "#2e7d4f"}


class ReportError(ValueError):
    """A part of the run is missing; the message names the file and the command that makes it."""


def read_metrics(path: Path) -> tuple[list[dict], list[dict]]:
    """(training records, validation records) of a metrics.jsonl, each with its "step"."""
    if not path.is_file():
        raise ReportError(f"{path} is missing: train first (python -m ar_omni_jax.main … --workdir={path.parent})")
    lines = [line for line in path.read_text().split("\n") if line.strip()]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):  # the last one may be on its way to the file
                raise ReportError(f"{path}: line {number} is not JSON ({error}); train again or drop it") from error
    train = [r for r in records if r.get("kind", "train") == "train"]
    return train, [r for r in records if r.get("kind") == "validation"]


def read_json(path: Path, command: str) -> dict:
    """A file that `command` writes; ReportError when it is missing or damaged."""
    if not path.is_file():
        raise ReportError(f"{path} is missing: run {command}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}): run {command} again") from error


def training_facts(run: Path, step: int) -> dict:
    """What was trained and on how much, from train/config.json and the vocabulary of the packed data."""
    from ml_collections import ConfigDict

    from data_pipelines.dataset_info import read_info

    config = ConfigDict(read_json(run / "train" / "config.json", "python -m ar_omni_jax.main … first"))
    model = model_config(config.model, read_info(run / "packed", "packed").vocabulary.size)
    facts = derived(config, model)
    return {
        "parameters": facts["parameters"],
        "layers": model.num_layers,
        "width": model.d_model,
        "steps": step,
        "init_from": config.train.init_from,
        "tokens": step * facts["tokens_per_step"],
    }


def loss_rows(validation: list[dict], unigram: dict[str, float]) -> list[dict]:
    """Held-out loss in nats a token by modality: unigram baseline, first and last validation, and what was gained."""
    rows = []
    for modality in COLORS:
        key = f"nll/{modality}"
        measured = [(r[key], r["step"]) for r in validation if r.get(key) is not None]
        if measured and modality in unigram:
            (first, first_step), (last, last_step) = measured[0], measured[-1]
            steps = {"first_step": first_step, "last_step": last_step}
            values = {"unigram": unigram[modality], "first": first, "last": last, "ratio": last / unigram[modality]}
            rows.append({"modality": modality} | values | steps)
    return rows


def plot_losses(train: list[dict], validation: list[dict], unigram: dict[str, float], folder: Path) -> None:
    """losses.png: by modality over steps, held-out as dots, the unigram baseline dashed; perceptual.png: that term."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for modality, color in COLORS.items():
        key = f"nll/{modality}"
        for records, style, label in (
            (train, {"lw": 1, "alpha": 0.6}, None),
            (validation, {"marker": "o", "ms": 4}, modality),
        ):
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=label, **style)
        if modality in unigram:
            axes.axhline(unigram[modality], color=color, ls="--", lw=0.8)
    title = "next-token loss\nline: training, dots: held-out" + (", dashed: unigram" if unigram else "")
    axes.set(xlabel="step", ylabel="nats a token", title=title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(folder / "losses.png", dpi=130)
    plt.close(figure)
    plot_perceptual(train, validation, folder / "perceptual.png")


def plot_perceptual(train: list[dict], validation: list[dict], path: Path) -> None:
    """The perceptual term over steps, held-out as dots; says so where the run has none."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for records, style in ((train, {"lw": 1, "alpha": 0.6}), (validation, {"marker": "o", "ms": 4})):
        points = [(r["step"], r["perceptual"]) for r in records if r.get("perceptual")]
        if points:
            axes.plot(*zip(*points, strict=True), color="#7b4a9e", **style)
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.text(0.5, 0.5, "not part of this run's loss", ha="center", transform=axes.transAxes)
    axes.set(xlabel="step", ylabel="squared distance (log scale)")
    axes.set_title("perceptual alignment loss\nline: training, dots: held-out")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def read_manifest(evaluation: dict, run: Path) -> tuple[Path, dict[str, dict]]:
    """(the manifest that was judged, its records by id), where it was or in RUN/toy after the run was moved."""
    places = [Path(evaluation["data"]), run / "toy" / Path(evaluation["data"]).name]
    manifest = next((place for place in places if place.is_file()), None)
    if manifest is None:
        raise ReportError(f"the manifest that was judged is neither {places[0]} nor {places[1]}; put it back there")
    records = map(json.loads, filter(str.strip, manifest.read_text(encoding="utf-8").split("\n")))
    return manifest, {record["id"]: record for record in records}


def made_files(folder: Path, name: str) -> list[Path]:
    """The files of one answer, as its own record says; none without a record. ReportError for a damaged one."""
    record = folder / f"{name}.json"
    if not record.is_file():
        return []
    try:
        return [folder / file for file in json.loads(record.read_text())["files"]]
    except (ValueError, KeyError, TypeError) as error:
        judged = folder.parent / "evaluation.json"
        raise ReportError(f"{record} is damaged ({error}): remove it and {judged}, and evaluate again") from error


def copy_samples(evaluation: dict, run: Path, output: Path, count: int) -> dict[str, list[dict]]:
    """Copies files of the first `count` examples a task next to the page; returns what the page shows of each."""
    results = evaluation["systems"]["trained model"]
    manifest, documents = read_manifest(evaluation, run)
    samples: dict[str, list[dict]] = {}
    for task, result in results.items():
        samples[task] = []
        for k, example in enumerate(result["examples"][:count]):
            if example["id"] not in documents:
                raise ReportError(f"{manifest} has no document {example['id']!r} any more; evaluate again")
            sample = {"id": example["id"], "truth": example["truth"], "answer": example["answer"]}
            for turn in documents[example["id"]]["turns"]:
                for part in turn["parts"]:
                    for kind in ("image", "speech"):
                        if kind in part:
                            sample[f"{turn['role']}_{kind}"] = _copy(
                                manifest.parent / part[kind], output, f"{task}-{k}-true"
                            )
            for made in made_files(run / "evaluation" / task, f"{k:03d}"):
                kind = {".png": "image", ".wav": "speech"}.get(made.suffix)
                if kind and f"made_{kind}" not in sample:
                    sample[f"made_{kind}"] = _copy(made, output, f"{task}-{k}-made")
            samples[task].append(sample)
    return samples


def _copy(source: Path, output: Path, stem: str) -> str:
    target = output / "samples" / f"{stem}{source.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return f"samples/{target.name}"


def build(run: Path, output: Path, samples: int) -> dict:
    """Writes index.html, two plots, samples/ and report.json under `output`; returns the report's data."""
    import jinja2

    from ar_omni_jax.evaluation import toy_tasks
    from data_pipelines.unigram import unigram_nll

    train, validation = read_metrics(run / "train" / "metrics.jsonl")
    command = f"python -m ar_omni_jax.evaluate --output={run / 'evaluation'} …"
    evaluation = read_json(run / "evaluation" / "evaluation.json", command)
    unigram = unigram_nll(run / "packed", train_split="train", heldout_split="validation")
    output.mkdir(parents=True, exist_ok=True)
    plot_losses(train, validation, unigram, output)
    systems = {
        name: {t: toy_tasks.TaskResult(**r) for t, r in rows.items()} for name, rows in evaluation["systems"].items()
    }
    data = {
        "step": evaluation["step"],
        "model": training_facts(run, evaluation["step"]),
        "losses": loss_rows(validation, unigram),
        "measures": {t: toy_tasks.MEASURES[t] for t in systems["trained model"]},
        "systems": {
            n: {t: {k: v for k, v in r.to_dict().items() if k != "examples"} for t, r in s.items()}
            for n, s in systems.items()
        },
        "documents": evaluation["documents"],
        "training": train[-1] if train else {},
        "machine": machine(),
        "samples": copy_samples(evaluation, run, output, samples),
    }
    template = jinja2.Environment(autoescape=True, loader=jinja2.PackageLoader("ar_omni_jax.evaluation", "."))
    replace_file(output / "report.json", (json.dumps(data, indent=1) + "\n").encode())
    replace_file(output / "index.html", template.get_template("report.html").render(**data).encode())
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, type=Path, help="the run's directory (WORKDIR of launch/run_local.sh)")
    parser.add_argument("--output", type=Path, help="where the page goes (default: RUN/report)")
    parser.add_argument("--samples", type=int, default=6, help="samples a task on the page")
    options = parser.parse_args(arguments)
    output = options.output or options.run / "report"
    try:
        data = build(options.run, output, options.samples)
    except (ReportError, ConfigError, SchemaError, VocabularyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130
    for row in data["losses"]:
        print(f"held-out {row['modality']:7s} {row['last']:.3f} nats a token (unigram {row['unigram']:.3f})")
    print(f"wrote {output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
