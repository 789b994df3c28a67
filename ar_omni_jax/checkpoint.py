"""The checkpoints of a run: saving, keeping, restoring the newest that is whole, and loading weights for inference.

DIR/{step}/              a checkpoint, see `checkpoint_format`
DIR/corrupt-{step}-*     a checkpoint that could not be read when training resumed, set aside

A save that fails leaves the checkpoints before it as they were; its own leftovers are removed, since on a full disk
they stand in the way of the next try.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ar_omni_jax.checkpoint_copies import Copies
from ar_omni_jax.checkpoint_format import (
    DESCRIPTION,
    STATE,
    CheckpointError,
    CorruptCheckpointError,
    Description,
    State,
    checksums,
    named_leaves,
    orbax_context,
    read_description,
    read_leaves,
    read_state,
    steps_in,
    stored_arrays,
    to_fields,
)
from ar_omni_jax.vocabulary import JointVocabulary

__all__ = [
    *("DESCRIPTION", "MODEL_PREFIX", "SCHEMA_VERSION", "STATE"),
    *("CheckpointError", "Checkpoints", "CorruptCheckpointError", "Description", "SaveError", "TrainedModel"),
    *("checksums", "find_checkpoint", "load_arrays", "load_for_inference", "named_leaves", "orbax_context"),
    *("place_leaves", "read_description", "read_state", "steps_in", "stored_arrays", "to_fields"),
]

MODEL_PREFIX = "params.model."


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """False for the tracebacks that Orbax logs, up to eight for one failed save: a SaveError tells it once."""
    return record.levelno < logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname


logging.getLogger("absl").addFilter(_not_of_orbax)


class SaveError(CheckpointError):
    """A save that failed. The state in memory and the checkpoints before it are as they were: it can be tried again."""


# ------------------------------------------------------------------------------------------------------ writing


class _AlwaysSave:
    """The loop decides when to save; Orbax's default would save whenever the disk is idle."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: made if missing; CheckpointError when it cannot be written.
      keep: how many of the newest stay. keep_every: besides, those at multiples of it stay for ever (0: none).
    """

    def __init__(self, directory: str | Path, *, keep: int = 3, keep_every: int = 0):
        self.directory = Path(directory).absolute()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.directory} cannot be made ({error}); choose another --workdir") from error
        if not os.access(self.directory, os.W_OK):
            raise CheckpointError(f"{self.directory} is not writable; choose another --workdir")
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        self._preservation = policies.AnyPreservationPolicy(kept)
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._pending: tuple[int, ocp.AsyncResponse] | None = None
        self._copies = Copies()
        self._bytes, self._started, self._ended = 0, 0.0, None
        self.seconds = 0.0  # from the start to the end of the last save that succeeded

    def save(self, state: State, description: Description) -> None:
        """Starts writing; returns once the state may change. Waits for the save before it; SaveError if that failed."""
        self.wait()
        leaves = named_leaves(state)
        self._bytes = sum(leaf.nbytes for leaf in leaves.values())
        description = dataclasses.replace(description, checksums=checksums(leaves))
        items = {STATE: self._copies.of(leaves), DESCRIPTION: to_fields(description)}
        self._started, self._ended = time.monotonic(), None

        def ended(_):
            self._ended = time.monotonic()

        try:
            response = self._open().save_checkpointables_async(description.step, items)
            response.on_complete(ended)
        except Exception as error:
            raise self._failure(description.step, error) from error
        self._pending = description.step, response

    def poll(self) -> bool:
        """Whether nothing is being written, found out without waiting; SaveError when the last save failed."""
        if self._pending is not None:
            try:
                self._pending[1].result(timeout=0)
            except TimeoutError:  # not done yet, or done with a TimeoutError of its own
                if self._checkpointer.is_saving_in_progress():
                    return False
            except Exception:  # `wait` tells it
                pass
        self.wait()
        return True

    def wait(self) -> None:
        """Returns when nothing is being written; SaveError when the last save failed."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise self._failure(step, error) from error
        # The end is noted by another thread, perhaps a moment from now.
        self.seconds = (self._ended or time.monotonic()) - self._started

    def _failure(self, step: int, error: Exception) -> SaveError:
        try:
            free = f"{shutil.disk_usage(self.directory).free / 1e9:,.3g} GB are free there"
        except OSError:
            free = "the folder is gone"
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        self._forget_failed_save(step)
        return SaveError(
            f"saving step {step} under {self.directory} failed: {type(error).__name__}: {reason}. Is the disk full, or "
            f"the folder no longer writable? A checkpoint takes up to {self._bytes / 1e9:,.3g} GB, {free}"
        )

    def _forget_failed_save(self, step: int) -> None:
        """Orbax is opened anew for the next save, and the part that was written makes room."""
        checkpointer, self._checkpointer = self._checkpointer, None
        with contextlib.suppress(Exception):  # it tells the same failure again
            checkpointer.close()
        if jax.process_index() == 0:
            for leftover in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _open(self) -> ocp.training.Checkpointer:
        # Opened at the first save: Orbax lists the folder once, and `restore_latest` may move things in it.
        if self._checkpointer is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                context=orbax_context(),
                save_decision_policy=_AlwaysSave(),
                preservation_policy=self._preservation,
                cleanup_tmp_directories=True,
            )
        return self._checkpointer

    def close(self) -> None:
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()

    def restore_latest(
        self, abstract_state: State, check: Callable[[Description], None]
    ) -> tuple[State, Description] | None:
        """The newest readable checkpoint as (state, description), or None when there is none at all.

        A damaged one is reported, set aside, and the one before it taken. `check` sees each candidate's
        description first and raises CheckpointError to refuse it: no older one is tried then. CheckpointError, too,
        when there were checkpoints and all are set aside.

        Args:
          abstract_state: the tree, with ShapeDtypeStruct leaves whose shardings place the arrays.
        """
        self._copies.prepare(named_leaves(abstract_state))
        steps = steps_in(self.directory)
        for step in reversed(steps):
            path = self.directory / str(step)
            try:
                description = read_description(path)
                check(description)
                return read_state(path, abstract_state, description), description
            except CorruptCheckpointError as error:
                kept = self._set_aside(path)
                logging.warning("%s It is set aside as %s; going back to the checkpoint before it.", error, kept.name)
        if steps or any(self.directory.glob("corrupt-*")):  # a second start must not begin anew in silence either
            raise CheckpointError(
                f"none of the checkpoints under {self.directory} can be read (set aside as corrupt-*); start afresh in "
                "another --workdir, restore the folder from a backup, or remove corrupt-* to begin anew here"
            )
        return None

    def _set_aside(self, path: Path) -> Path:
        n = 0
        while (target := path.with_name(f"corrupt-{path.name}-{n}")).exists():
            n += 1
        if jax.process_count() > 1:  # all have looked at the names before one changes them
            multihost_utils.sync_global_devices(f"look at {path.name}")
        if jax.process_index() == 0:
            path.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {path.name}")
        return target


