"""Copies of a train state that are written to the disk while the next steps change the state itself.

From an accelerator Orbax copies the arrays before it returns. On CPUs it writes them from where they lie, and JAX,
whose next step was given that memory, first copies all of it, on one core, before that step begins. So the copy is
made here. Most of its time would go into memory that is new to the process, which is therefore taken beforehand and
kept from save to save. Nothing is lost by that at the peak, which is during a save.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import jax
import numpy as np

from ar_omni_jax.checkpoint_format import lies_on_host

_ALIGNMENT = 64  # bytes; JAX uses memory that lies so as it is


class Copies:
    """Makes the arrays to write. Those of a save must have been written, or given up, before the next are made."""

    def __init__(self):
        self._kept: dict[str, np.ndarray] = {}
        self._taking: threading.Thread | None = None

    def prepare(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """Takes the memory that copies of such arrays need, in the background."""
        mine = {name: leaf for name, leaf in abstract.items() if _is_kept(leaf)}

        def take():
            for name, leaf in mine.items():
                self._memory(name, leaf).fill(0)

        self._taking = threading.Thread(target=take, daemon=True)
        self._taking.start()

    def of(self, leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Arrays equal to `leaves`, whose memory may then change; those on accelerators as they are."""
        if self._taking is not None:
            self._taking.join()
            self._taking = None
        return {name: self._copy(name, leaf) if lies_on_host(leaf) else leaf for name, leaf in leaves.items()}

    def _copy(self, name: str, leaf: jax.Array) -> jax.Array:
        if not _is_kept(leaf):
            return jax.device_put(leaf, leaf.sharding, may_alias=False)
        memory = self._memory(name, leaf)
        np.copyto(memory, leaf)
        return jax.device_put(memory, leaf.sharding, may_alias=True)

    def _memory(self, name: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> np.ndarray:
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (leaf.shape, leaf.dtype):
            kept = self._kept[name] = _aligned(leaf.shape, np.dtype(leaf.dtype))
        return kept


def _is_kept(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """One device's array. Pieces of several fake devices are not worth the trouble."""
    return lies_on_host(leaf) and len(leaf.sharding.device_set) == 1


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
