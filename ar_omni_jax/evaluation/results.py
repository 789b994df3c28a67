"""What an evaluation comes to: scores with intervals, and the tables that people read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

_FORMATS = {"%": "{:.1f} %", "x100": "{:.1f}", "": "{:.3f}", "distance": "{:.2f}"}


@dataclasses.dataclass(frozen=True)
class Score:
    """One figure over all documents, with its bootstrap 95 % interval where one is defined.

    details: further figures, in the same unit. notes: what must be known to read it. examples: what is known of each
    document only now, to be added to its record.
    """

    value: float
    low: float | None
    high: float | None
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    examples: Sequence[Mapping[str, Any]] = ()


@dataclasses.dataclass
class TaskResult:
    """Score of one system on one task by its first metric, the others' in `more`; examples with their own records.

    score, low, high: in `unit`: "%", "x100" (the figure times 100), "" (as it is) or "distance". details: further
    figures of this metric in the same unit. more: {metric: {"score", "low", "high", "details", "title", "unit", ...}}.
    """

    task: str
    score: float
    low: float | None
    high: float | None
    examples: list[dict]
    details: dict[str, float] = dataclasses.field(default_factory=dict)
    metric: str = ""
    title: str = ""
    unit: str = "%"
    higher_is_better: bool = True
    notes: list[str] = dataclasses.field(default_factory=list)
    more: dict[str, dict] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def task_result(task: str, scored: Sequence[tuple[Any, Score]], examples: list[dict]) -> TaskResult:
    """From (measure, score) pairs, the first of which gives the task's own figure."""
    parts = []
    for measure, score in scored:
        parts.append(
            {
                "score": score.value,
                "low": score.low,
                "high": score.high,
                "details": dict(score.details),
                "metric": measure.name,
                "title": measure.title,
                "unit": measure.unit,
                "higher_is_better": measure.higher_is_better,
                "notes": list(score.notes),
            }
        )
    return TaskResult(task=task, examples=examples, more={p["metric"]: p for p in parts[1:]}, **parts[0])


def columns(result: TaskResult) -> dict[str, dict]:
    """{metric: its figures} of a result, the task's own first."""
    own = {key: value for key, value in result.to_dict().items() if key not in ("examples", "more", "task")}
    return {result.metric: own, **result.more}


def figure(value: float, unit: str) -> str:
    """A value as it is printed."""
    return _FORMATS[unit].format(value)


def cell(part: Mapping[str, Any]) -> str:
    """Score and interval."""
    if part["low"] is None:
        return figure(part["score"], part["unit"])
    low, high = (_FORMATS[part["unit"]].removesuffix(" %").format(part[key]) for key in ("low", "high"))
    return f"{figure(part['score'], part['unit'])} [{low}, {high}]"


def table(systems: Mapping[str, Mapping[str, TaskResult]], tasks: Sequence[str]) -> str:
    """Markdown table: a row a system, a column a task and metric, score with its 95 % interval."""
    heads: dict[tuple[str, str], str] = {}
    for task in tasks:
        for results in systems.values():
            for metric, part in columns(results[task]).items() if task in results else ():
                better = "higher" if part["higher_is_better"] else "lower"
                heads.setdefault((task, metric), f"{part['title']} ({better} is better)")
    lines = ["| system | " + " | ".join(heads.values()) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, results in systems.items():
        parts = [columns(results[task]).get(metric) if task in results else None for task, metric in heads]
        lines.append(f"| {name} | " + " | ".join(cell(part) if part else "–" for part in parts) + " |")
    return "\n".join(lines)


def details(systems: Mapping[str, Mapping[str, TaskResult]], tasks: Sequence[str]) -> str:
    """Markdown: a small table of each metric's further figures, and the notes on it."""
    out = []
    for task in tasks:
        found = {n: columns(r[task]) for n, r in systems.items() if task in r}
        metrics = dict.fromkeys(metric for parts in found.values() for metric in parts)
        for metric in metrics:
            rows = {name: parts[metric] for name, parts in found.items() if metric in parts}
            names = list(dict.fromkeys(key for part in rows.values() for key in part["details"]))
            notes = [f"- {name}: {note}" for name, part in rows.items() for note in part["notes"]]
            if not names and not notes:
                continue
            out += [f"\n{next(iter(rows.values()))['title']}:\n"]
            if names:
                out += ["| system | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
            for name, part in rows.items() if names else ():
                cells = [figure(part["details"][k], part["unit"]) if k in part["details"] else "–" for k in names]
                out.append(f"| {name} | " + " | ".join(cells) + " |")
            out += ["", *notes] if notes and names else notes
    return "\n".join(out)
