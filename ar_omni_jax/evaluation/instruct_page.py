"""The page at the end of instruction tuning: scores before and after, what was forgotten, and whole dialogues.

  python -m ar_omni_jax.evaluation.instruct_page --run=runs/instruct --output=runs/instruct/report

Reads what launch/run_instruct.sh left under --run (train/, packed/, toy/, evaluation/) and computes nothing. Every
number on the page stands in report.json too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ar_omni_jax.evaluation.report import (
    ReportError,
    made_files,
    plot_losses,
    read_json,
    read_manifest,
    read_metrics,
    training_facts,
)
from ar_omni_jax.evaluation.results import TaskResult, cell, columns, figure
from ar_omni_jax.evaluation.systems import TRAINED
from ar_omni_jax.files import replace_file
from ar_omni_jax.machine import machine
from ar_omni_jax.model.config import ConfigError
from ar_omni_jax.vocabulary import VocabularyError
from data_pipelines.schema import SchemaError

AFTER, BEFORE = "after instruction tuning", "before it"
GROUPS = {"dialogues": "Dialogues", "one_shot": "Tasks of the first stage"}
COMMAND = "bash launch/run_instruct.sh"


def score_rows(after: Mapping, before: Mapping) -> dict[str, dict[str, TaskResult]]:
    """{system: {task: result}} of two evaluation.json: this model, the one it started from, and the other systems."""
    rows = {AFTER: after["systems"][TRAINED], BEFORE: before["systems"][TRAINED]}
    for other in (after, before):
        rows |= {name: found for name, found in other["systems"].items() if name != TRAINED and name not in rows}
    return {name: {t: TaskResult(**r) for t, r in found.items()} for name, found in rows.items()}


def score_table(rows: Mapping[str, Mapping[str, TaskResult]], documents: Mapping[str, int]) -> dict:
    """{"heads": [[title, documents, better]], "rows": {system: [cell]}} as the page prints them."""
    tasks = list(rows[AFTER])
    heads = [
        [rows[AFTER][t].title, documents[t], "higher" if rows[AFTER][t].higher_is_better else "lower"] for t in tasks
    ]
    cells = {
        name: [cell(columns(found[t])[found[t].metric]) if t in found else "–" for t in tasks]
        for name, found in rows.items()
    }
    return {"heads": heads, "rows": cells}


def detail_tables(rows: Mapping[str, Mapping[str, TaskResult]]) -> list[dict]:
    """A table of further figures for each task that has some."""
    out = []
    for task, first in rows[AFTER].items():
        names = list(dict.fromkeys(n for found in rows.values() if task in found for n in found[task].details))
        if not names:
            continue
        cells = {
            system: [figure(found[task].details[n], first.unit) if n in found[task].details else "–" for n in names]
            for system, found in rows.items()
            if task in found
        }
        out.append({"title": first.title, "heads": names, "rows": cells})
    return out


def show_dialogues(evaluation: Mapping, run: Path, output: Path, count: int) -> dict[str, list[dict]]:
    """{kind: dialogues}, the first `count` of each as they came, with their files copied beside the page."""
    manifest, documents = read_manifest(evaluation, run)
    shown: dict[str, list[dict]] = {}
    for kind, result in evaluation["systems"][TRAINED].items():
        shown[kind] = []
        for k, example in enumerate(result["examples"][:count]):
            if example["id"] not in documents:
                raise ReportError(f"{manifest} has no document {example['id']!r} any more; evaluate again")
            record = documents[example["id"]]
            said = {facts["path"]: facts["transcript"] for facts in record["meta"].get("speech", [])}
            parts = _Copier(manifest.parent, output, f"{kind}-{k}", said)
            turns = [[turn["role"], [parts.show(part) for part in turn["parts"]]] for turn in record["turns"]]
            made = _made(run / "evaluation" / "dialogues" / kind, k, parts)
            right = example.get("right", example.get("attributes"))
            shown[kind].append({"id": example["id"], "turns": turns, "made": made, "right": right, **_heard(example)})
    return shown


def _heard(example: Mapping) -> dict:
    """What was read, or heard by the recognizer, in the model's answer."""
    return {"answer": example.get("answer", ""), "problems": example.get("problems", [])}


def _made(folder: Path, index: int, parts: _Copier) -> list[list[str]]:
    """The model's answer as [kind, value, words]."""
    kinds = {".png": "image", ".wav": "speech"}
    found = []
    for path in made_files(folder, f"{index:03d}"):
        if path.suffix == ".txt":
            found.append(["text", path.read_text(encoding="utf-8").strip(), ""])
        else:
            found.append([kinds[path.suffix], parts.copy(path), ""])
    return found


class _Copier:
    """Copies the media of one dialogue beside the page. said: transcripts of utterances by path."""

    def __init__(self, root: Path, output: Path, stem: str, said: Mapping[str, str]):
        self._root, self._folder, self._stem, self._said = root, output / "samples", stem, said
        self._count = 0

    def show(self, part: Mapping[str, str]) -> list[str]:
        """[kind, text or copied file, transcript] of a part of a manifest."""
        ((kind, value),) = part.items()
        if kind == "text":
            return [kind, value, ""]
        return [kind, self.copy(self._root / value), self._said.get(value, "")]

    def copy(self, source: Path) -> str:
        """The copy's path, relative to the page."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"{self._stem}-{self._count}{source.suffix}"
        self._count += 1
        shutil.copyfile(source, target)
        return f"samples/{target.name}"


def build(run: Path, output: Path, samples: int) -> dict:
    """Writes index.html, plots, samples/ and report.json under `output`; returns the report's data."""
    import jinja2

    train, validation = read_metrics(run / "train" / "metrics.jsonl")
    found = {
        name: read_json(run / "evaluation" / name / "evaluation.json", COMMAND)
        for group in GROUPS
        for name in (group, f"{group}_before")
    }
    output.mkdir(parents=True, exist_ok=True)
    plot_losses(train, validation, {}, output)
    groups = []
    for group, title in GROUPS.items():
        rows = score_rows(found[group], found[f"{group}_before"])
        table = score_table(rows, found[group]["documents"])
        groups.append({"title": title, "table": table, "details": detail_tables(rows) if group == "dialogues" else []})
    step = found["dialogues"]["step"]
    data = {
        "step": step,
        "before": found["dialogues_before"]["step"],
        "model": training_facts(run, step),
        "groups": groups,
        "dialogues": show_dialogues(found["dialogues"], run, output, samples),
        "validation": validation[-1] if validation else {},
        "decoding": {name: found[name]["decoding"] for name in GROUPS},
        "machine": machine(),
    }
    template = jinja2.Environment(autoescape=True, loader=jinja2.PackageLoader("ar_omni_jax.evaluation", "."))
    replace_file(output / "report.json", (json.dumps(data, indent=1) + "\n").encode())
    replace_file(output / "index.html", template.get_template("instruct_page.html").render(**data).encode())
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.evaluation.instruct_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, type=Path, help="WORKDIR of launch/run_instruct.sh")
    parser.add_argument("--output", type=Path, help="where the page goes (default: RUN/report)")
    parser.add_argument("--samples", type=int, default=6, help="dialogues a kind on the page")
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
    for group in data["groups"]:
        for name, cells in group["table"]["rows"].items():
            print(f"{name:26s} " + "  ".join(cells))
    print(f"wrote {output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
