"""Scores against tokens trained on, over finished runs of several lengths, and how far each goal is by a fitted law.

  python -m ar_omni_jax.evaluation.learning_curve --runs=runs/short,runs/toyworld,runs/long --output=runs/curve

A run is a folder of launch/run_local.sh, or a training's --workdir with its evaluation in it; all must have been judged
on the same documents, in the same way. Writes learning_curve.md, learning_curve.png and learning_curve.json, which has
every number.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.evaluation.learning_fits import LAWS, ScoreFit, Share, fit_scores
from ar_omni_jax.evaluation.learning_plot import plot_curves
from ar_omni_jax.evaluation.learning_runs import JUDGED, METRICS, CurveRun, LearningCurveError, differences, read_runs
from ar_omni_jax.evaluation.report import ReportError
from ar_omni_jax.files import replace_file

GOALS = {"caption": 85.0, "t2i": 80.0, "asr": 15.0, "tts": 15.0}  # %; of tts: points above its ceiling
WITHIN = 100  # times the largest run's tokens: a law is believed no farther
_AGREE = 3.0  # tokens to the goal by both laws and all fits are the same answer within this factor


@dataclasses.dataclass(frozen=True)
class Curve:
    """One task over the runs. goal: score, %; best: score, %, where nothing is left to learn (0 % or 100 % right are
    shares 0 and 1); shares: one a run; fits: by law and what was fitted, as "power law, all sizes"."""

    task: str
    goal: float
    best: float
    runs: tuple[CurveRun, ...]
    shares: tuple[Share, ...]
    fits: dict[str, ScoreFit]

    @property
    def rate_of_error(self) -> bool:
        return METRICS[self.task] == "wer"

    def share_of(self, score: float) -> float:
        """Of a score in %, in [0, 1]: 1 at `best`. Error rates over 100 % are 0."""
        right, most = (100 - score, 100 - self.best) if self.rate_of_error else (score, self.best)
        return min(1.0, max(0.0, right / most))

    def score_of(self, share: float) -> float:
        """The other way."""
        return 100 - share * (100 - self.best) if self.rate_of_error else share * self.best

    @property
    def reached(self) -> CurveRun | None:
        """The smallest run that meets the goal."""
        met = [run for run in self.runs if self.share_of(run.scores[self.task].score) >= self.share_of(self.goal)]
        return met[0] if met else None

    def tokens(self, fit: str) -> tuple[float, float, float]:
        """To the goal by a fit, and the 95 % range; inf: beyond WITHIN times the largest run."""
        return self.fits[fit].reach(self.share_of(self.goal), WITHIN)

    def verdict(self) -> str:
        """What the curve says of the goal, in a sentence."""
        if self.reached:
            return f"reached by {self.reached.name} ({self.reached.tokens / 1e6:.1f} M tokens)"
        points = [self.tokens(name)[0] for name in self.fits]
        if not points:
            return "not reached; one size has no law"
        if not any(map(math.isfinite, points)):
            return f"not reached, nor within {WITHIN} times the largest run by any fit"
        told = f"{_million(min(points))} to {_million(max(points))} M tokens"
        if max(points) <= _AGREE * min(points):
            return f"not reached; expected at {told}"
        return f"not reached, and open: {told}"


def curve_of(task: str, runs: Sequence[CurveRun]) -> Curve | None:
    """The task's curve over the runs that were judged on it; None with fewer than two."""
    runs = tuple(run for run in runs if task in run.scores)
    if len(runs) < 2:
        return None
    ceilings = [run.ceiling[task].score for run in runs if task in run.ceiling]
    best = ceilings[-1] if ceilings else (0.0 if METRICS[task] == "wer" else 100.0)
    goal = GOALS[task] + (best if task == "tts" else 0.0)
    empty = Curve(task, goal, best, runs, (), {})
    shares = tuple(_share(empty, run) for run in runs)
    sizes = sorted({share.tokens for share in shares})
    fits = {}
    for law in LAWS if len(sizes) >= 2 else ():
        fits[f"{law} law, all sizes"] = fit_scores(shares, law)
        if len(sizes) > 2:
            largest = [share for share in shares if share.tokens >= sizes[-2]]
            fits[f"{law} law, two largest"] = fit_scores(largest, law)
    return dataclasses.replace(empty, shares=shares, fits=fits)


def _share(curve: Curve, run: CurveRun) -> Share:
    result = run.scores[curve.task]
    low, high = sorted(curve.share_of(s) for s in (result.low, result.high)) if result.low is not None else (0.0, 0.0)
    return Share(run.tokens, curve.share_of(result.score), (high - low) / 3.92, len(result.examples))


def record(curves: Sequence[Curve], runs: Sequence[CurveRun], notes: Sequence[str]) -> dict:
    """Everything as plain data; numbers without a value are null."""
    return {
        "runs": [
            {
                "name": run.name,
                "steps": run.steps,
                "tokens": run.tokens,
                "tokens_per_second": run.tokens_per_second,
                "held_out_nats": run.nll,
                "scores": {t: {"score": r.score, "low": r.low, "high": r.high} for t, r in run.scores.items()},
            }
            for run in runs
        ],
        "differences": list(notes),
        "tasks": {curve.task: _task_record(curve) for curve in curves},
    }


