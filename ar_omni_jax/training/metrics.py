"""From the step's device scalars to what people read: means over a window, speed, utilization, time left.

Sums ("nll/text", "count/text", "tokens", ...) add up over a window and give means; the others ("loss",
"grad_norm", ...) are averaged over the window's good steps. A window survives a restart (`to_json`), so that the
line it ends in does not depend on interruptions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax

SUMS = ("nll/", "count/", "nll_task/", "count_task/")
SUM_NAMES = ("tokens", "weight", "weighted_nll", "perceptual_sum", "perceptual_count", "skipped", "spikes")
LAST = ("learning_rate", "skipped_in_row")

# Dense bfloat16 peak of one device, FLOP/s, by the start of `device_kind` (vendors' data sheets, no sparsity).
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def _is_sum(name: str) -> bool:
    return name in SUM_NAMES or name.startswith(SUMS)


class Window:
    """Metrics of the steps since the last log line."""

    def __init__(self, state: Mapping[str, Any] | None = None):
        state = state or {}
        self.steps: int = state.get("steps", 0)
        self._good: int = state.get("good", 0)
        self._totals: dict[str, float] = dict(state.get("totals", {}))
        self._last: dict[str, float] = dict(state.get("last", {}))
        self._waiting: list[dict[str, jax.Array]] = []
        self._untimed_steps, self._untimed = 0, {}

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """One step's metrics; left on the device until somebody asks."""
        self._waiting.append(dict(metrics))

    def begin_timing(self) -> None:
        """The stopwatch starts now: the steps so far (of another process, or that compiled) are no measure of speed."""
        self._fetch()
        self._untimed_steps, self._untimed = self.steps, dict(self._totals)

    def _fetch(self) -> None:
        for metrics in jax.device_get(self._waiting):
            values = {name: float(value) for name, value in metrics.items()}
            good = not values.get("skipped")
            self.steps += 1
            self._good += good
            for name, value in values.items():
                if name in LAST:
                    self._last[name] = value
                elif _is_sum(name) or good:  # a skipped step's loss is not a number
                    self._totals[name] = self._totals.get(name, 0.0) + value
        self._waiting = []

    def to_json(self) -> dict[str, Any]:
        """The window as plain numbers; `Window(state)` goes on from it exactly."""
        self._fetch()
        return {"steps": self.steps, "good": self._good, "totals": self._totals, "last": self._last}

    @property
    def skipped_in_row(self) -> int:
        """Steps skipped at the end of the window without a good one after them."""
        self._fetch()
        return int(self._last.get("skipped_in_row", 0))

    @property
    def spikes(self) -> int:
        """Steps of the window that were skipped as spikes."""
        self._fetch()
        return int(self._totals.get("spikes", 0))

    @property
    def good_share(self) -> float:
        """Share of the window's steps that were not skipped (1 for an empty window)."""
        self._fetch()
        return self._good / self.steps if self.steps else 1.0

    @property
    def timed_steps(self) -> int:
        """Steps since `begin_timing`, all where that was not called."""
        self._fetch()
        return self.steps - self._untimed_steps

    @property
    def tokens(self) -> dict[str, float]:
        """Non-padding tokens of the timed steps, in "all" and as targets of each modality."""
        self._fetch()
        return {"all": self._totals.get("tokens", 0.0) - self._untimed.get("tokens", 0.0)} | self._timed("count/")

    @property
    def task_tokens(self) -> dict[str, float]:
        """Targets of the timed steps by task, of the tasks that they had."""
        return {name: count for name, count in self._timed("count_task/").items() if count}

    def _timed(self, prefix: str) -> dict[str, float]:
        """Totals of the timed steps whose names start with `prefix`, without it."""
        self._fetch()
        found = {name: total for name, total in self._totals.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): total - self._untimed.get(name, 0.0) for name, total in found.items()}

    def means(self) -> dict[str, float]:
        """Everything for a log line: `means_of_sums` and the averages over good steps."""
        self._fetch()
        means = means_of_sums(self._totals)
        averaged = {k: v / self._good for k, v in self._totals.items() if not _is_sum(k) and self._good}
        counted = {name: self._totals[name] for name in ("spikes",) if name in self._totals}
        return averaged | means | self._last | {"skipped": self._totals.get("skipped", 0.0)} | counted


def means_of_sums(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums over tokens -> means: nll/X and nll_task/X (nats a token, where there are any), weighted_nll, perceptual."""
    out = {}
    for name, value in sums.items():
        if name.startswith(("nll/", "nll_task/")):
            count = sums[name.replace("nll", "count", 1)]
            if count:
                out[name] = value / count
    if sums.get("weight"):
        out["weighted_nll"] = sums["weighted_nll"] / sums["weight"]
    if sums.get("perceptual_count") and "perceptual_sum" in sums:
        out["perceptual"] = sums["perceptual_sum"] / sums["perceptual_count"]
    return out


class Stopwatch:
    """Seconds of training, without compilation, validation, samples and checkpoints."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Starts a new window now."""
        self._start, self._excluded, self.input_wait = time.monotonic(), 0.0, 0.0
        self._pause: float | None = None  # since when

    @contextmanager
    def paused(self):
        """What runs inside is not counted, also while it runs."""
        self._pause = time.monotonic()
        yield
        self._excluded += time.monotonic() - self._pause
        self._pause = None

    @property
    def seconds(self) -> float:
        """Training seconds of the window."""
        now = time.monotonic() if self._pause is None else self._pause
        return max(now - self._start - self._excluded, 1e-9)


class Idle:
    """For how long the devices have had nothing to do, from now on: since `running`, a result of what they are at,
    was computed. None: they are at nothing."""

    def __init__(self, running: jax.Array | None):
        self._since = time.monotonic() if running is None else None
        if running is not None:  # only who waits for a result learns when it came
            threading.Thread(target=self._wait, args=(running,), name="idle", daemon=True).start()

    def _wait(self, running: jax.Array) -> None:
        with suppress(Exception):  # the loop meets it as well
            jax.block_until_ready(running)
            self._since = time.monotonic()

    def seconds(self) -> float:
        """Of idleness so far; 0 while they work."""
        return 0.0 if self._since is None else time.monotonic() - self._since


def peak_flops() -> tuple[float, str] | None:
    """(FLOP/s of one device, the table's name for it), or None for a device that is not in the table.

    A CPU is not: what it could do is nobody's data sheet, and on a shared machine no measurement of it holds.
    """
    kind = jax.devices()[0].device_kind
    return next(((peak, name) for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


def speed(window: Window, watch: Stopwatch, flops_per_token: float, peak: float | None) -> dict[str, float]:
    """tokens/s in all, by modality and by task, useful FLOP/s, MFU and the share of time spent waiting for input.

    Useful FLOP/s = tokens/s x FLOP a token, tokens without padding, FLOP without recomputation.
    MFU = useful FLOP/s / (devices x peak); left out where the peak is not known.
    """
    seconds = watch.seconds
    rates = {name: tokens / seconds for name, tokens in window.tokens.items()}
    out = {f"tokens_per_second/{name}": rate for name, rate in rates.items()}
    out |= {f"tokens_per_second_task/{name}": n / seconds for name, n in window.task_tokens.items()}
    out["flops_per_second"] = rates["all"] * flops_per_token
    out["input_wait"] = min(watch.input_wait / seconds, 1.0)
    if peak:
        out["mfu"] = out["flops_per_second"] / (peak * jax.device_count())
    return out


def duration(seconds: float) -> str:
    """Seconds -> "2h05m" or "3m07s"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
