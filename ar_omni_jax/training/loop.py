"""The training loop: steps, progress, validation, samples, checkpoints, and coming back after any interruption.

`train(run)` owns the order of things and nothing else; what it calls is given to it in a `Run`, so that it knows
neither where batches come from nor how samples are made. The same workdir resumes: state, place in the data and the
half-full metrics window come back from the newest checkpoint, and every later loss is bitwise what it would have been.
What may go wrong, and what is lost then: docs/survival.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ar_omni_jax.checkpoint import Checkpoints, Description
from ar_omni_jax.training import accounting
from ar_omni_jax.training import metrics as metrics_lib
from ar_omni_jax.training.metrics import Stopwatch, Window
from ar_omni_jax.training.profiler import Profiler
from ar_omni_jax.training.progress import progress_line, say
from ar_omni_jax.training.resume import initialize_from, require_same_run, with_parent
from ar_omni_jax.training.saving import Saver
from ar_omni_jax.training.signals import PreemptionNotice, StopSignal
from ar_omni_jax.training.watchdog import Watchdog
from ar_omni_jax.training.writers import Sample, Writers
from ar_omni_jax.vocabulary import JointVocabulary

FINISHED, INTERRUPTED = "finished", "interrupted"
# What the watchdog names.
STARVED = "waiting for batch {} of the train loader (starved input: is what holds the data slow or away?)"
STEP = "step {} is running on the devices (one of them hangs, or another process does)"
BETWEEN = "between two steps"
COMPILING = "step {}, the first one, is compiled and run"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run is made of.

    Attributes:
      config: checked by `config.load_config`. workdir: everything is written there.
      trainer: `training.step.Trainer` (init, abstract_state, put, train_step, eval_step).
      open_loader: (split, start_step) -> iterator of NumPy batches with an integer `.step`, the next one's number.
      vocabulary, tokenizers: what the token ids mean; a checkpoint of another vocabulary is refused.
      data: identity of the data set; another one on resume is told. flops_per_token: of one training step.
      sample: (params["model"], step) -> samples, or None. profile: first and last step of a profiler trace, or None.
      preemption_notice: of `signals.PreemptionNotice`. grace_s: seconds between SIGTERM and the kill; 0: unknown.
    """

    config: ConfigDict
    workdir: Path
    trainer: Any
    open_loader: Callable[[str, int], Iterator[Mapping[str, np.ndarray]]]
    vocabulary: JointVocabulary
    tokenizers: Mapping[str, str]
    data: str
    flops_per_token: float
    sample: Callable[[Any, int], Sequence[Sample]] | None = None
    profile: tuple[int, int] | None = None
    preemption_notice: str = ""
    grace_s: float = 30.0


def train(run: Run, stop: StopSignal | None = None) -> str:
    """Trains to config.train.steps or the end of the data. Returns FINISHED, or INTERRUPTED after a signal.

    Raises CheckpointError, TrainingError, and what loader and trainer raise.
    """
    return _Training(run, stop or StopSignal()).run()


