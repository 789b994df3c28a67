"""The training loop: steps, progress, validation, samples, checkpoints, and coming back after any interruption.

`train(run)` owns the order of things and nothing else; what it calls is given to it in a `Run`, so that it knows
neither where batches come from nor how samples are made. The same workdir resumes: state, place in the data and the
half-full metrics window come back from the newest checkpoint, and every later loss is bitwise what it would have been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ar_omni_jax.checkpoint import (
    CheckpointError,
    Checkpoints,
    Description,
    load_arrays,
    named_leaves,
    place_leaves,
)
from ar_omni_jax.config import changes_on_resume
from ar_omni_jax.parallel.agreement import Agreement
from ar_omni_jax.training import metrics as metrics_lib
from ar_omni_jax.training.metrics import Stopwatch, Window, duration
from ar_omni_jax.training.writers import Sample, Writers
from ar_omni_jax.vocabulary import JointVocabulary

FINISHED, INTERRUPTED = "finished", "interrupted"


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
      sample: (params["model"], step) -> samples, or None.
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


class StopSignal:
    """Remembers the first SIGINT or SIGTERM so that the loop can save first; the second one ends at once."""

    def __init__(self):
        self.number = 0
        self._agreement = Agreement()

    def install(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame: Any) -> None:
        self.number = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        text = f"{signal.Signals(number).name}: finishing this step and saving (again to quit at once)\n"
        if jax.process_index() == 0:  # not `print`: it is not reentrant, and the signal may have come inside one
            os.write(1, text.encode())

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop after `step`; several processes ask each other, at least at every `every`-th step. The
        number is then the same on all, so that all end with the same code."""
        number = self._agreement(self.number, step, every)
        self.number = number or self.number
        return bool(number)


