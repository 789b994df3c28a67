"""The form of one checkpoint, and reading it: names, checksums, the description and its seal.

DIR/{step}/state         the train state, one array a leaf, named by its path ("params.model.embedding")
DIR/{step}/description   JSON: `Description`, all that is not an array, with a checksum of every array and a seal

Orbax writes into a temporary folder and renames it, so a killed save leaves nothing behind that counts. What
renaming cannot catch (a bad disk, a partial copy, a buffer that changed while it was written) the checksums do, for
the arrays, and the seal, for the description: one wrong digit in `loader_step` would train on other data in silence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

SCHEMA_VERSION = 1
STATE, DESCRIPTION = "state", "description"
# Arrays that a run may begin anew, as zeros, where a checkpoint has none or others: the spike detector's memory.
RENEWABLE = "spikes."

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
    progress: the loop's own sums since its last log line, and what it still owes. checksums: uint32 by array name;
    `Checkpoints.save` fills them in.
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


def to_fields(description: Description) -> dict[str, Any]:
    """The description as plain values, sealed: what is written."""
    fields = dataclasses.asdict(description)
    return fields | {"seal": _seal(fields)}


def _seal(fields: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but the seal itself, as JSON with sorted keys."""
    # Through JSON first: it turns tuples into lists and keys into strings, as reading the file does.
    plain = json.loads(json.dumps({name: value for name, value in fields.items() if name != "seal"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


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
    if all(map(lies_on_host, leaves.values())):
        return {name: _host_checksum(leaf) for name, leaf in leaves.items()}
    return {name: int(value) for name, value in jax.device_get(_checksums(leaves)).items()}


def lies_on_host(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether all of the array is in this process's memory, where NumPy reads it without a copy."""
    place = leaf.sharding
    return place.is_fully_addressable and all(device.platform == "cpu" for device in place.device_set)


def _host_checksum(leaf: jax.Array) -> int:
    """As `_checksums`, by NumPy: on CPUs XLA's sum over an array takes ten times as long."""
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            bits = np.ascontiguousarray(shard.data).reshape(-1)
            bits = bits.view({1: np.uint8, 2: np.uint16}.get(bits.dtype.itemsize, np.uint32))
            total += int(np.sum(bits, dtype=np.uint32))
    return total % 2**32


def orbax_context() -> ocp.Context:
    """The Orbax settings under which checkpoints are written and read."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=DESCRIPTION)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


# ------------------------------------------------------------------------------------------------------ reading


def _alone() -> ocp.Context:
    """As `orbax_context`, for reading without waiting for other processes: one that finds damage would never come."""
    context = orbax_context()
    if jax.process_count() > 1:
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _on_all(read: Callable[[], Any], path: Path) -> Any:
    """`read()`, or CorruptCheckpointError on all processes where one of them finds damage: they must go on together.

    To be called on all processes; also Orbax counts what each has read, and saves wait for equal counts.
    """
    found, damage = None, None
    try:
        found = read()
    except CorruptCheckpointError as error:
        damage = error
    if jax.process_count() > 1:
        damaged = np.flatnonzero(multihost_utils.process_allgather(np.int32(damage is not None)))
        if len(damaged) and damage is None:
            who = f"process {', '.join(map(str, damaged))} of {jax.process_count()}"
            damage = CorruptCheckpointError(f"checkpoint {path}: {who} cannot read it.")
    if damage is not None:
        raise damage
    return found


def steps_in(directory: str | Path) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    directory = Path(directory)
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit()) if directory.is_dir() else []


def read_description(path: str | Path) -> Description:
    """The description of the checkpoint in `path`; CheckpointError for another schema version."""
    path = Path(path).absolute()
    return _on_all(lambda: _read_description(path), path)


def _read_description(path: Path) -> Description:
    try:
        with _alone():
            fields = dict(ocp.load_checkpointables(path, {DESCRIPTION: None})[DESCRIPTION])
        version, seal = fields["schema_version"], fields.pop("seal", None)  # those of before had no seal
    except Exception as error:
        _reraise_when_memory_is_short(error)
        raise CorruptCheckpointError(f"checkpoint {path}: the description is unreadable ({_short(error)}).") from error
    if seal is not None and seal != _seal(fields):
        raise CorruptCheckpointError(f"checkpoint {path}: the contents of the description have changed on disk.")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has schema version {version}, this program reads {SCHEMA_VERSION}; use the version "
            "of the program that wrote it"
        )
    try:
        return Description(**fields)
    except TypeError as error:
        raise CorruptCheckpointError(f"checkpoint {path}: the description is damaged ({_short(error)}).") from error


def read_state(path: str | Path, abstract_state: State, description: Description) -> State:
    """The arrays of the checkpoint in `path`, placed as `abstract_state` says, checked against the checksums.

    Arrays under RENEWABLE that the checkpoint lacks or has in another shape begin anew as zeros; those that this run
    has no use for stay on disk. Raises CheckpointError naming the arrays whose shape differs, CorruptCheckpointError
    for damaged files.
    """
    path = Path(path).absolute()
    wanted = named_leaves(abstract_state)
    stored = stored_arrays(path)
    shapes = {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in wanted.items()}
    new = [name for name in wanted if name.startswith(RENEWABLE) and stored.get(name) != shapes[name]]
    _require_same_arrays(path, *({k: v for k, v in x.items() if not k.startswith(RENEWABLE)} for x in (shapes, stored)))
    leaves = read_leaves(path, {name: leaf for name, leaf in wanted.items() if name not in new}, description)
    for name in new:
        leaves[name] = jax.device_put(np.zeros(*shapes[name]), wanted[name].sharding)
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[name] for name in wanted])


def stored_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """(shape, dtype) of every array of the checkpoint in `path`, by name."""
    return _on_all(lambda: _stored_arrays(path), path)


def _stored_arrays(path: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    try:
        with _alone():
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


def read_leaves(path: Path, wanted: Mapping[str, Any], description: Description) -> dict[str, jax.Array]:
    """The arrays named in `wanted` (ShapeDtypeStructs); all others stay on disk."""
    abstract = {name: wanted.get(name, ocp.PLACEHOLDER) for name in stored_arrays(path)}
    loaded = _on_all(lambda: _load(path, abstract), path)
    leaves = {name: loaded[name] for name in wanted}
    bad = [name for name, value in checksums(leaves).items() if value != description.checksums.get(name)]
    if bad:
        raise CorruptCheckpointError(f"checkpoint {path}: the contents of {', '.join(bad[:5])} have changed on disk.")
    return leaves


def _load(path: Path, abstract: Mapping[str, Any]) -> Mapping[str, jax.Array]:
    try:
        with _alone():
            return ocp.load_checkpointables(path, {STATE: abstract})[STATE]
    except Exception as error:
        _reraise_when_memory_is_short(error)
        raise CorruptCheckpointError(f"checkpoint {path}: the arrays are unreadable ({_short(error)}).") from error


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
