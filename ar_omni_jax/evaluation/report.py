"""The page at the end of the main job: scores, losses beside the unigram baseline, plots and samples.

  python -m ar_omni_jax.evaluation.report --run=runs/toyworld --output=runs/toyworld/report

Reads what the other commands wrote under --run (train/metrics.jsonl, evaluation/, packed/, toy/) and computes
nothing but the baseline. Every number on the page stands in report.json too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.files import replace_file
from data_pipelines.schema import SchemaError

MODALITIES = ("text", "image", "speech")


class ReportError(ValueError):
    """A part of the run is missing; the message names the file and the command that makes it."""


def read_metrics(path: Path) -> tuple[list[dict], list[dict]]:
    """(training records, validation records) of a metrics.jsonl, each with its "step"."""
    if not path.is_file():
        raise ReportError(f"{path} is missing: train first (python -m ar_omni_jax.main … --workdir={path.parent})")
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    train = [r for r in records if r.get("kind", "train") == "train"]
    return train, [r for r in records if r.get("kind") == "validation"]


def read_evaluation(path: Path) -> dict:
    """evaluation.json of the run."""
    if not path.is_file():
        raise ReportError(f"{path} is missing: run python -m ar_omni_jax.evaluate … --output={path.parent}")
    return json.loads(path.read_text())


def loss_rows(validation: list[dict], unigram: dict[str, float]) -> list[dict]:
    """Held-out loss in nats a token by modality: unigram baseline, first and last validation, and what was gained."""
    rows = []
    for modality in MODALITIES:
        key = f"nll/{modality}"
        measured = [r[key] for r in validation if r.get(key) is not None]
        if measured and modality in unigram:
            rows.append(
                {
                    "modality": modality,
                    "unigram": unigram[modality],
                    "first": measured[0],
                    "last": measured[-1],
                    "ratio": measured[-1] / unigram[modality],
                }
            )
    return rows


def plot_losses(train: list[dict], validation: list[dict], unigram: dict[str, float], path: Path) -> None:
    """Loss by modality over steps, held-out as dots, the unigram baseline dashed; the perceptual term on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for modality, color in zip(MODALITIES, ("#1b6ca8", "#c2571a", "#2e7d4f"), strict=True):
        key = f"nll/{modality}"
        for records, style, label in (
            (train, {"lw": 1, "alpha": 0.6}, None),
            (validation, {"marker": "o", "ms": 4}, modality),
        ):
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            if points:
                left.plot(*zip(*points, strict=True), color=color, label=label, **style)
        if modality in unigram:
            left.axhline(unigram[modality], color=color, ls="--", lw=0.8)
    left.set(
        xlabel="step", ylabel="nats a token", title="next-token loss (line: training, dots: held-out, dashed: unigram)"
    )
    left.legend()
    points = [(r["step"], r["perceptual"]) for r in train if r.get("perceptual") is not None]
    if points:
        right.plot(*zip(*points, strict=True), color="#7b4a9e", lw=1)
    right.set(xlabel="step", ylabel="squared distance", title="perceptual alignment loss")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def copy_samples(evaluation: dict, run: Path, output: Path, count: int) -> dict[str, list[dict]]:
    """Copies files of the first `count` examples a task next to the page; returns what the page shows of each."""
    results = evaluation["systems"]["trained model"]
    manifest = Path(evaluation["data"])
    documents = {}
    for line in manifest.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        documents[record["id"]] = record
    samples: dict[str, list[dict]] = {}
    for task, result in results.items():
        samples[task] = []
        for k, example in enumerate(result["examples"][:count]):
            sample = {"id": example["id"], "truth": example["truth"], "answer": example["answer"]}
            for turn in documents[example["id"]]["turns"]:
                for part in turn["parts"]:
                    for kind in ("image", "speech"):
                        if kind in part:
                            sample[f"{turn['role']}_{kind}"] = _copy(
                                manifest.parent / part[kind], output, f"{task}-{k}-true"
                            )
            for suffix, kind in ((".png", "image"), (".wav", "speech")):
                made = run / "evaluation" / task / f"{k:03d}{suffix}"
                if made.is_file():
                    sample[f"made_{kind}"] = _copy(made, output, f"{task}-{k}-made")
            samples[task].append(sample)
    return samples


def _copy(source: Path, output: Path, stem: str) -> str:
    target = output / "samples" / f"{stem}{source.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return f"samples/{target.name}"


def machine() -> dict:
    """What this ran on, by public facts."""
    import jax

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cpu cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def build(run: Path, output: Path, samples: int) -> dict:
    """Writes index.html, losses.png, samples/ and report.json under `output`; returns the report's data."""
    import jinja2

    from ar_omni_jax.evaluation import toy_tasks
    from data_pipelines.unigram import unigram_nll

    train, validation = read_metrics(run / "train" / "metrics.jsonl")
    evaluation = read_evaluation(run / "evaluation" / "evaluation.json")
    unigram = unigram_nll(run / "packed", train_split="train", heldout_split="validation")
    output.mkdir(parents=True, exist_ok=True)
    plot_losses(train, validation, unigram, output / "losses.png")
    systems = {
        name: {t: toy_tasks.TaskResult(**r) for t, r in rows.items()} for name, rows in evaluation["systems"].items()
    }
    data = {
        "step": evaluation["step"],
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
    except (ReportError, SchemaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row in data["losses"]:
        print(f"held-out {row['modality']:7s} {row['last']:.3f} nats a token (unigram {row['unigram']:.3f})")
    print(f"wrote {output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
