"""When to save, and what to do when saving fails: the run goes on, tries again, and only then gives up."""

from __future__ import annotations

import time
from typing import Any

import jax

from ar_omni_jax.checkpoint import Checkpoints, Description, SaveError
from ar_omni_jax.training.progress import say

MAX_FAILED = 10  # saves in a row; each is tried again a tenth of `every` steps later
# The last save of a process has no later step to be tried again after.
FINAL_TRIES, FINAL_PAUSE_S = 3, 10.0


class Saver:
    """Saves through `checkpoints` every `every` steps.

    `grace_s`: seconds between SIGTERM and the kill, 0: unknown. `saved_step`: of the newest checkpoint that is
    complete; -1 before the first. `stall`: seconds that the loop stood still for saving since it was last set to 0.
    """

    def __init__(self, checkpoints: Checkpoints, every: int, grace_s: float, saved_step: int):
        self._checkpoints, self._every, self._grace_s = checkpoints, every, grace_s
        self.saved_step, self.stall = saved_step, 0.0
        self._started_step = saved_step
        self._failed, self._retry_at, self._told_slow = 0, 0, False

    def due(self, step: int) -> bool:
        """Whether `step` is one after which to save."""
        return step % self._every == 0 or bool(self._retry_at and step >= self._retry_at)

    def is_saved(self, step: int) -> bool:
        """Whether a save of `step` is complete or under way."""
        return self._started_step == step

    def save(self, state: Any, description: Description) -> None:
        """Starts a save. One that fails, now or in the background, is told and tried again some steps later; SaveError
        after MAX_FAILED in a row."""
        jax.block_until_ready(state)  # the step that makes it is no part of the stall
        start = time.monotonic()
        try:
            self._end_previous(description.step, wait=True)
            self._checkpoints.save(state, description)
            self._started_step, self._retry_at = description.step, 0
        except SaveError as error:
            self._has_failed(description.step, error)
        finally:
            self.stall += time.monotonic() - start

    def save_and_wait(self, state: Any, description: Description) -> None:
        """The last save of a process: complete when this returns; SaveError after FINAL_TRIES."""
        jax.block_until_ready(state)
        start = time.monotonic()
        for left in reversed(range(FINAL_TRIES)):
            try:
                if self._started_step != description.step:
                    self._started_step = self.saved_step
                    self._checkpoints.save(state, description)
                    self._started_step = description.step
                self._checkpoints.wait()
                self._has_succeeded()
                break
            except SaveError as error:
                self._started_step = self.saved_step
                if not left or jax.process_count() > 1:
                    raise self._last_words(error) from error
                say(f"warning: {error}; trying again in {FINAL_PAUSE_S:.0f} s, {left} more")
                time.sleep(FINAL_PAUSE_S)
        self.stall += time.monotonic() - start

    def look(self, step: int) -> None:
        """After each step: learns how the save under way went, without waiting for it."""
        if jax.process_count() == 1:
            self._end_previous(step, wait=False)

    def _end_previous(self, step: int, wait: bool) -> None:
        """The end of the save under way, if there is one; `step`: where the run is now."""
        if self._started_step == self.saved_step:
            return
        try:
            if wait:
                self._checkpoints.wait()
            elif not self._checkpoints.poll():
                return
            self._has_succeeded()
        except SaveError as error:
            self._started_step = self.saved_step
            self._has_failed(step, error)

    def _has_succeeded(self) -> None:
        self.saved_step, self._failed, self._retry_at = self._started_step, 0, 0
        grace, seconds = self._grace_s, self._checkpoints.seconds
        if grace and seconds > grace and not self._told_slow:
            self._told_slow = True
            say(
                f"warning: the save of step {self.saved_step} took {seconds:.0f} s, longer than the {grace:.0f} s "
                "between SIGTERM and the kill (--grace): a preemption may lose the steps since the last "
                "checkpoint; lower config.train.checkpoint_every"
            )

    def _has_failed(self, step: int, error: SaveError) -> None:
        self._failed += 1
        if self._failed >= MAX_FAILED or jax.process_count() > 1:
            raise self._last_words(f"{error}. {self._failed} saves failed in a row") from error
        self._retry_at = step + max(1, self._every // 10)
        say(f"warning: {error}. Training goes on; next try after step {self._retry_at}")

    def _last_words(self, what: object) -> SaveError:
        saved = f"step {self.saved_step}" if self.saved_step > 0 else "none"
        return SaveError(f"{what}; last checkpoint: {saved}. Make room, then run the same command")