def say(text: str) -> None:
    """Prints on the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)


# ------------------------------------------------------------------------------------------------- the loop


def train(run: Run, stop: StopSignal | None = None) -> str:
    """Trains to config.train.steps or the end of the data. Returns FINISHED, or INTERRUPTED after a signal.

    Raises CheckpointError, TrainingError, and what loader and trainer raise.
    """
    return _Training(run, stop or StopSignal()).run()


class _Training:
    """One call of `train`: the run, the state and the place in it."""

    def __init__(self, run: Run, stop: StopSignal):
        self.run_, self.config, self.stop = run, run.config, stop
        settings = run.config.train
        self.checkpoints = Checkpoints(
            run.workdir / "checkpoints", keep=settings.keep_checkpoints, keep_every=settings.keep_every
        )
        self.state, self.step, self.loader_step, self.window = self._restore_or_start()
        self.restored_window = self.window.steps > 0
        self.saved_step = self.step if self.loader_step or self.step else -1
        self.writers = Writers(run.workdir, self.step, primary=jax.process_index() == 0)
        self.watch = Stopwatch()

    def run(self) -> str:
        if self.step >= self.config.train.steps:
            say(f"nothing to do: {self.step} steps are done; raise --config.train.steps to go on")
            self.writers.close()
            return FINISHED
        self.peak = metrics_lib.peak_flops()
        if self.peak:
            peak, name = self.peak
            say(f"MFU = tokens/s x FLOP a token / {peak / 1e12:.0f} TFLOP/s a device ({name}, dense bfloat16)")
        try:
            with _closing(self.run_.open_loader("train", self.loader_step)) as loader:
                return self._loop(loader)
        finally:
            self.writers.close()
            self.checkpoints.close()

    def _loop(self, loader) -> str:
        settings, trainer = self.config.train, self.run_.trainer
        self.first_step, self.started = self.step, None
        batch, previous = self._draw(loader), None
        while batch is not None and self.step < settings.steps:
            self.state, metrics = trainer.train_step(self.state, batch)
            self.step, self.loader_step = self.step + 1, self.drawn_step
            self.window.add(metrics)
            if self.started is None:  # the first step compiled
                jax.block_until_ready(metrics)
                self.started = time.monotonic()
                self.watch.restart()
            # The next batch is drawn while the device works; it is never counted before it is used.
            batch = self._draw(loader, metrics) if self.step < settings.steps else None
            jax.block_until_ready(previous)  # at most two steps are under way
            previous = metrics["loss"]
            last = self.step == settings.steps or batch is None
            if self.step % settings.log_every == 0 or last:
                self._log()
            with self.watch.paused():
                if self._due(settings.eval_every, last):
                    self._validate()
                if self.run_.sample and self._due(settings.sample_every, last):
                    self._sample()
                stopping = self.stop.agreed(self.step, settings.log_every)
                if self._due(settings.checkpoint_every, last) or stopping:
                    self._save()
            if stopping and not last:
                self.checkpoints.wait()
                say(f"saved step {self.step} in {self.checkpoints.directory}; run the same command to go on")
                return INTERRUPTED
        self._finish(batch)
        return FINISHED

    def _finish(self, batch) -> None:
        if self.step < self.config.train.steps and batch is None:
            say(f"the data ended after step {self.step} (config.data.stop = {self.config.data.stop!r})")
        if self.saved_step != self.step:
            self._save()
        self.checkpoints.wait()
        say(f"done: {self.step} steps, checkpoints in {self.checkpoints.directory}")

    def _due(self, every: int, last: bool) -> bool:
        return bool(every) and (last or self.step % every == 0)

    def _draw(self, loader, running: Mapping[str, jax.Array] | None = None):
        """The next batch on the devices, or None at the end of the data. Counts as input wait when it outlasts the
        step that ran meanwhile."""
        start = time.monotonic()
        try:
            rows = next(loader)
        except StopIteration:
            return None
        self.drawn_step = loader.step
        batch = self.run_.trainer.put(rows)
        if running is None or running["loss"].is_ready():
            self.watch.input_wait += time.monotonic() - start
        return batch

    # -- what happens on a schedule --------------------------------------------------------------------------
    def _log(self) -> None:
        settings = self.config.train
        skipped = self.window.skipped_in_row
        values = self.window.means()
        # Neither the step that compiled nor those before an interruption are a measure of this process's speed.
        timed = (self.window.steps > 1 or self.step > self.first_step + 1) and not self.restored_window
        rates = metrics_lib.speed(self.window, self.watch, self.run_.flops_per_token, self.peak and self.peak[0])
        self.writers.scalars(self.step, "train", values | (rates if timed else {}))
        done = self.step - self.first_step - 1
        left = (time.monotonic() - self.started) / done * (settings.steps - self.step) if done else None
        say(progress_line(self.step, settings.steps, values, rates if timed else {}, left))
        self.window, self.restored_window = Window(), False
        self.watch.restart()
        if skipped >= settings.max_skipped:
            saved = f"step {self.saved_step}" if self.saved_step > 0 else "none yet"
            raise TrainingError(
                f"loss or gradient was not finite in the last {skipped} steps in a row (step {self.step}, "
                f"config.train.max_skipped = {settings.max_skipped}). No weight was changed by them; last checkpoint: "
                f"{saved}. Lower config.optimizer.peak_lr, or look at the data of these steps with "
                "python -m data_pipelines.inspect_shards"
            )

    def _validate(self) -> None:
        sums: dict[str, float] = {}
        batches = 0
        with _closing(self.run_.open_loader("validation", 0)) as loader:
            for rows in itertools.islice(loader, self.config.train.eval_batches):
                found = jax.device_get(self.run_.trainer.eval_step(self.state, self.run_.trainer.put(rows)))
                sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
                batches += 1
        if not batches:
            raise TrainingError("the validation split gave no batch; make it larger or set config.train.eval_every=0")
        values = metrics_lib.means_of_sums(sums) | {"tokens": sums["tokens"]}
        self.writers.scalars(self.step, "validation", values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.startswith("nll/"))
        say(f"step {self.step}  validation  {shown}")

    def _sample(self) -> None:
        try:
            samples = self.run_.sample(self.state.params["model"], self.step)
        except Exception:  # looking at samples must not end a run of days
            logging.exception("step %d: making samples failed; training goes on", self.step)
            return
        self.writers.samples(self.step, samples)
        say(f"step {self.step}  {len(samples)} samples in {self.run_.workdir / 'samples'}")

    # -- checkpoints -----------------------------------------------------------------------------------------
    def _save(self) -> None:
        self.writers.flush()
        description = Description(
            step=self.step,
            loader_step=self.loader_step,
            config=self.config.to_dict(),
            vocabulary=self.run_.vocabulary.to_dict(),
            vocabulary_fingerprint=self.run_.vocabulary.fingerprint,
            tokenizers=dict(self.run_.tokenizers),
            data=self.run_.data,
            progress=self.window.to_json(),
        )
        self.checkpoints.save(self.state, description)
        self.saved_step = self.step

    def _restore_or_start(self) -> tuple[Any, int, int, Window]:
        found = self.checkpoints.restore_latest(self.run_.trainer.abstract_state(), self._check)
        if found is not None:
            state, description = found
            say(f"resuming after step {description.step} from {self.checkpoints.directory}")
            return state, description.step, description.loader_step, Window(description.progress)
        state = self.run_.trainer.init(self.config.seed)
        if self.config.train.init_from:
            placement = self.config.model.norm_placement
            state = initialize_from(state, self.config.train.init_from, self.run_.vocabulary, placement)
        return state, 0, 0, Window()

    def _check(self, saved: Description) -> None:
        """CheckpointError when the checkpoint belongs to another run; changed settings are told."""
        where = f"the checkpoint of step {saved.step} in {self.checkpoints.directory}"
        require_same_vocabulary(saved, self.run_.vocabulary, where)
        remedy = "Use a new --workdir or the old values"
        for name, identity in self.run_.tokenizers.items():
            if saved.tokenizers.get(name, identity) != identity:
                raise CheckpointError(
                    f"{where} was trained with {name} tokenizer {saved.tokenizers[name]}, this run has {identity}. "
                    + remedy
                )
        refused, warned = changes_on_resume(saved.config, self.config.to_dict())
        if refused:
            raise CheckpointError(f"{where} is of another model: {'; '.join(refused)}. {remedy}")
        if saved.data and saved.data != self.run_.data:
            warned.append(f"the data set was {saved.data} and is {self.run_.data}: its order is not continued")
        for change in warned:
            say(f"warning: resuming with a change: {change}")


def progress_line(step: int, steps: int, values: Mapping, rates: Mapping, seconds_left: float | None) -> str:
    """One line: loss, nll by modality, gradient norm, tokens/s by modality, MFU, input wait, time left."""
    parts = [f"step {step}/{steps}", f"loss {values.get('loss', float('nan')):.4f}"]
    parts += [f"{k.removeprefix('nll/')} {v:.3f}" for k, v in values.items() if k.startswith("nll/")]
    if values.get("perceptual_count"):
        parts.append(f"perceptual {values['perceptual']:.3g}")
    parts.append(f"|g| {values.get('grad_norm', float('nan')):.3g}")
    if values.get("skipped"):
        parts.append(f"SKIPPED {values['skipped']:.0f}")
    if rates:
        per = ", ".join(
            f"{k.removeprefix('tokens_per_second/')} {v:,.0f}"
            for k, v in rates.items()
            if k.startswith("tokens_per_second/") and not k.endswith(("/all", "/marker"))
        )
        parts.append(f"{rates['tokens_per_second/all']:,.0f} tokens/s ({per})")
        useful = f"{rates['flops_per_second'] / 1e9:,.3g} GFLOP/s"
        parts.append(f"MFU {rates['mfu']:.1%}" if "mfu" in rates else useful)
        parts.append(f"input wait {rates['input_wait']:.0%}")
    parts += [f"{duration(seconds_left)} left"] if seconds_left is not None else []
    return "  ".join(parts)


def require_same_vocabulary(saved: Description, vocabulary: JointVocabulary, where: str) -> None:
    """CheckpointError, both named, unless the checkpoint speaks `vocabulary`."""
    if saved.vocabulary_fingerprint != vocabulary.fingerprint:
        raise CheckpointError(
            f"{where} speaks vocabulary {saved.vocabulary.get('name')!r} = {saved.vocabulary_fingerprint}, this run "
            f"{vocabulary.name!r} = {vocabulary.fingerprint}; use the tokenizers it was trained with"
        )


def initialize_from(state, directory: str, vocabulary: JointVocabulary, norm_placement: str = ""):
    """`state` with the weights of another run's checkpoint; optimizer and step stay fresh.

    The perceptual projection comes along where the checkpoint has one that fits; an exported model has none. Weights
    of another `norm_placement` than this run's are loaded with a warning: they are then another function.
    """
    where = f"config.train.init_from = {directory}"
    own = named_leaves(state.params)
    leaves, description = load_arrays(directory, "params.", sharding={k: v.sharding for k, v in own.items()})
    require_same_vocabulary(description, vocabulary, where)
    for name, leaf in own.items():
        if name.startswith("projection.") and (name not in leaves or leaves[name].shape != leaf.shape):
            say(f"{where} has no {name} of shape {list(leaf.shape)}; it starts from new values")
            leaves[name] = leaf
    loaded = place_leaves(state.params, leaves, where)
    found = description.config.get("model", {}).get("norm_placement", norm_placement)
    if norm_placement and found != norm_placement:
        logging.warning(
            "%s holds %s-norm weights, this run is %s-norm: a starting point, not the same model (the same function "
            "needs --config.model.norm_placement=%s)", where, found, norm_placement, found
        )
    say(f"weights from step {description.step} of {directory}")
    return dataclasses.replace(state, params=jax.tree.map(lambda x, old: x.astype(old.dtype), loaded, state.params))


@contextlib.contextmanager
def _closing(iterator):
    """Closes an iterator that can be closed."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
