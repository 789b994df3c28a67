"""A process that joins and is gone before the run begins: the others say so and end, with the code of a loss."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROCESS = """
import os, sys
from ar_omni_jax.parallel import distributed

join = distributed.join
def join_and_wait_no_longer():
    join()
    if os.environ["JAX_PROCESS_ID"] == "1":
        os._exit(0)
    os.environ["AR_OMNI_JOIN_SECONDS"] = "3"
distributed.join = join_and_wait_no_longer
try:
    with distributed.together():
        print("the run has begun")
except distributed.HostError as error:
    print("HostError:", error, flush=True)
    sys.exit(1)
"""


def test_a_process_that_is_lost_before_the_run_begins_is_named_and_waited_for_no_longer():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_", "OMPI_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY), "AR_OMNI_JOIN_SECONDS": "200"}
    environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-c", PROCESS]
    first, second = (
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(index)}, **pipes) for index in range(2)
    )
    try:
        second.wait(timeout=250)
        gone = time.monotonic()
        told, _ = first.communicate(timeout=250)
    finally:
        first.kill()
        second.kill()
    assert "HostError: process 1 of 2 was lost between joining and the start of the run" in told
    assert first.returncode == 75, told  # start it again
    assert time.monotonic() - gone < 60, "JAX itself notices after 100 seconds and more"
