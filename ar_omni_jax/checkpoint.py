"""All of Orbax: saving, keeping, restoring on any mesh, and loading weights for inference.

DIR/{step}/state         the train state, one array a leaf, named by its path ("params.model.embedding")
DIR/{step}/description   JSON: `Description`, all that is not an array, with a checksum of every array
DIR/corrupt-{step}-*     a checkpoint that could not be read when training resumed, set aside

Orbax writes into a temporary folder and renames it, so a killed save leaves nothing behind that counts. What
renaming cannot catch (a bad disk, a partial copy, a buffer that changed while it was written) the checksums do.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ar_omni_jax.vocabulary import JointVocabulary

SCHEMA_VERSION = 1
STATE, DESCRIPTION = "state", "description"
MODEL_PREFIX = "params.model."

State = Any  # a pytree of arrays


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used; the message says which, why and what to do."""


class CorruptCheckpointError(CheckpointError):
    """The files of one checkpoint are damaged or incomplete; an older one may do."""


@dataclasses.dataclass(frozen=True)
class Description:
    """The part of a checkpoint that is not arrays.

    step: optimizer steps taken. loader_step: the data loader's whole state. config: the run's settings as plain
    dicts. vocabulary: `JointVocabulary.to_dict()`. tokenizers: identities by name. data: identity of the data set.
    progress: the loop's own sums since its last log line. checksums: uint32 by array name; `Checkpoints.save`
    fills them in.
    """

    step: int
    loader_step: int
    config: Mapping[str, Any]
    vocabulary: Mapping[str, Any]
    vocabulary_fingerprint: str
    tokenizers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: str = ""
    progress: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checksums: Mapping[str, int] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


# ------------------------------------------------------------------------------------------ names and checksums


def named_leaves(tree: State) -> dict[str, Any]:
    """{"params.model.embedding": leaf, ...}: a flat view that does not depend on the tree's classes."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path) -> str:
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    # An nnx.Variable is a node with one child called `value`: no part of the name.
    return ".".join(keys[:-1] if len(keys) > 1 and keys[-1] == "value" else keys)


@jax.jit
def _checksums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def checksum(x):
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
        # Integer addition wraps and commutes, so the sum is the same on every mesh.
        return jnp.sum(bits, dtype=jnp.uint32)

    return jax.tree.map(checksum, leaves)


def checksums(leaves: dict[str, jax.Array]) -> dict[str, int]:
    """uint32 sum of the bits of each array, exact and independent of its sharding."""
    return {name: int(value) for name, value in jax.device_get(_checksums(leaves)).items()}


# ------------------------------------------------------------------------------------------------------ writing


class _AlwaysSave:
    """The loop decides when to save; Orbax's default would save whenever the disk is idle."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


def orbax_context() -> ocp.Context:
    """The Orbax settings under which checkpoints are written and read."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=DESCRIPTION)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


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

    def save(self, state: State, description: Description) -> None:
        """Starts writing; returns once the state may change. Waits for (and reports on) the save before it."""
        self.wait()
        leaves = named_leaves(state)
        description = dataclasses.replace(description, checksums=checksums(leaves))
        items = {STATE: leaves, DESCRIPTION: dataclasses.asdict(description)}
        try:
            self._pending = description.step, self._open().save_checkpointables_async(description.step, items)
        except Exception as error:
            raise self._failure(description.step, error) from error

    def wait(self) -> None:
        """Returns when nothing is being written; CheckpointError when the last save failed."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise self._failure(step, error) from error

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(f"saving step {step} under {self.directory} failed: {error}. Is the disk full?")

    def _open(self) -> ocp.training.Checkpointer:
        # Opened at the first save: Orbax lists the folder once, and `restore_latest` may move things in it.
        if self._checkpointer is None:
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
        steps = steps_in(self.directory)
        for step in reversed(steps):
            path = self.directory / str(step)
            try:
                description = read_description(path)
                check(description)
                return read_state(path, abstract_state, description), description
            except CorruptCheckpointError as error:
                logging.warning("%s Going back to the checkpoint before it.", error)
                self._set_aside(path)
        if steps or any(self.directory.glob("corrupt-*")):  # a second start must not begin anew in silence either
            raise CheckpointError(
                f"none of the checkpoints under {self.directory} can be read (set aside as corrupt-*); start afresh in "
                "another --workdir, restore the folder from a backup, or remove corrupt-* to begin anew here"
            )
        return None

    def _set_aside(self, path: Path) -> None:
        if jax.process_index() == 0:
            n = 0
            while (target := path.with_name(f"corrupt-{path.name}-{n}")).exists():
                n += 1
            path.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {path.name}")


