"""Trains an image or speech codec: `python -m ar_omni_jax.tokenizers.train --config=FILE --workdir=DIR`.

The command owns everything that does not depend on the modality: the loop, progress, metrics, checkpoints,
resuming, signals and exports. What is trained comes from `ar_omni_jax.tokenizers.{config.kind}.training`,
whose `create_task(config)` returns a `CodecTask`.

WORKDIR/metrics.jsonl            one JSON object a line: {"step", "split": "train" | "eval", metrics ...}
WORKDIR/checkpoint.safetensors   the latest state, replaced atomically; running the command again resumes it
WORKDIR/{kind}.safetensors/.json the tokenizer as of the latest evaluation, ready to be loaded
WORKDIR/samples/step_NNNNNNN/    whatever the task's `evaluate` gives (pictures, sounds)

A resumed run continues bit for bit: batches are a function of (seed, step) and the state holds all else.
"""

import importlib
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ar_omni_jax.files import replace_file

KINDS = ("image", "speech")
REQUIRED = {
    "kind": str,
    "data_dir": str,
    "seed": int,
    "steps": int,
    "log_every": int,
    "eval_every": int,
    "checkpoint_every": int,
    "learning_rate": float,
}
# Keys that may differ between the run that wrote a checkpoint and the one that resumes it.
FREE_ON_RESUME = ("data_dir", "steps", "log_every", "eval_every", "checkpoint_every")

State = Any  # a pytree of arrays


class CheckpointError(ValueError):
    """WORKDIR/checkpoint.safetensors cannot be resumed from; the message says why and what to do."""


class CodecTask(Protocol):
    """What a modality's `create_task(config)` returns. Raise OSError or ValueError there for bad data."""

    def init(self, seed: int) -> State:
        """The state at step 0: parameters, optimizer, codebook statistics; a pytree of arrays only."""

    def batches(self, start_step: int, seed: int) -> Iterator[Any]:
        """Numpy batches for steps start_step, start_step + 1, ...: each a function of (seed, step)."""

    def train_step(self, state: State, batch: Any, step: int) -> tuple[State, dict[str, jax.Array]]:
        """One optimizer step (jitted; may donate `state`). Metrics are scalars and hold "loss"."""

    def after_step(self, state: State, step: int, seed: int) -> State:
        """Codebook upkeep on the host after step number `step`; a function of its arguments only."""

    def evaluate(self, state: State) -> tuple[dict[str, float], dict[str, bytes]]:
        """Held-out metrics and samples: file name (with .png, .wav, ...) -> the file's bytes."""

    def export(self, state: State, path_prefix: str, provenance: dict[str, Any]) -> None:
        """Writes path_prefix + ".safetensors" and ".json" (holding `provenance`) atomically."""


# ---------------------------------------------------------------------------------------- checkpoints


def _named_leaves(state: State) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def save_checkpoint(path: str | Path, state: State, step: int, config: dict[str, Any]) -> None:
    """Writes the state after `step` steps. Atomic: a kill in the middle leaves the previous checkpoint."""
    path = Path(path)
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _named_leaves(state).items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(arrays, temporary, metadata={"step": str(step), "config": json.dumps(config)})
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: str | Path, template: State, config: dict[str, Any]) -> tuple[State, int]:
    """Reads (state, step); `template` gives tree, shapes and dtypes. CheckpointError says what differs."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not readable ({error}); delete it to start afresh") from error
    saved, config = json.loads(metadata["config"]), json.loads(json.dumps(config))  # JSON knows no tuples
    changed = [k for k in sorted(saved.keys() | config.keys()) if saved.get(k) != config.get(k)]
    changed = [key for key in changed if key not in FREE_ON_RESUME]
    if changed:
        pairs = ", ".join(f"{key}: {saved.get(key)!r} then, {config.get(key)!r} now" for key in changed)
        raise CheckpointError(f"{path} has another config ({pairs}): use a new --workdir or the old values")

    def restore(key_path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(key_path)
        found = arrays.get(name)
        if found is None or found.shape != np.shape(leaf) or found.dtype != leaf.dtype:
            what = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            needed = f"{leaf.dtype}{list(np.shape(leaf))}"
            raise CheckpointError(f"{path}: state {name} needs {needed}, the file has {what}")
        return jax.numpy.array(found)

    return jax.tree_util.tree_map_with_path(restore, template), int(metadata["step"])


# ----------------------------------------------------------------------------------------- the loop


class StopSignal:
    """Remembers the first SIGINT or SIGTERM so that the loop can save; a second one ends at once."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: Any) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        print(f"{signal.Signals(number).name}: saving after this step (again to quit at once)", flush=True)


