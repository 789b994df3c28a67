"""Traces of single steps for TensorBoard's profiler or Perfetto: of given steps, or of the next ones on SIGUSR1."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import jax

from ar_omni_jax.training.progress import say

ON_SIGNAL = 5  # steps of a trace that SIGUSR1 asks for


class ProfileError(ValueError):
    """A --profile that names no steps."""


def parse_steps(text: str) -> tuple[int, int]:
    """ "START:STOP" -> (first step, last step), both traced and counted from 1."""
    first, colon, last = text.partition(":")
    if colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise ProfileError(f"--profile={text}: give the first and the last step of the trace, such as --profile=20:22")


class Profiler:
    """Traces into `folder`, one sub-folder a trace.

    Args:
      steps: first and last step to trace, or None. on_signal: steps of a trace that SIGUSR1 asks for (ON_SIGNAL).
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, on_signal: int | None = None):
        self._folder, self._steps, self._on_signal = folder, steps, on_signal or ON_SIGNAL
        self._asked, self._last = False, 0  # the last step of the trace under way, 0: none is
        self._before: Any = None

    def __enter__(self) -> Profiler:
        try:
            self._before = signal.signal(signal.SIGUSR1, self._ask)
        except ValueError:  # not the main thread: signals are not this loop's
            self._before = None
        return self

    def __exit__(self, *_) -> None:
        if self._last:
            self._stop()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _ask(self, _number: int, _frame: Any) -> None:
        self._asked = True

    def step_begins(self, step: int) -> None:
        """Before step `step` (from 1) is dispatched."""
        if self._last:
            return
        if self._steps and self._steps[0] <= step <= self._steps[1]:
            self._start(step, self._steps[1])
        elif self._asked:
            self._start(step, step + self._on_signal - 1)
        self._asked = False

    def step_dispatched(self, step: int, metrics: Any) -> None:
        """After step `step` is dispatched; waits for it where it is the last of a trace."""
        if self._last and step >= self._last:
            jax.block_until_ready(metrics)
            self._stop()

    def _start(self, first: int, last: int) -> None:
        folder = self._folder / f"step_{first:07d}"
        try:
            jax.profiler.start_trace(str(folder))
        except Exception as error:  # looking at a run must not end it
            logging.warning("no profiler trace of step %d: %s", first, error)
            self._steps = None
            return
        self._last = last
        say(f"step {first}  tracing to step {last} into {folder}")

    def _stop(self) -> None:
        last, self._last = self._last, 0
        try:
            jax.profiler.stop_trace()
            say(f"step {last}  trace written; python -m tensorboard.main --logdir={self._folder} or Perfetto shows it")
        except Exception as error:
            logging.warning("the profiler trace up to step %d could not be written: %s", last, error)
