"""One number that all processes come to know at the same step."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.experimental import multihost_utils

LOOK_EVERY_S = 5.0


class Agreement:
    """The largest number that any process has, known to all of them at the same step.

    Asking costs a round over the network and lets the devices run dry for a moment, so processes ask about every
    `LOOK_EVERY_S` seconds only: a machine that is taken away gives half a minute. Each round settles the step of the
    next one, from the pace of the slowest process, so that all of them keep asking at the same steps.
    """

    def __init__(self):
        self._next = 0
        self._last: tuple[int, float] | None = None  # step and time of the last round

    def __call__(self, number: int, step: int, every: int) -> int:
        """The agreed number after `step`, or 0 where this is not a step to ask at.

        To be called after the same steps on all processes. every: at least one round in so many steps. With one
        process it is `number` itself.
        """
        if jax.process_count() == 1:
            return number
        if step < self._next:
            return 0
        now = time.monotonic()
        done, start = self._last or (step - 1, now)
        pace = (now - start) / max(step - done, 1)
        found = multihost_utils.process_allgather(np.array([number, pace], np.float32))
        self._last = step, now
        slowest = float(found[:, 1].max())
        self._next = step + max(1, min(every, int(LOOK_EVERY_S / slowest))) if slowest else step + 1
        return int(found[:, 0].max())
