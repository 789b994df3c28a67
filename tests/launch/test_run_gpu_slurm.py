"""launch/run_gpu_slurm.sh with programs that write down what SLURM would be asked: submitting, and the job itself."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
RECORDS = """#!/usr/bin/env bash
printf '%s %s\\n' "${0##*/}" "$*" >>"$LOG"
if [ "${0##*/}" = srun ]; then
  env | grep '^JAX_LOCAL_DEVICE_IDS=' >>"$LOG"
  eval "${PLAY:-exit 0}"
fi
"""
ENVIRONMENT = 'printf "environment %s\\n" "$1" >>"$LOG"\n'


class Cluster:
    def __init__(self, folder: Path):
        self.checkout, self.programs, self.run = folder / "a checkout", folder / "programs", folder / "a run"
        self.log = folder / "log"
        (self.checkout / "launch").mkdir(parents=True)
        (self.checkout / "configs").mkdir()
        (self.checkout / "configs" / "one.py").write_text("")
        self.script = self.checkout / "launch" / "run_gpu_slurm.sh"
        shutil.copy(LAUNCH / "run_gpu_slurm.sh", self.script)
        (self.checkout / "launch" / "environment.sh").write_text(ENVIRONMENT)
        self.programs.mkdir()
        for name in ("sbatch", "srun", "scontrol"):
            (self.programs / name).write_text(RECORDS)
            (self.programs / name).chmod(0o755)
        self.log.write_text("")

    def environment(self, **variables) -> dict[str, str]:
        settings = {"PATH": f"{self.programs}:{os.environ['PATH']}", "LOG": self.log, "WORKDIR": self.run}
        settings |= {"CONFIG": "configs/one.py", "HOME": os.environ.get("HOME", "/")} | variables
        return {k: str(v) for k, v in settings.items() if v is not None}

    def submit(self, *arguments, **variables):
        command = ["bash", self.script, *arguments]
        environment = self.environment(**variables)
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)

    def job(self, *arguments, **variables):
        """The job as SLURM starts it: a copy of the script somewhere else, in the folder of the submission."""
        copy = self.programs.parent / "slurm_script"
        shutil.copy(self.script, copy)
        own = {"SLURM_JOB_ID": "77", "CHECKOUT": self.checkout, "SLURM_JOB_NODELIST": "node[1-2]"}
        environment = self.environment(**(own | variables))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", copy, *arguments], env=environment, cwd="/", **pipes)

    def finished(self, *arguments, **variables):
        process = self.job(*arguments, **variables)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def calls(self, program: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(program)]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def test_submits_itself_with_a_signal_before_the_limit(cluster):
    done = cluster.submit("--config.seed=1", NODES=2, HOURS=4, CPUS=6, SBATCH_FLAGS="--partition=gpu --account=me")
    assert done.returncode == 0, done.stderr
    (call,) = cluster.calls("sbatch")
    for word in ("--nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=6", "--time=4:00:00", "--requeue"):
        assert word in call
    assert "--signal=TERM@300" in call and "--partition=gpu --account=me" in call
    assert call.endswith("launch/run_gpu_slurm.sh --config.seed=1") and f"--output={cluster.run}/slurm-%j.log" in call
    assert cluster.run.is_dir() and not cluster.calls("srun")


def test_a_dry_run_prints_both_commands_and_does_nothing(cluster):
    done = cluster.submit("--config.seed=1", DRY_RUN=1, PROCESSES="node")
    assert done.returncode == 0, done.stderr
    submit, _, train = done.stdout.splitlines()
    assert submit.startswith("sbatch ") and "--ntasks-per-node=1" in submit
    assert train.startswith("srun ") and "-m ar_omni_jax.main --distributed --config=configs/one.py" in train
    assert "--config.seed=1" in train
    assert cluster.log.read_text() == "" and not cluster.run.exists()


def test_the_job_starts_one_process_a_gpu_and_ends_with_training(cluster):
    code, output = cluster.finished("--config.seed=1", NODES=2)
    assert code == 0, output
    assert cluster.calls("environment") == ["environment gpu"]
    (call,) = cluster.calls("srun")
    assert "--nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --gpu-bind=none --kill-on-bad-exit=0 --wait=0" in call
    words = f"--distributed --config=configs/one.py --workdir={cluster.run} --grace=300 --config.seed=1"
    assert call.endswith(words), "a save is slow when it outlasts the time that the script leaves it"
    assert not cluster.calls("JAX_LOCAL_DEVICE_IDS") and not cluster.calls("scontrol")


def test_one_process_a_node_sees_all_its_gpus(cluster):
    assert cluster.finished(PROCESSES="node", GPUS=4)[0] == 0
    assert cluster.calls("JAX_LOCAL_DEVICE_IDS") == ["JAX_LOCAL_DEVICE_IDS=0,1,2,3"]


def test_saved_before_the_limit_is_queued_again(cluster):
    code, output = cluster.finished(PLAY="exit 143")
    assert code == 143 and cluster.calls("scontrol") == ["scontrol requeue 77"], output


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_is_not_queued_again(cluster, code):
    assert cluster.finished(PLAY=f"exit {code}")[0] == code
    assert not cluster.calls("scontrol")


def test_a_crash_is_queued_again_only_when_it_got_somewhere(cluster):
    (cluster.run / "checkpoints" / "100").mkdir(parents=True)
    code, output = cluster.finished(PLAY='mkdir -p "$WORKDIR/checkpoints/200.orbax-checkpoint-tmp"; exit 75')
    assert code == 75 and not cluster.calls("scontrol") and "no newer checkpoint" in output
    code, output = cluster.finished(PLAY='mkdir -p "$WORKDIR/checkpoints/200"; exit 75')
    assert cluster.calls("scontrol") == ["scontrol requeue 77"]
    assert "from checkpoint 100 to 200" in output


def test_a_cancelled_job_waits_for_training_and_does_not_come_back(cluster):
    process = cluster.job(PLAY='while [ ! -e "$LOG.saved" ]; do sleep 0.05; done; exit 143')
    end = time.monotonic() + 30
    while not cluster.calls("srun") and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # a shell that did not wait would be gone by now
    assert process.poll() is None
    Path(f"{cluster.log}.saved").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "cancelled or preempted" in output
    assert "training ended with code 143" in output, "the shell waited for the steps to save"
    assert not cluster.calls("scontrol")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORKDIR": None}, "set WORKDIR"),
        ({"NODES": "two"}, "NODES=two must be a number"),
        ({"GPUS": "08", "PROCESSES": "node"}, "GPUS=08 must be a number"),
        ({"CPUS": "all"}, "CPUS=all must be a number"),
        ({"HOURS": 1, "SAVE_SECONDS": 3600}, "SAVE_SECONDS=3600 is no less than the time limit, HOURS=1"),
        ({"WORKDIR": "gs://bucket/run"}, "no address"),
        ({"PROCESSES": "host"}, "must be gpu or node"),
        ({"CONFIG": "configs/none.py"}, "is no file of this checkout"),
        ({"PATH": "/usr/bin:/bin"}, "sbatch is missing"),
    ],
)
def test_what_cannot_be_is_told(cluster, variables, message):
    done = cluster.submit(**variables)
    assert done.returncode == 2 and message in done.stderr
    assert not cluster.log.read_text()