# ---------------------------------------------------------------------------------------------------- inference


def find_checkpoint(directory: str | Path, step: int | None = None) -> Path:
    """The folder of one checkpoint. `directory` is a run's workdir, its checkpoints folder, or one checkpoint."""
    directory = Path(directory).absolute()
    if (directory / DESCRIPTION).is_dir():
        return directory
    for folder in (directory / "checkpoints", directory):
        steps = steps_in(folder)
        if steps and step is not None and step not in steps:
            raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has {steps}")
        if steps:
            return folder / str(steps[-1] if step is None else step)
    raise CheckpointError(f"{directory} holds no checkpoint; give the --workdir of a training run")


def load_arrays(
    directory: str | Path,
    prefix: str,
    step: int | None = None,
    sharding: jax.sharding.Sharding | Mapping[str, jax.sharding.Sharding] | None = None,
) -> tuple[dict[str, jax.Array], Description]:
    """The arrays whose names start with `prefix`, without it.

    sharding: of every array (default: one device), or by name without the prefix; then others stay on disk.
    """
    path = find_checkpoint(directory, step)
    description = read_description(path)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {}
    for name, (shape, dtype) in stored_arrays(path).items():
        place = sharding.get(name.removeprefix(prefix)) if isinstance(sharding, Mapping) else sharding
        if name.startswith(prefix) and place is not None:
            wanted[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    leaves = read_leaves(path, wanted, description)
    return {name.removeprefix(prefix): leaf for name, leaf in leaves.items()}, description


class TrainedModel(NamedTuple):
    """What inference needs of a checkpoint.

    model_config: a TransformerConfig. params: `nnx.State` that fits `nnx.state(Transformer(model_config))`. config:
    the run's settings as plain dicts. step: optimizer steps taken.
    """

    model_config: Any
    params: State
    vocabulary: JointVocabulary
    config: dict[str, Any]
    step: int


def load_for_inference(directory: str | Path, step: int | None = None, sharding=None) -> TrainedModel:
    """A trained model. The optimizer and the perceptual projection stay on disk.

    Args:
      directory: the workdir of a run, its checkpoints folder, or one checkpoint. step: default the newest.
      sharding: of every weight; default the first device.
    """
    from flax import nnx

    from ar_omni_jax.config import model_config as make_model_config
    from ar_omni_jax.model.transformer import abstract_transformer

    leaves, description = load_arrays(directory, MODEL_PREFIX, step, sharding)
    vocabulary = JointVocabulary.from_dict(description.vocabulary)
    config = make_model_config(description.config["model"], vocabulary.size)
    abstract = nnx.state(abstract_transformer(config))
    params = place_leaves(abstract, leaves, str(directory))
    return TrainedModel(config, params, vocabulary, dict(description.config), description.step)


def place_leaves(abstract: State, leaves: Mapping[str, jax.Array], where: str) -> State:
    """`abstract` with its leaves replaced by those of the same name and shape; CheckpointError when one lacks."""
    wanted = named_leaves(abstract)
    for name, leaf in wanted.items():
        if name not in leaves or tuple(leaves[name].shape) != tuple(leaf.shape):
            found = list(leaves[name].shape) if name in leaves else "nothing"
            raise CheckpointError(f"{where}: the model needs {name} of shape {list(leaf.shape)}, found {found}")
    return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in wanted])
