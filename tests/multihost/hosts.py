"""Starts the training command as several processes on this machine, as a pod or SLURM would on several."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import tiny_data

from ar_omni_jax.training.accounting import MACHINE

REPOSITORY = Path(__file__).parents[2]
TIMEOUT = 400  # seconds for anything; a busy machine takes long to start processes
STEPS = 120
CONFIG = f"""
from ar_omni_jax.config import base_config

def get_config(arg=""):
    config = base_config()
    config.model.update(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=32)
    config.data.update(length=32, batch_size=8)
    config.optimizer.peak_lr = 1e-2
    config.train.update(steps={STEPS}, log_every=4, eval_every=40, eval_batches=2, checkpoint_every=40)
    config.train.keep_checkpoints = 9
    return config
"""


def make_inputs(folder: Path) -> Path:
    """Folder with config.py, packed data and tokenizers."""
    (folder / "config.py").write_text(CONFIG)
    tiny_data.make_packed(folder, tokenizers=None)
    tiny_data.make_tokenizers(folder / "tokenizers")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Hosts:
    """`count` processes of the training command with `devices` fake devices each; a context that leaves none behind.

    arguments: the same for all; own: more for one process, by its index. slurm: they find each other by SLURM's
    variables instead of JAX's.
    """

    def __init__(self, inputs, workdir, count, *arguments, devices=1, own=None, slurm=False, lost_seconds=20):
        self.workdir, self.logs = Path(workdir), Path(f"{workdir}.logs")
        self.logs.mkdir(exist_ok=True)
        port = free_port()
        self.processes = []
        for index in range(count):
            command = [sys.executable, "-m", "ar_omni_jax.main", f"--config={inputs / 'config.py'}"]
            command += [f"--workdir={workdir}", f"--config.data.path={inputs / 'packed'}"]
            command += [f"--config.data.tokenizers={inputs / 'tokenizers'}", *arguments, *(own or {}).get(index, ())]
            command += ["--distributed"] if count > 1 else []
            flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
            environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
            environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "AR_OMNI_LOST_SECONDS": str(lost_seconds)}
            environment |= {"AR_OMNI_JOIN_SECONDS": str(TIMEOUT // 2)}
            # What one start has compiled the next ones need not.
            environment |= {"JAX_COMPILATION_CACHE_DIR": str(inputs / "compiled")}
            environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            environment |= slurm_place(port, count, index) if slurm else own_place(port, count, index)
            log = open(self.logs / f"{index}.log", "w")
            self.processes.append(
                subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
            log.close()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def output(self, index: int) -> str:
        return (self.logs / f"{index}.log").read_text()

    def wait(self, seconds: float = TIMEOUT) -> list[int]:
        """Exit codes of all."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            assert time.monotonic() < end, self.told("not all have ended")
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + TIMEOUT
        while not any(r["step"] >= step for r in records(self.workdir)):
            ended = [process.poll() for process in self.processes]
            assert time.monotonic() < end and ended == [None] * len(ended), self.told(f"no step {step}; {ended}")
            time.sleep(0.02)

    def told(self, what: str) -> str:
        return "\n".join([what, *(f"--- {i}\n{self.output(i)[-3000:]}" for i in range(len(self.processes)))])


def own_place(port: int, count: int, index: int) -> dict[str, str]:
    if count == 1:
        return {}
    address = f"127.0.0.1:{port}"
    return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}


def slurm_place(port: int, count: int, index: int) -> dict[str, str]:
    """What srun sets, for one process a node."""
    place = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": count, "SLURM_PROCID": index}
    place |= {"SLURM_LOCALID": 0, "JAX_COORDINATOR_PORT": port}
    return {name: str(value) for name, value in place.items()}


def records(workdir, kind="train"):
    """Lines of metrics.jsonl, but one that is being written."""
    path = Path(workdir) / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [r for r in found if r["kind"] == kind]


def learning(workdir, kind="train", last=None):
    """Everything that must not depend on how many processes there are: all but speed."""
    lines = [r for r in records(workdir, kind) if last is None or r["step"] <= last]
    return [{k: v for k, v in r.items() if not k.startswith(MACHINE)} for r in lines]
