"""Learning curves as a PNG: a panel a task, scores over tokens with the fitted laws and the goal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ar_omni_jax.evaluation.learning_curve import Curve

TITLES = {
    "caption": "caption attributes right, %",
    "t2i": "image attributes read back, %",
    "asr": "ASR word error, %",
    "tts": "TTS word error, %",
}
_COLORS = {"logit": "#1b6ca8", "power": "#c2571a"}


def plot_curves(curves: Sequence[Curve], path: Path, within: float) -> None:
    """Writes `path`; the laws are drawn to `within` times the largest run, at most a decade and a half beyond it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.6), constrained_layout=True, squeeze=False)
    for axis, curve in zip(axes[0], curves, strict=True):
        _panel(axis, curve, min(within, 30))
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis, curve: Curve, within: float) -> None:
    tokens = np.array([run.tokens for run in curve.runs], float)
    results = [run.scores[curve.task] for run in curve.runs]
    scores = np.array([r.score for r in results])
    known = [(s, s) if r.low is None else (r.low, r.high) for r, s in zip(results, scores, strict=True)]
    spans = np.abs(np.array(known).T - scores)
    axis.errorbar(tokens / 1e6, scores, yerr=spans, fmt="o", color="black", ms=4, capsize=2, label="runs, 95 %")
    reach = np.geomspace(tokens.min(), tokens.max() * within, 100)
    for name, fit in curve.fits.items():
        color, style = _COLORS[fit.law], "-" if name.endswith("all sizes") else "--"
        drawn = curve.score_of(fit.share(reach))
        axis.plot(reach / 1e6, drawn[:, 0], style, color=color, lw=1.2, label=name)
        if style == "-":
            axis.fill_between(reach / 1e6, drawn[:, 1], drawn[:, 2], color=color, alpha=0.12, lw=0)
    axis.axhline(curve.goal, color="#2e7d4f", lw=1, ls=":", label="goal")
    axis.set(xscale="log", ylim=(0, max(101.0, scores.max() + 5)), xlabel="M tokens", title=TITLES[curve.task])
