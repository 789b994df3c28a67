"""launch/tpu_worker.sh as a TPU host runs it, with a shell script in the place of Python: nothing starts twice."""

import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_worker.sh"
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$HOSTS_HOME/starts"
echo "step 1"
trap 'echo saved; exit 143' TERM
for _ in $(seq 6000); do
  if [ -e "$HOSTS_HOME/finish" ]; then exit "$(cat "$HOSTS_HOME/finish")"; fi
  sleep 0.05
done
"""


class Host:
    def __init__(self, home: Path):
        self.home = home
        (home / "ar_omni_jax").mkdir()
        (home / "python").write_text(PYTHON)
        (home / "python").chmod(0o755)
        (home / "tpu_worker.sh").symlink_to(SCRIPT)
        self.environment = os.environ | {"HOSTS_HOME": str(home), "HOSTS_PYTHON": str(home / "python")}

    def start(self, *arguments) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", self.home / "tpu_worker.sh", *arguments], env=self.environment, **pipes)

    def ask(self, *arguments) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def wait_until_running(self):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self.starts() and "running" in self.ask("status")[1]:
                return
            time.sleep(0.05)
        raise AssertionError("training did not start")

    def starts(self) -> list[str]:
        path = self.home / "starts"
        return path.read_text().splitlines() if path.exists() else []

    def finish(self, code: int):
        (self.home / "finish").write_text(str(code))


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    yield made
    made.finish(0)


def test_a_training_starts_once_however_often_it_is_asked_for(host):
    host.finish(0)
    assert "idle" in host.ask("status")[1]
    words = ("train", "one", "gs://bucket/run", "--config=x", "--config.data.path=gs://data/packed")
    code, output = host.ask(*words)
    assert code == 0 and "] step 1" in output
    (start,) = host.starts()
    gs = host.home / "gs"
    assert start == (
        f"-u -m ar_omni_jax.main --distributed --workdir={gs}/bucket/run --config=x --config.data.path={gs}/data/packed"
    )
    assert "ended 0" in host.ask("status")[1]
    assert host.ask(*words)[0] == 0 and len(host.starts()) == 1, "gcloud repeats a command whose connection broke"
    kept = list((gs / "bucket/run/logs").glob("one-*.log"))
    assert len(kept) == 1 and "step 1" in kept[0].read_text()
    host.finish(75)
    assert host.ask("train", "two", *words[2:])[0] == 75 and len(host.starts()) == 2
    assert "ended 75" in host.ask("status")[1]


def test_two_connections_follow_one_training_and_neither_ends_it(host):
    first = host.start("train", "one", "gs://b/run")
    host.wait_until_running()
    second = host.start("train", "one", "gs://b/run")
    first.send_signal(signal.SIGKILL)  # the laptop is closed
    first.wait()
    assert "running" in host.ask("status")[1]
    assert "nothing is installed" in host.ask("setup", "tar")[1]
    host.finish(0)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and "step 1" in output and len(host.starts()) == 1


def test_stopping_lets_training_save(host):
    following = host.start("train", "one", "gs://b/run")
    host.wait_until_running()
    assert "ended 143" in host.ask("stop", "30")[1] or "ended 143" in host.ask("status")[1]
    output, _ = following.communicate(timeout=60)
    assert following.returncode == 143 and "saved" in output


def test_a_training_that_vanished_is_no_success(host):
    following = host.start("train", "one", "gs://b/run")
    host.wait_until_running()
    state = host.home / "ar_omni_jax.run"
    python = int((state / "pid").read_text())
    session = int(Path(f"/proc/{python}/stat").read_text().rsplit(")", 1)[1].split()[1])
    for process in (session, python):
        os.kill(process, signal.SIGKILL)
    following.communicate(timeout=60)
    assert following.returncode != 0
    assert "ended 137" in host.ask("status")[1]


def test_a_training_that_cannot_begin_ends_with_the_reason(host):
    """Nothing was installed, or the disk is full: nobody waits for it for ever."""
    (host.home / "ar_omni_jax").rmdir()
    code, output = host.ask("train", "one", "gs://b/run")
    assert code == 137 and "No such file or directory" in output
    assert "ended 137" in host.ask("status")[1]


def test_setup_unpacks_installs_and_keeps_the_environment(host, tmp_path):
    source = tmp_path / "source"
    (source / "launch").mkdir(parents=True)
    (source / "launch" / "environment.sh").write_text('echo "installing $1 into $VENV in $PWD with $PYTHON"\n')
    with tarfile.open(tmp_path / "ar_omni_jax.tgz", "w:gz") as archive:
        archive.add(source / "launch", "launch")
    venv = host.home / "ar_omni_jax" / ".venv"
    venv.mkdir()
    (venv / "here").touch()
    (host.home / "ar_omni_jax" / "old.py").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("mountpoint", "exit 1"), ("gcsfuse", f'echo "$*" >>{tmp_path}/mounts')):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    host.environment["PATH"] = f"{programs}:{host.environment['PATH']}"
    code, output = host.ask("setup", "tar", "gs://bucket/run", "--config.data.path=gs://data/a/b")
    assert code == 0, output
    checkout = host.home / "ar_omni_jax"
    assert f"installing tpu into {venv} in {checkout} with python3" in output and output.endswith(": ready\n")
    assert (venv / "here").exists() and not (checkout / "old.py").exists()
    mounts = (tmp_path / "mounts").read_text().splitlines()
    assert [line.split()[-2:] for line in mounts] == [
        ["bucket", f"{host.home}/gs/bucket"],
        ["data", f"{host.home}/gs/data"],
    ]
    assert all("--rename-dir-limit" in line for line in mounts)