class MetricsLog:
    """WORKDIR/metrics.jsonl. On resume, lines of steps that will be run again are dropped."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self._path = path
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill cut short
        replace_file(path, "".join(kept).encode())

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


class Progress:
    """Prints loss, rate and time left. The first interval holds compilation, so rates start after it."""

    def __init__(self, steps: int, start_step: int) -> None:
        self._steps, self._since, self._at = steps, start_step, time.monotonic()

    def restart(self, step: int) -> None:
        """Leaves the time since the last line (an evaluation, a compilation) out of the rate."""
        self._since, self._at = step, time.monotonic()

    def line(self, step: int, metrics: dict[str, float]) -> None:
        rate = (step - self._since) / max(time.monotonic() - self._at, 1e-9)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        left = _duration((self._steps - step) / max(rate, 1e-9))
        print(f"step {step}/{self._steps}  {shown}  {rate:.2f} steps/s  {left} left", flush=True)
        self.restart(step)


def validate_config(config: Any) -> None:
    """ValueError naming the key when a required one is missing or has the wrong type or value."""
    for key, kind in REQUIRED.items():
        value = config.get(key)
        if type(value) is not kind:
            raise ValueError(f"config.{key} must be {kind.__name__}, got {value!r}")
    if config.kind not in KINDS:
        raise ValueError(f"config.kind must be one of {KINDS}, got {config.kind!r}")
    for key in ("steps", "log_every", "eval_every", "checkpoint_every"):
        if config[key] < 1:
            raise ValueError(f"config.{key} must be 1 or more, got {config[key]}")
    if not config.data_dir:
        raise ValueError(
            "config.data_dir is empty: give the folder that holds train.jsonl and test.jsonl, "
            "--config.data_dir=DIR (python -m data_pipelines.toyworld --help makes one)"
        )


class Trainer:
    """One run of a `CodecTask`: resumes from WORKDIR, trains to config.steps, evaluates, exports."""

    def __init__(self, task: CodecTask, config: Any, workdir: str | Path, command: str = "") -> None:
        self.task, self.config, self.workdir, self.command = task, config, Path(workdir), command
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.checkpoint_path = self.workdir / "checkpoint.safetensors"
        self.started = time.monotonic()

    def run(self, stop: StopSignal | None = None) -> int:
        """Trains; returns 0 when finished, 128 + n when signal n stopped it after saving the state."""
        config, task = self.config, self.task
        state, step = task.init(config.seed), 0
        if self.checkpoint_path.exists():
            state, step = load_checkpoint(self.checkpoint_path, state, config.to_dict())
            print(f"resuming after step {step} from {self.checkpoint_path}", flush=True)
        log, progress = MetricsLog(self.workdir / "metrics.jsonl", step), Progress(config.steps, step)
        batches = task.batches(step, config.seed)
        first = step + 1
        while step < config.steps:
            state, metrics = task.train_step(state, next(batches), step)
            step += 1
            state = task.after_step(state, step, config.seed)
            last = step == config.steps
            if step % config.log_every == 0 or last or step == first:
                values = {name: float(value) for name, value in metrics.items()}
                self._check_finite(values, step)
                log.write(step, "train", values)
                progress.line(step, values)
            stopped = stop is not None and stop.number
            if step % config.checkpoint_every == 0 or last or stopped:
                self._check_finite({name: float(value) for name, value in metrics.items()}, step)
                save_checkpoint(self.checkpoint_path, state, step, config.to_dict())
            if stopped:
                print(f"saved after step {step}; run the same command to go on", flush=True)
                return 128 + stop.number
            if step % config.eval_every == 0 or last:
                self._evaluate_and_export(state, step, log)
                progress.restart(step)
        if first > config.steps:
            self._evaluate_and_export(state, step, None)
        print(f"done: {step} steps, tokenizer at {self.workdir / config.kind}.safetensors", flush=True)
        return 0

    def _check_finite(self, metrics: dict[str, float], step: int) -> None:
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"step {step}: the loss is {metrics['loss']}; the last checkpoint in {self.workdir} is kept. "
                "Lower config.learning_rate and start in a new --workdir."
            )

    def _evaluate_and_export(self, state: State, step: int, log: MetricsLog | None) -> None:
        metrics, samples = self.task.evaluate(state)
        metrics = {name: float(value) for name, value in metrics.items()}
        if log is not None:
            log.write(step, "eval", metrics)
        print(f"step {step}  eval: " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()), flush=True)
        for name, data in samples.items():
            replace_file(self.workdir / "samples" / f"step_{step:07d}" / name, data)
        provenance = {
            "command": self.command,
            "config": {k: v for k, v in self.config.to_dict().items() if k != "data_dir"},
            "step": step,
            "metrics": metrics,
            "seconds_since_start": round(time.monotonic() - self.started, 1),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
            "platform": jax.default_backend(),
        }
        self.task.export(state, str(self.workdir / self.config.kind), provenance)


def create_task(config: Any) -> CodecTask:
    """The task of config.kind; ValueError or OSError when the config or its data is unusable."""
    validate_config(config)
    return importlib.import_module(f"ar_omni_jax.tokenizers.{config.kind}.training").create_task(config)


def _command_line(argv: list[str]) -> str:
    """The command without this machine's folders: they say nothing to the reader of an asset's json."""
    hidden = {"--workdir": "DIR", "--config.data_dir": "DATA"}
    words = ["python", "-m", "ar_omni_jax.tokenizers.train"]
    for word in argv[1:]:
        name, equals, _ = word.partition("=")
        words.append(f"{name}={hidden[name]}" if equals and name in hidden else word)
    return shlex.join(words)


def main(argv: list[str]) -> None:
    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --config.key=value")
    try:
        task = create_task(config)
    except (OSError, ValueError) as error:  # a wrong config or bad data: the message says it all
        sys.exit(f"error: {error}")
    trainer = Trainer(task, config, workdir, _command_line(sys.argv))
    try:
        code = trainer.run(StopSignal())
    except (OSError, CheckpointError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


if __name__ == "__main__":  # defined here alone: importing this module must not claim a program's flags
    config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/tokenizer_image.py.")
    flags.DEFINE_string("workdir", None, "Folder of the run; the same folder resumes it.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