class _Training:
    """One call of `train`: the run, the state and the place in it."""

    def __init__(self, run: Run, stop: StopSignal):
        self.run_, self.config, self.stop = run, run.config, stop
        settings, process = run.config.train, jax.process_index()
        self.goodput = accounting.Goodput()
        self.checkpoints = Checkpoints(
            run.workdir / "checkpoints", keep=settings.keep_checkpoints, keep_every=settings.keep_every
        )
        progress = self._restore_or_start()
        self.window = Window(progress)
        self.owes_validation, self.has_evaluated = bool(progress.get("owes_validation")), False
        saved_step = self.step if self.loader_step or self.step else -1
        self.saver = Saver(self.checkpoints, settings.checkpoint_every, run.grace_s, saved_step)
        self.writers = Writers(run.workdir, self.step, primary=process == 0, redo_validation=self.owes_validation)
        self.writers.settings(self.config.to_dict(), run.trainer.abstract_state().params)
        self.goodput.resume(progress.get("goodput", {}), self.writers.run_seconds)
        self.watch = Stopwatch()
        self.profiler = Profiler(run.workdir / "profile" / f"process_{process}", run.profile)
        self.watchdog = Watchdog(
            exit_s=settings.hang_exit_s,
            process=process,
            processes=jax.process_count(),
            folder=run.workdir / "processes",
        )
        self.watchdog.finished(self.step)

    def run(self) -> str:
        try:
            with self.watchdog, self.profiler, PreemptionNotice(self.run_.preemption_notice, self.stop):
                return self._run()
        finally:
            self.writers.close()

    def _run(self) -> str:
        if self.owes_validation and not self._validate() or self.stop.here():
            say(f"stopped at step {self.step}, where its checkpoint is; run the same command to go on")
            return INTERRUPTED
        if self.step >= self.config.train.steps:
            say(f"nothing to do: {self.step} steps are done; raise --config.train.steps to go on")
            return FINISHED
        self.peak = metrics_lib.peak_flops()
        say(accounting.describe_mfu(self.peak))
        try:
            with _closing(self._open_train_loader()) as loader, self.watchdog.doing(BETWEEN):
                outcome = self._loop(loader)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to be told
                self.checkpoints.close()
            raise
        self.checkpoints.close()
        return outcome

    def _loop(self, loader) -> str:
        settings = self.config.train
        self.first_step, self.started = self.step, None
        batch, previous = self._draw(loader), None
        while batch is not None and self.step < settings.steps:
            metrics = self._take_step(batch)
            # The next batch is drawn while the device works; it is never counted before it is used.
            batch = self._draw(loader, metrics) if self.step < settings.steps else None
            with self.watchdog.doing(STEP.format(self.step - 1)):
                jax.block_until_ready(previous)  # at most two steps are under way
            self.watchdog.finished(self.step - 1)
            previous = metrics["loss"]
            last = self.step == settings.steps or batch is None
            if self.step % settings.log_every == 0 or last:
                self._log()
            if self._after_step(last, previous):
                return INTERRUPTED
        self._finish(batch)
        return FINISHED

    def _take_step(self, batch) -> Mapping[str, jax.Array]:
        """One step is dispatched; the first one, which compiles, is waited for."""
        number = self.step + 1
        self.profiler.step_begins(number)
        first = self.started is None
        with self.watchdog.doing((COMPILING if first else STEP).format(number), patient=first):
            self.state, metrics = self.run_.trainer.train_step(self.state, batch)
            if first:
                jax.block_until_ready(metrics)
        self.step, self.loader_step = number, self.drawn_step
        self.window.add(metrics)
        if first:
            self.started = time.monotonic()
            self.window.begin_timing()
            self.watch.restart()
        with self.watchdog.doing("writing a profiler trace", patient=True):
            self.profiler.step_dispatched(number, metrics)
        return metrics

    def _after_step(self, last: bool, loss: jax.Array) -> bool:
        """Validation, checkpoint and samples where they are due; whether to stop here."""
        with self.watchdog.doing(STEP.format(self.step)):  # several processes ask each other when it is done
            stopping = self.stop.agreed(self.step, self.config.train.log_every)
        self.saver.look(self.step)
        if not (stopping or last or self._anything_due()):
            return False
        with self.watchdog.doing(STEP.format(self.step)):
            jax.block_until_ready(loss)  # the step itself belongs to the time that is counted
        with self.watch.paused():
            return self._on_schedule(last, stopping)

    def _anything_due(self) -> bool:
        settings = self.config.train
        schedules = settings.eval_every, settings.sample_every if self.run_.sample else 0
        return self.saver.due(self.step) or any(self._due(every, last=False) for every in schedules)

    def _on_schedule(self, last: bool, stopping: bool) -> bool:
        settings = self.config.train
        if self._due(settings.eval_every, last):
            # Saving comes first when time may be short: what is owed is made up for when the run goes on.
            self.owes_validation = stopping or not self._validate()
            stopping = stopping or self.stop.here()
        if stopping:
            return self._stop_here(last)
        if last:
            self._save_and_wait()
        elif self.saver.due(self.step):
            with self.watchdog.doing(f"saving step {self.step}"):
                self.saver.save(self.state, self._describe())
        if self.run_.sample and self._due(settings.sample_every, last):
            self._sample()
        return False

    def _stop_here(self, last: bool) -> bool:
        self._save_and_wait()
        if last and not self.owes_validation:
            return False
        after = f" {self.stop.seconds:.1f} s after the signal" if self.stop.number else ""
        say(f"saved step {self.step} in {self.checkpoints.directory}{after}; run the same command to go on")
        return True

    def _finish(self, batch) -> None:
        if self.step < self.config.train.steps and batch is None:
            say(f"the data ended after step {self.step} (config.data.stop = {self.config.data.stop!r})")
        if not self.saver.is_saved(self.step):
            self._save_and_wait()
        say(
            f"done: {self.step} steps, checkpoints in {self.checkpoints.directory}; goodput "
            f"{self.goodput.share():.0%} of {metrics_lib.duration(self.goodput.seconds)}"
        )

    def _due(self, every: int, last: bool) -> bool:
        return bool(every) and (last or self.step % every == 0)

    # -- input -----------------------------------------------------------------------------------------------
    def _open_train_loader(self):
        try:
            return self.run_.open_loader("train", self.loader_step)
        except ValueError as error:
            if type(error) is not ValueError or not self.loader_step:  # its own errors say what is wrong
                raise
            raise TrainingError(
                f"the data cannot be continued after batch {self.loader_step}, where the checkpoint of step "
                f"{self.step} was: {error}. Was the data set replaced by a smaller one? Give the one that the run "
                "began with, a new --workdir with --config.train.init_from, or --config.data.stop=repeat"
            ) from error

    def _draw(self, loader, running: Mapping[str, jax.Array] | None = None):
        """The next batch on the devices, or None at the end of the data. By how much it outlasts the step that ran
        meanwhile counts as input wait. Where the loader fails, the steps so far are saved first."""
        idle = metrics_lib.Idle(running["loss"] if running else None)
        try:
            with self.watchdog.doing(STARVED.format(self.loader_step + 1)):
                rows = next(loader)
        except StopIteration:
            return None
        except Exception:
            if jax.process_count() == 1 and not self.saver.is_saved(self.step) and self.step:
                with contextlib.suppress(Exception):  # the loader's error is the one to be told
                    self._save_and_wait()
                    say(f"saved step {self.step} in {self.checkpoints.directory} before the input's error is told")
            raise
        self.drawn_step = loader.step
        batch = self.run_.trainer.put(rows)
        self.watch.input_wait += idle.seconds()
        return batch

    # -- what happens on a schedule --------------------------------------------------------------------------
    def _log(self) -> None:
        settings = self.config.train
        with self.watchdog.doing(STEP.format(self.step)):
            skipped, spikes = self.window.skipped_in_row, self.window.spikes
        self.watchdog.finished(self.step)
        values = self.window.means()
        timed = self.window.timed_steps > 0
        self.goodput.add(self._useful_seconds())
        rates = metrics_lib.speed(self.window, self.watch, self.run_.flops_per_token, self.peak and self.peak[0])
        machine = accounting.memory() | {"goodput": self.goodput.share(), "run_seconds": self.goodput.seconds}
        if self.saver.stall:
            machine["checkpoint_stall"], self.saver.stall = self.saver.stall, 0.0
        self.writers.scalars(self.step, "train", values | (rates if timed else {}) | machine)
        done = self.step - self.first_step - 1
        left = (time.monotonic() - self.started) / done * (settings.steps - self.step) if done else None
        say(progress_line(self.step, settings.steps, values, rates | machine if timed else {}, left))
        self.window = Window()
        self.watch.restart()
        if skipped >= settings.max_skipped:
            self._give_up(skipped, spikes)

    def _give_up(self, skipped: int, spikes: int) -> None:
        settings = self.config.train
        saved = f"step {self.saver.saved_step}" if self.saver.saved_step > 0 else "none yet"
        spiked = f" or a spike (config.train.skip_spikes = {settings.skip_spikes:g})" if spikes else ""
        raise TrainingError(
            f"loss or gradient was not finite{spiked} in the last {skipped} steps in a row (step {self.step}, "
            f"config.train.max_skipped = {settings.max_skipped}). No weight was changed by them; last checkpoint: "
            f"{saved}. Lower config.optimizer.peak_lr, or look at the data of these steps with "
            "python -m data_pipelines.inspect_shards"
        )

    def _useful_seconds(self) -> float:
        """Seconds since the last log line that went into steps that counted."""
        return max(self.watch.seconds - self.watch.input_wait, 0.0) * self.window.good_share

    def _validate(self) -> bool:
        """Writes the means over the held-out batches; False when a signal came first."""
        sums: dict[str, float] = {}
        batches = 0
        with self.watchdog.doing("validating"), _closing(self.run_.open_loader("validation", 0)) as loader:
            for _ in range(self.config.train.eval_batches):
                what = f"validating: batch {batches + 1} is read and evaluated"
                with self.watchdog.doing(what, patient=not self.has_evaluated):  # the first one compiles
                    rows = next(loader, None)
                    if rows is None:
                        break
                    found = jax.device_get(self.run_.trainer.eval_step(self.state, self.run_.trainer.put(rows)))
                self.has_evaluated = True
                sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
                batches += 1
                if self.stop.here():
                    return False
        if not batches:
            raise TrainingError("the validation split gave no batch; make it larger or set config.train.eval_every=0")
        values = metrics_lib.means_of_sums(sums) | {"tokens": sums["tokens"]}
        self.writers.scalars(self.step, "validation", values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.startswith("nll/"))
        say(f"step {self.step}  validation  {shown}")
        self.owes_validation = False
        return True

    def _sample(self) -> None:
        try:
            with self.watchdog.doing("making samples", patient=True):
                samples = self.run_.sample(self.state.params["model"], self.step)
                self.writers.samples(self.step, samples)
        except Exception:  # looking at samples must not end a run of days
            logging.exception("step %d: making samples failed; training goes on", self.step)
            return
        say(f"step {self.step}  {len(samples)} samples in {self.run_.workdir / 'samples'}")

    # -- checkpoints -----------------------------------------------------------------------------------------
    def _save_and_wait(self) -> None:
        with self.watchdog.doing(f"saving step {self.step}"):
            self.saver.save_and_wait(self.state, self._describe())

    def _describe(self) -> Description:
        """What is saved beside the state; everything written so far is on disk when this returns."""
        self.writers.flush()
        progress = self.window.to_json() | {"goodput": self.goodput.to_json(self._useful_seconds())}
        if self.owes_validation:
            progress["owes_validation"] = True
        return Description(
            step=self.step,
            loader_step=self.loader_step,
            config=self.config.to_dict(),
            vocabulary=self.run_.vocabulary.to_dict(),
            vocabulary_fingerprint=self.run_.vocabulary.fingerprint,
            tokenizers=dict(self.run_.tokenizers),
            data=self.run_.data,
            progress=progress,
        )

    def _restore_or_start(self) -> Mapping[str, Any]:
        """Sets state, step and place in the data; returns what the run had in progress."""
        run = self.run_
        found = self.checkpoints.restore_latest(run.trainer.abstract_state(), self._check)
        if found is not None:
            self.state, description = found
            say(f"resuming after step {description.step} from {self.checkpoints.directory}")
            self.step, self.loader_step = description.step, description.loader_step
            self.config = with_parent(self.config, description.config)
            return description.progress
        self.state, self.step, self.loader_step = run.trainer.init(self.config.seed), 0, 0
        if self.config.train.init_from:
            placement = self.config.model.norm_placement
            self.state = initialize_from(self.state, self.config.train.init_from, run.vocabulary, placement)
        return {}

    def _check(self, saved: Description) -> None:
        where = f"the checkpoint of step {saved.step} in {self.checkpoints.directory}"
        run, config = self.run_, self.config.to_dict()
        require_same_run(
            saved, where, vocabulary=run.vocabulary, tokenizers=run.tokenizers, config=config, data=run.data
        )


@contextlib.contextmanager
def _closing(iterator):
    """Closes an iterator that can be closed."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
