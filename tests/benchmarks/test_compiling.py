"""What the memory benchmarks compile for."""

import subprocess
import sys

import jax
import pytest

from ar_omni_jax.benchmarks.compiling import compiling_for
from ar_omni_jax.compile_check.targets import TargetError
from tests.compilers import needs_libtpu, with_compilers

DEVICES = """
from ar_omni_jax.benchmarks.compiling import compiling_for
with compiling_for("v5p:2x2x2") as devices:
    print(len(devices), devices[0].device_kind)
"""


def test_the_cpu_is_one_device():
    with compiling_for("cpu") as devices:
        assert devices == jax.devices("cpu")[:1]


def test_an_unknown_target_names_those_there_are():
    with pytest.raises(TargetError, match="no target 'v5p-63'; did you mean v5p-64?"), compiling_for("v5p-63"):
        pass


@needs_libtpu
def test_a_slice_has_its_chips_without_a_tpu():
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, timeout=300, env=with_compilers()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8 TPU v5\n"
