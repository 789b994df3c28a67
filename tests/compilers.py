"""The compilers of machines that are not here, for tests that compile in processes of their own.

They are used where they stand in the environment, or in the folder COMPILERS, where launch/run_tests.sh puts them:
inside the environment every process of a CPU machine would ask them for their devices.
"""

import os
from pathlib import Path

import pytest

from ar_omni_jax.compile_check.environment import has_cuda_plugin, has_libtpu

FOLDER = os.environ.get("COMPILERS", "")


def with_compilers() -> dict[str, str]:
    """The environment of a process that finds them."""
    path = [FOLDER, os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def _stands(name: str) -> bool:
    return bool(FOLDER) and (Path(FOLDER) / name).is_dir()


needs_cuda = pytest.mark.skipif(
    not (has_cuda_plugin() or _stands("jax_plugins/xla_cuda12")),
    reason="needs jax-cuda12-plugin and jax-cuda12-pjrt (no GPU, no dependencies): COMPILERS of launch/run_tests.sh",
)
needs_libtpu = pytest.mark.skipif(
    not (has_libtpu() or _stands("libtpu")),
    reason="needs libtpu, the TPU's compiler: COMPILERS of launch/run_tests.sh",
)
