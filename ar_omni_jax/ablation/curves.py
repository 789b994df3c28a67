"""Loss curves and gradient norms of many runs as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ar_omni_jax.ablation.results import Run

DPI = 120
OURS, THEIRS = "#1b6ca8", "#b3261e"


def series(run: Run, key: str) -> dict[int, float]:
    """Step -> value, of the training records that have one."""
    return {r["step"]: r[key] for r in run.train if r.get(key) is not None}


def plot_variants(runs: Mapping[str, list[Run]], key: str, path: Path) -> None:
    """One training curve a variant: mean over seeds as a line, their range as a band."""
    perceptual = key == "perceptual"

    def draw(axes):
        for number, (name, rows) in enumerate(runs.items()):
            _mean_and_range(axes, rows, key, name, f"C{number}" if len(runs) <= 10 else _color(number))
        axes.set(xlabel="step", ylabel="squared distance, at each variant's depth" if perceptual else "nats a token")
        axes.set_title("perceptual loss in training" if perceptual else f"next-token loss of {key[4:]} in training")
        if axes.lines:
            axes.legend(fontsize=7, ncols=2)
            if perceptual:
                _log_scale(axes)

    _save(path, [draw])


def plot_decomposition(runs: list[Run], path: Path) -> None:
    """The paper's Figure 2: weighted next-token loss, perceptual loss and total of the full method."""
    panels = {"weighted_nll": "weighted next-token loss", "perceptual": "perceptual loss", "loss": "total"}

    def panel(key, title):
        def draw(axes):
            _mean_and_range(axes, runs, key, "full", OURS)
            axes.set(xlabel="step", title=title)
            if key == "perceptual" and axes.lines:
                _log_scale(axes)

        return draw

    _save(path, [panel(key, title) for key, title in panels.items()], width=4)


def plot_against_plain(full: list[Run], plain: list[Run], path: Path) -> None:
    """The paper's Figure 3: total loss of the full method and of plain next-token prediction, each on its own axis.

    One unsmoothed line a seed: a mean would hide what is looked for.
    """

    def panel(runs, title, color):
        def draw(axes):
            for run in runs:
                points = series(run, "loss")
                axes.plot(points.keys(), points.values(), lw=0.9, color=color, alpha=0.7)
            axes.set(xlabel="step", ylabel="total loss", title=title)

        return draw

    _save(path, [panel(full, "full method", OURS), panel(plain, "plain next-token prediction", THEIRS)], width=5)


def plot_rungs(rungs: Mapping[int, Mapping[str, list[Run]]], key: str, title: str, path: Path, smooth: int = 1) -> None:
    """One panel a learning rate, one line a seed in the colour of its arm.

    Args:
      rungs: factor on the learning rates -> arm -> runs. smooth: steps of a running median; 1 shows every step.
    """
    others = sorted({name for arms in rungs.values() for name in arms} - {"plain", "guarded"})
    colors = {"plain": THEIRS, "guarded": OURS} | dict(zip(others, ("C1", "C2", "C4"), strict=False))

    def panel(rate, arms):
        def draw(axes):
            for name, runs in arms.items():
                for number, run in enumerate(runs):
                    points = series(run, key)
                    steps, values = np.array(list(points)), np.array(list(points.values()))
                    if len(values) >= smooth:
                        windows = np.lib.stride_tricks.sliding_window_view(values, smooth)
                        values, steps = np.median(windows, axis=1), steps[smooth - 1 :]
                        label = None if number else name
                        axes.plot(steps, values, lw=0.8, alpha=0.7, color=colors[name], label=label)
            axes.set(xlabel="step", title=f"{title}, rates × {rate}")
            if axes.lines:
                _log_scale(axes)
                axes.legend(fontsize=7)

        return draw

    _save(path, [panel(rate, arms) for rate, arms in rungs.items()], width=4.6, share=True)


def _mean_and_range(axes, runs: list[Run], key: str, label: str, color) -> None:
    found = [points for points in (series(run, key) for run in runs) if points]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    if steps:
        values = np.array([[points[step] for step in steps] for points in found])
        axes.plot(steps, values.mean(0), lw=1.2, color=color, label=label)
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)


def _log_scale(axes) -> None:
    """Labels as 0.2, 0.5, 1, 2 rather than powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _color(number: int):
    import matplotlib.pyplot as plt

    return plt.get_cmap("tab20")(number % 20)


def _save(path: Path, panels: list[Callable], width: float = 6.4, share: bool = False) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (width * len(panels), 4 if len(panels) == 1 else 3.4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, constrained_layout=True, squeeze=False, sharey=share)
    for draw, place in zip(panels, axes[0], strict=True):
        draw(place)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
