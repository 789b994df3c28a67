"""What a process takes of its machine."""

import os
import subprocess
import sys

import pytest

from ar_omni_jax import machine
from ar_omni_jax.compile_check.targets import CHIPS, GIB
from ar_omni_jax.machine import GPU_MEMORY_SHARE, take_gpu_memory

NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.mark.parametrize(
    ("info", "vendor"),
    [("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t: a b\n\nvendor_id\t: Other\n", "GenuineIntel"), ("", ""),
     ("CPU implementer\t: 0x41\n", ""), (None, "")],
)  # fmt: skip
def test_the_vendor_is_that_of_the_first_processor_or_unknown(monkeypatch, tmp_path, info, vendor):
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert machine.processor_vendor() == vendor


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    return monkeypatch


def test_the_pool_on_a_gpu_is_what_compile_check_counts_on(environment):
    take_gpu_memory()
    from jaxlib.xla_client import generate_pjrt_gpu_plugin_options  # what JAX's CUDA plugin starts with

    pool = generate_pjrt_gpu_plugin_options()["memory_fraction"] * CHIPS["h200"].hbm_bytes
    assert abs(pool - (CHIPS["h200"].hbm_bytes - CHIPS["h200"].headroom_bytes)) <= 1
    assert 4 * GIB < CHIPS["h200"].headroom_bytes < 5 * GIB


@pytest.mark.parametrize("name", NAMES)
def test_a_share_that_the_user_set_stands(environment, name):
    environment.setenv(name, "0.5")
    take_gpu_memory()
    assert [os.environ.get(n) for n in NAMES if n != name] == [None] and os.environ[name] == "0.5"


def test_training_takes_it_before_there_are_devices():
    program = (
        "import jax, os\n"
        "from ar_omni_jax import main\n"
        "from jax._src import xla_bridge\n"
        "late = xla_bridge.backends_are_initialized()\n"
        "main.main(['--config=configs/none.py', '--workdir=unused'])\n"
        "print('told', late, os.environ['XLA_CLIENT_MEM_FRACTION'])"
    )
    bare = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=bare, timeout=300)
    assert f"told False {GPU_MEMORY_SHARE}" in done.stdout, done.stdout + done.stderr