def _task_record(curve: Curve) -> dict:
    fits = {}
    for name, fit in curve.fits.items():
        point, low, high = (value if math.isfinite(value) else None for value in curve.tokens(name))
        fits[name] = {
            "slope": fit.slope,
            "misfit": fit.misfit,
            "seed_spread": fit.seed_spread,
            "tokens_to_goal": point,
            "tokens_to_goal_low": low,
            "tokens_to_goal_high": high,
        }
    return {"goal": curve.goal, "best": curve.best, "verdict": curve.verdict(), "fits": fits}


def markdown(curves: Sequence[Curve], runs: Sequence[CurveRun], notes: Sequence[str]) -> str:
    """The page."""
    tasks = [curve.task for curve in curves]
    lines = ["# Learning curve", "", "Scores, % [95 % interval], and held-out nats a token at each run's end:", ""]
    lines += ["| run | M tokens | " + " | ".join(tasks) + " | text | image | speech | tokens/s |"]
    lines += ["|---" * (len(tasks) + 6) + "|"]
    for run in runs:
        scores = [_score(run, task) for task in tasks]
        losses = [f"{run.nll[m]:.3f}" if m in run.nll else "–" for m in ("text", "image", "speech")]
        speed = f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else "–"
        lines.append("| " + " | ".join([run.name, f"{run.tokens / 1e6:.2f}", *scores, *losses, speed]) + " |")
    names = list(dict.fromkeys(name for curve in curves for name in curve.fits))
    lines += ["", f"M tokens at which a law meets the goal, to {WITHIN} times the largest run; 95 % if it holds:", ""]
    lines += ["| task | goal, % | " + " | ".join([*names, "hours", "verdict"]) + " |", "|---" * (len(names) + 4) + "|"]
    speed = runs[-1].tokens_per_second
    for curve in curves:
        told = [_millions(curve.tokens(name)) if name in curve.fits else "–" for name in names]
        hours = "–" if curve.reached or not speed else _hours([curve.tokens(name)[0] / speed for name in curve.fits])
        lines.append(f"| {curve.task} | {curve.goal:.1f} | " + " | ".join([*told, hours, curve.verdict()]) + " |")
    pace = f"Hours: at the {speed:,.0f} tokens/s of {runs[-1].name}. " if speed else ""
    lines += ["", f"{pace}Every run is at the end of its own learning rate schedule."]
    lines += ["", "![scores](learning_curve.png)"]
    lines += ["", *(f"- The runs are not alike: {note}" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def _score(run: CurveRun, task: str) -> str:
    if task not in run.scores:
        return "–"
    result = run.scores[task]
    return f"{result.score:.1f}" + ("" if result.low is None else f" [{result.low:.1f}, {result.high:.1f}]")


def _million(tokens: float) -> str:
    return f"{tokens / 1e6:,.0f}" if math.isfinite(tokens) else "∞"


def _millions(tokens: tuple[float, float, float]) -> str:
    return "{} ({} … {})".format(*map(_million, tokens))


def _hours(seconds: Sequence[float]) -> str:
    low, high = (f"{s / 3600:.1f}" if math.isfinite(s) else "∞" for s in (min(seconds), max(seconds)))
    return low if low == high else f"{low} … {high}"


def build(folders: Sequence[Path], output: Path, evaluation: str) -> dict:
    """Reads, fits, writes; returns what learning_curve.json has. LearningCurveError, ReportError."""
    runs = read_runs(folders, evaluation)
    notes = differences(runs)
    other = [note for note in notes if note.startswith(tuple(JUDGED))]
    if other:
        raise LearningCurveError("\n".join([*other, "evaluate all runs on the same documents, with the same flags"]))
    curves = [curve for task in METRICS if (curve := curve_of(task, runs)) is not None]
    if not curves:
        raise LearningCurveError(f"no two runs were judged on one of the tasks {', '.join(METRICS)}: evaluate them")
    found = record(curves, runs, notes)
    output.mkdir(parents=True, exist_ok=True)
    plot_curves(curves, output / "learning_curve.png", WITHIN)
    replace_file(output / "learning_curve.md", markdown(curves, runs, notes).encode())
    replace_file(output / "learning_curve.json", (json.dumps(found, indent=1) + "\n").encode())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.evaluation.learning_curve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runs", required=True, help="folders, separated by commas")
    parser.add_argument("--output", required=True, type=Path, help="folder that the page is written to")
    parser.add_argument("--evaluation", default="evaluation", help="the folder in each run that has evaluation.json")
    options = parser.parse_args(arguments)
    try:
        build([Path(name) for name in options.runs.split(",") if name], options.output, options.evaluation)
    except (LearningCurveError, ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((options.output / "learning_curve.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
