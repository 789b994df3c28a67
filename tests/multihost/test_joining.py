"""Processes that do not find each other, and last words: light processes that import no more than JAX."""

import os
import signal
import subprocess
import sys

import pytest
from hosts import REPOSITORY, free_port

JOIN = """
from ar_omni_jax.parallel.distributed import HostError, join
try:
    join()
except HostError as error:
    print("HostError:", error)
"""
WITNESS = """
import os, signal, sys
from ar_omni_jax.parallel.witness import Witness
witness = Witness("it's gone: $HOME")
if sys.argv[1] == "well":
    witness.dismiss()
    witness.dismiss()
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(code, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_", "OMPI_"))}
    environment |= {"JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def test_no_cluster_is_told_with_what_to_set():
    done = run(JOIN)
    assert "HostError: --distributed found no cluster" in done.stdout
    assert "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES=N" in done.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AR_OMNI_JOIN_SECONDS": "soon"}, "AR_OMNI_JOIN_SECONDS=soon: give a positive number of seconds"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "give two whole numbers"),
    ],
)
def test_settings_that_cannot_be_are_told(variables, message):
    assert message in run(JOIN, **variables).stdout


def test_a_process_that_waits_in_vain_ends_with_the_reason():
    place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    done = run(JOIN, AR_OMNI_JOIN_SECONDS="2", **place)
    assert done.returncode != 0 or "HostError" in done.stdout
    told = done.stdout + done.stderr
    assert "the processes did not find each other within 2 s. Was the command started on every host" in told


@pytest.mark.parametrize(("how", "said"), [("killed", "it's gone: $HOME\n"), ("well", "")])
def test_a_witness_speaks_only_for_a_process_that_was_killed(how, said):
    done = run(WITNESS, how)
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == said