# ------------------------------------------------------------------------------------------------------ reading


def steps_in(directory: str | Path) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    directory = Path(directory)
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit()) if directory.is_dir() else []


def read_description(path: str | Path) -> Description:
    """The description of the checkpoint in `path`; CheckpointError for another schema version."""
    path = Path(path).absolute()
    try:
        with orbax_context():
            fields = ocp.load_checkpointables(path, {DESCRIPTION: None})[DESCRIPTION]
        version = fields["schema_version"]
    except Exception as error:
        _reraise_when_memory_is_short(error)
        raise CorruptCheckpointError(f"checkpoint {path}: the description is unreadable ({_short(error)}).") from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has schema version {version}, this program reads {SCHEMA_VERSION}; use the version "
            "of the program that wrote it"
        )
    return Description(**fields)


def read_state(path: str | Path, abstract_state: State, description: Description) -> State:
    """The arrays of the checkpoint in `path`, placed as `abstract_state` says, checked against the checksums.

    Raises CheckpointError naming the arrays whose shape differs, CorruptCheckpointError for damaged files.
    """
    path = Path(path).absolute()
    wanted = named_leaves(abstract_state)
    stored = stored_arrays(path)
    _require_same_arrays(path, {k: (tuple(v.shape), v.dtype) for k, v in wanted.items()}, stored)
    leaves = _read_leaves(path, wanted, description)
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[name] for name in wanted])


def stored_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """(shape, dtype) of every array of the checkpoint in `path`, by name."""
    try:
        with orbax_context():
            metadata = ocp.checkpointables_metadata(path).metadata[STATE]
        return {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in metadata.items()}
    except Exception as error:
        _reraise_when_memory_is_short(error)
        raise CorruptCheckpointError(
            f"checkpoint {path}: the list of arrays is unreadable ({_short(error)})."
        ) from error


def _require_same_arrays(path: Path, wanted: Mapping, stored: Mapping) -> None:
    differences = []
    for name in sorted(wanted.keys() | stored.keys()):
        if wanted.get(name) != stored.get(name):
            there, here = (
                f"{found[name][1]}{list(found[name][0])}" if name in found else "nothing" for found in (stored, wanted)
            )
            differences.append(f"{name}: {there} in the checkpoint, {here} in this run")
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(
            f"checkpoint {path} is of another model or optimizer: {'; '.join(differences[:5])}{more}. "
            "Use its config, or another --workdir"
        )


def _read_leaves(path: Path, wanted: Mapping[str, Any], description: Description) -> dict[str, jax.Array]:
    """The arrays named in `wanted` (ShapeDtypeStructs); all others stay on disk."""
    abstract = {name: wanted.get(name, ocp.PLACEHOLDER) for name in stored_arrays(path)}
    try:
        with orbax_context():
            loaded = ocp.load_checkpointables(path, {STATE: abstract})[STATE]
    except Exception as error:
        _reraise_when_memory_is_short(error)
        raise CorruptCheckpointError(f"checkpoint {path}: the arrays are unreadable ({_short(error)}).") from error
    leaves = {name: loaded[name] for name in wanted}
    bad = [name for name, value in checksums(leaves).items() if value != description.checksums.get(name)]
    if bad:
        raise CorruptCheckpointError(f"checkpoint {path}: the contents of {', '.join(bad[:5])} have changed on disk.")
    return leaves


def _reraise_when_memory_is_short(error: BaseException | None) -> None:
    """A machine without memory says nothing about the files: such an error must not set a good checkpoint aside."""
    cause = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause):
            raise error
        cause = cause.__cause__


def _short(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


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
    leaves = _read_leaves(path, wanted, description)
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
