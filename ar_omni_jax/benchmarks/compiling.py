"""Devices that the memory benchmarks compile for: this machine's CPU, or a target of `compile_check`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from ar_omni_jax.compile_check import cudnn
from ar_omni_jax.compile_check.environment import prepare
from ar_omni_jax.compile_check.targets import find_target

HELP = "cpu (one device of this machine), or a target of compile_check such as v5p-8, v5p:2x2x2 or h200-1"


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[list[jax.Device]]:
    """Inside, programs can be lowered and compiled for the devices that it gives.

    Args:
      name: see HELP. Must be the first use of JAX's devices in the process unless it is "cpu".
    Raises TargetError for an unknown target, EnvironmentMissing when its compiler is not installed.
    """
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
        yield jax.devices("cpu")[:1]
        return
    target = find_target(name)
    prepare(target)
    jax.config.update("jax_platforms", "cpu")  # JAX has read its variable already, when it was imported
    from ar_omni_jax.compile_check import program  # imports much, after the environment

    devices = list(program.target_devices(target))
    if target.chip.platform == "cuda":
        with cudnn.pretending(program.description(target)):
            yield devices
    else:
        yield devices
